#!/usr/bin/env bash
# A suite under deepspeed's launcher: launch/deepspeed.sh SUITE [N=2] [--set KEY=VALUE ...]
# One agent a rank. On several nodes: deepspeed's own --hostfile, same module.
set -euo pipefail
suite=${1:?usage: deepspeed.sh SUITE [N] [--set KEY=VALUE ...]}
shift
n=2
if [[ ${1:-} =~ ^[0-9]+$ ]]; then n=$1 && shift; fi
# Its own default, port 29500, is anybody's.
port=${MASTER_PORT:-$((20000 + RANDOM % 12000))}
exec deepspeed --num_gpus "$n" --master_port "$port" --module andromeda_scale.agent "$suite" "$@"

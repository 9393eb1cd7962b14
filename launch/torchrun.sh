#!/usr/bin/env bash
# A suite under torchrun: launch/torchrun.sh SUITE [N=2] [--set KEY=VALUE ...]
# One agent a rank. On several nodes: torchrun's own --nnodes and --rdzv-endpoint, same module.
set -euo pipefail
suite=${1:?usage: torchrun.sh SUITE [N] [--set KEY=VALUE ...]}
shift
n=2
if [[ ${1:-} =~ ^[0-9]+$ ]]; then n=$1 && shift; fi
exec torchrun --standalone --nproc-per-node "$n" -m andromeda_scale.agent "$suite" "$@"

#!/usr/bin/env bash
# A suite under accelerate launch: launch/accelerate.sh SUITE [N=2] [--set KEY=VALUE ...]
# One agent a rank. Every value accelerate would ask `accelerate config` for is given here.
set -euo pipefail
suite=${1:?usage: accelerate.sh SUITE [N] [--set KEY=VALUE ...]}
shift
n=2
if [[ ${1:-} =~ ^[0-9]+$ ]]; then n=$1 && shift; fi
# Without --multi_gpu accelerate starts one process on a machine without GPUs, whatever N is; with
# it, it starts N through torchrun there too.
several=()
if ((n > 1)); then several=(--multi_gpu); fi
exec accelerate launch "${several[@]}" --num_processes "$n" --num_machines 1 --machine_rank 0 \
  --main_process_port 0 --mixed_precision no --dynamo_backend no -m andromeda_scale.agent "$suite" "$@"

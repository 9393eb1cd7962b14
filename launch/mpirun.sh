#!/usr/bin/env bash
# A suite under Open MPI's mpirun: launch/mpirun.sh SUITE [N=2] [--set KEY=VALUE ...]
# One agent a rank. On several nodes: mpirun's own --host, and export MASTER_ADDR, the first host.
set -euo pipefail
suite=${1:?usage: mpirun.sh SUITE [N] [--set KEY=VALUE ...]}
shift
n=2
if [[ ${1:-} =~ ^[0-9]+$ ]]; then n=$1 && shift; fi
# mpirun would bind each agent, and so its rank, to one core: threads are the suite's to say.
options=(-n "$n" --bind-to none)
# It gives agents a terminal of its own, also where the output goes to a file.
if [[ ! -t 1 ]]; then options+=(-x TERM=dumb); fi
if ((EUID == 0)); then options+=(--allow-run-as-root); fi
exec mpirun "${options[@]}" "${PYTHON:-python}" -m andromeda_scale.agent "$suite" "$@"

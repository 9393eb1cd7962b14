"""The agent of a node: owns local ranks, starts, watches and ends them, writes their end.

    torchrun --nproc-per-node 2 -m andromeda_scale.agent SUITE      (srun, mpirun, ... alike)

Each process a launcher starts is an agent with one rank; agent 0 also plays the driver. The
driver of `andromeda-scale run` starts one agent with all local ranks by the internal options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from andromeda_scale.launch.process import die_with_parent


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m andromeda_scale.agent",
        description="Run a suite under torchrun, srun, mpirun, accelerate launch or deepspeed.",
    )
    parser.add_argument("suite", nargs="?", help="a suite file, or the name of a shipped suite")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    parser.add_argument("--axis", action="append", default=[], metavar="KEY=V1,V2", dest="axes")
    parser.add_argument("--run-dir", help="where results go (default: runs/<suite>-<time>)")
    parser.add_argument("--ranks-per-agent", type=int, default=1, dest="slots", metavar="K")
    parser.add_argument("--only-failed", action="store_true", help="rerun what failed")
    parser.add_argument("--allow-mixed", action="store_true", help="mix versions in one run")
    parser.add_argument(
        "--requeue", action="store_true", help="when agent 0 is lost, requeue this SLURM job"
    )
    parser.add_argument("--array", action="store_true", help="run the case of this array's task")
    parser.add_argument("--gather", action="store_true", help="merge what an array's tasks ran")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    # Between the driver and its agent, and for tests.
    for name, kind in (("--driver", int), ("--events", int), ("--node-silence-s", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # deepspeed's launcher adds it
    parser.add_argument("--worker", default="andromeda_scale.worker:main", help=argparse.SUPPRESS)
    parsed = parser.parse_args(argv)
    if parsed.driver is None and parsed.suite is None:
        parser.error("give a suite")
    if parsed.slots < 1:
        parser.error(f"--ranks-per-agent {parsed.slots}: is not a number of ranks; use 1 or more")
    return parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 gone through, 2 the user's mistake, 130 interrupted."""
    arguments = _arguments(argv)
    if arguments.driver is not None:
        die_with_parent(arguments.driver)
    from andromeda_scale.errors import UserError
    from andromeda_scale.launch import node

    try:
        return node.serve(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

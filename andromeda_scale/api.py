"""The commands `run` and `report` for Python, with tables as pandas frames. No torch.

    import andromeda_scale
    run = andromeda_scale.run("quickstart", axes={"strategy": ["ddp", "fsdp2"]})
    run.table("scaling")

Safe in notebooks and threads: every process of a sweep descends from one subprocess, nothing is
forked from this one, and signals are handled only where a sweep runs in the main thread.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from andromeda_scale.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from andromeda_scale.analysis.results import Results

Table = Literal[
    "scaling",
    "breakdown",
    "communication",
    "memory",
    "phases",
    "energy",
    "laws",
    "fairness",
    "cases",
    "repeats",
    "ranks",
    "steps",
]
TABLES: tuple[Table, ...] = get_args(Table)


@dataclass(frozen=True, repr=False, eq=False)  # frames have no one answer to ==
class Run:
    """A run as its files were when it was loaded."""

    path: Path
    results: Results

    @property
    def status(self) -> dict[str, int]:
        """How many launches ended how; "pending" ones have not ended."""
        return dict(Counter(self.results.repeats["status"]))

    def table(self, name: Table = "scaling") -> pd.DataFrame:
        """One of TABLES, a copy, with full precision.

        scaling: a row a case, the columns of table.csv; breakdown: where the time of a step goes,
        and what of an efficiency each class costs; communication: a row a case and kind of
        collective; memory: what a rank holds; phases: the parts of a step; energy: joules and
        watts; fairness: what differs between compared rows; laws: Amdahl, Gustafson and USL
        through the worlds; cases, repeats, ranks, steps: results.parquet, repeats.parquet,
        ranks.parquet, steps.parquet.
        """
        from andromeda_scale.report.catalogue import make_table
        from andromeda_scale.report.fairness import Fairness

        if name not in TABLES:
            raise UserError(f"{name!r} is no table; use one of {', '.join(TABLES)}")
        if name in ("cases", "repeats", "ranks", "steps"):
            frame: pd.DataFrame = getattr(self.results, name)
            return frame.copy()
        if name == "fairness":
            return Fairness.of(self.results).frame
        return make_table(self.results, name).to_frame()

    def __repr__(self) -> str:
        said = ", ".join(f"{number} {word}" for word, number in self.status.items())
        return f"Run({str(self.path)!r}: {said or 'nothing planned'})"

    def _repr_html_(self) -> str:
        from andromeda_scale.report.scaling import scaling_table

        return scaling_table(self.results).to_html()


def run(
    suite: str | Path | Mapping[str, Any],
    *,
    sets: Mapping[str, Any] | None = None,
    axes: Mapping[str, Sequence[Any]] | None = None,
    run_dir: str | Path | None = None,
    new: bool = False,
    only_failed: bool = False,
    allow_mixed: bool = False,
    quiet: bool = False,
) -> Run:
    """Plan, launch, measure and merge a suite: a shipped name, a file, or a mapping of its keys.

    `sets` and `axes` are dotted keys and what `--set` and `--axis` give them; the rest is as in
    `andromeda-scale run`, which takes up an unfinished run of the same cases under runs/.
    Failed cases are rows of the tables. Raises UserError for a mistake, before anything starts;
    KeyboardInterrupt when interrupted, after the current launch was closed: the same call goes
    on; RuntimeError when the sweep itself broke.
    """
    from andromeda_scale.commands import choosing, sweep
    from andromeda_scale.hardware.machine import detect_machine
    from andromeda_scale.launch.run_dir import RUNS
    from andromeda_scale.planning.plan import make_plan, require_runnable
    from andromeda_scale.planning.suite_file import mapping_suite, read_suite

    if not isinstance(suite, str | Path | Mapping):
        raise UserError(
            f"suite: {suite!r} is no suite; give a name, a path or a mapping of its keys"
        )
    changes = _assignments(sets or {}), _assignments(axes or {}, are_axes=True)
    if isinstance(suite, Mapping):
        loaded = mapping_suite(suite, *changes)
    else:
        loaded = read_suite(suite if isinstance(suite, str) else str(suite.absolute()), *changes)
    plan = make_plan(loaded.suite, loaded.name, detect_machine(), loaded.where)
    require_runnable(plan, loaded.where)
    chosen = None if run_dir is None else Path(run_dir)
    path, _ = choosing.choose(plan, RUNS, chosen, new=new, only_failed=only_failed)
    started = sweep.start(path, plan, loaded.text, allow_mixed=allow_mixed)
    outcome = sweep.refined(started, only_failed=only_failed, quiet=quiet)
    results, full = sweep.tables(started.path)
    if outcome.interrupted:
        raise KeyboardInterrupt(f"{path}: interrupted; the same call goes on with it")
    if error := outcome.error or full:
        raise RuntimeError(error)
    return Run(path, results)


def load_run(path: str | Path) -> Run:
    """A run by its directory, finished or not, or a copy of it with its Parquet files alone."""
    from andromeda_scale.merge import load_results

    return Run(Path(path), load_results(Path(path)))


def _assignments(values: Mapping[str, Any], *, are_axes: bool = False) -> list[str]:
    """KEY=VALUE as the command line takes it, values in JSON, which is YAML too."""
    option = "axes" if are_axes else "sets"
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        example = '{"strategy": ["ddp", "fsdp2"]}' if are_axes else '{"train.seq_len": 4096}'
        raise UserError(f"{option}: is no mapping of dotted keys; write {example}")
    found = []
    for key, value in values.items():
        if are_axes and (isinstance(value, str) or not isinstance(value, Sequence)):
            raise UserError(f"{option}: {key}: {value!r} is not a list; give the axis [its values]")
        try:
            if key.startswith("env."):  # variables are text, taken as it stands
                given = value if are_axes else [value]
                texts = [_variable(f"{option}: {key}", one) for one in given]
                if are_axes and any("," in one for one in texts):
                    raise UserError(
                        f"{option}: {key}: holds a comma, which parts the values of an axis; write "
                        f'sets={{"env": {{"{key.removeprefix("env.")}": [its values]}}}}'
                    )
                text = ",".join(texts)
            else:
                text = json.dumps(list(value))[1:-1] if are_axes else json.dumps(value)
        except TypeError as error:
            raise UserError(
                f"{option}: {key}: {error}; give text, numbers, lists or mappings"
            ) from None
        found.append(f"{key}={text}")
    return found


def _variable(place: str, value: Any) -> str:
    """A value of a variable as text: what a process would be given of others is a guess. It may be
    a secret, and is not shown."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(
        f"{place}: {type(value).__name__} is not text; quote it, or give several as an axis"
    )

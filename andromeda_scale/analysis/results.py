"""The results of a run as tables, and their Parquet files. No torch.

results.parquet   a row a case
repeats.parquet   a row a case x repeat: the launches behind a case's numbers
ranks.parquet     a row a case x repeat x rank
communication.parquet  a row a case x kind of collective
steps.parquet     a row a case x repeat x step of warm-up and window

A case's row pools its repeats, so the column `repeat` is in repeats.parquet and ranks.parquet only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from andromeda_scale.errors import UserError

FILES = {
    "cases": "results.parquet",
    "repeats": "repeats.parquet",
    "ranks": "ranks.parquet",
    "communication": "communication.parquet",
    "steps": "steps.parquet",
}
_SINCE_LATER = ("communication", "steps")  # an earlier version wrote none
_UNDONE = {"", "ok", "pending", "skipped", "interrupted"}
_KEY = b"andromeda_scale"  # in the metadata of each file
_dtype: Any = cache(pd.api.types.pandas_dtype)  # by name it tries every kind of array each time


@dataclass
class Results:
    """What a run found. `problems` are one line each: what was not used, and why. `standing`: what
    a reader must know first, that the run has not ended; no file keeps it."""

    cases: pd.DataFrame
    repeats: pd.DataFrame
    ranks: pd.DataFrame
    communication: pd.DataFrame = field(default_factory=pd.DataFrame)
    steps: pd.DataFrame = field(default_factory=pd.DataFrame)
    problems: list[str] = field(default_factory=list)
    suite_name: str = ""
    question: str = ""
    standing: str = ""


def typed(columns: Mapping[str, Any], kinds: Mapping[str, str]) -> pd.DataFrame:
    """A frame of `kinds` (dtypes by name) from columns of one length by name: absent text is "",
    an absent flag False, an absent number empty."""
    length = max(map(len, columns.values()), default=0)
    made = {name: _typed(columns.get(name), kind, length) for name, kind in kinds.items()}
    return pd.DataFrame(made)


def typed_rows(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> pd.DataFrame:
    """The same from rows, which need not have every column."""
    return typed({name: [row.get(name) for row in rows] for name in kinds}, kinds)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Its rows, None for what pandas calls NA, of a frame of many columns: `to_dict("records")`
    takes five times as long for 200."""
    names = [str(name) for name in frame.columns]
    return [
        {name: None if value is pd.NA else value for name, value in zip(names, row, strict=True)}
        for row in frame.to_numpy(object)
    ]


def has_failures(row: Mapping[str, Any]) -> bool:
    """Whether a launch of a case failed, and was not merely left undone."""
    ended = {one.partition(" ")[0] for one in str(row.get("statuses") or "").split(", ")}
    return bool(ended - _UNDONE)


def _typed(values: Any, kind: Any, length: int) -> Any:
    """One column as an array: a frame that is written column by column takes thrice as long."""
    values = [None] * length if values is None else values
    if kind in ("float64", "int64"):
        return np.asarray(values, dtype=kind)
    if kind == "str":
        texts = np.array(values, dtype=object)
        texts[pd.isna(texts)] = ""
        return pd.array(texts, dtype=_dtype("str"))
    if kind == "bool":
        return np.array([value is True for value in values], dtype=bool)
    return pd.array(values, dtype=_dtype(kind))


def write(results: Results, directory: Path) -> None:
    """Write FILES into `directory`, each whole or not at all."""
    about = {
        "suite_name": results.suite_name,
        "question": results.question,
        "problems": results.problems,
    }
    for name, file in FILES.items():
        table = pa.Table.from_pandas(getattr(results, name), preserve_index=False)
        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(about).encode()}
        part = directory / f".{file}.{os.getpid()}.part"
        try:
            pq.write_table(table.replace_schema_metadata(metadata), part)
            os.replace(part, directory / file)
        finally:
            part.unlink(missing_ok=True)


def read(directory: Path) -> Results:
    """Read what `write` wrote. Raises UserError if a file is missing or damaged."""
    frames: dict[str, pd.DataFrame] = {}
    about: dict[str, Any] = {}
    for name, file in FILES.items():
        if name in _SINCE_LATER and not (directory / file).exists():
            frames[name] = pd.DataFrame()
            continue
        try:
            table = pq.read_table(directory / file)
            about = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            # pyarrow says of a file that is not there its name alone.
            why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise UserError(
                f"{directory / file}: cannot be read ({why.splitlines()[0]}); give the "
                "directory of a run that has finished, with its plan.json and cases or its "
                "Parquet files"
            ) from error
        frames[name] = table.to_pandas()
    return Results(
        frames["cases"],
        frames["repeats"],
        frames["ranks"],
        frames["communication"],
        frames["steps"],
        list(about.get("problems", [])),
        str(about.get("suite_name", "")),
        str(about.get("question", "")),
    )

"""Runs a table of results on GPUs, checks each row against its reach, prints and keeps it.

    python benchmarks/gpu_results.py llama --out docs/results/h200 [--set train.micro_batch_size=2]
    python benchmarks/gpu_results.py all --rehearse --out /tmp/rehearsal    # tiny, on a CPU

Tables: those of gpu_tables.py and gpu_instruments.py. OUT/TABLE/ then holds table.md and, a folder
a run, its suite and its Parquet files, or an instrument's one: `--show` prints a table from them
alone. A row whose case failed says why; one that misses its reach says by how much. Exit status 1
if any does. `--only N` runs the N-th suite of a table, counted from 0.
Peers (bare_loop.py, and torchtitan where it is installed) take turns with ours: theirs, ours, ours,
theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from gpu_instruments import INSTRUMENTS
from gpu_tables import ENVIRONMENT, SHORT, TABLES, Row, Suite, Table

import andromeda_scale
from andromeda_scale.analysis.results import FILES

GIB = 1 << 30
PEER_TIMEOUT_S = 420.0
SETTINGS = ("run", "model", "strategy", "GPUs", "precision", "T", "B", "other")
# Heading -> a row's value and how it is written; a column without a value is left out.
MEASURED: dict[str, tuple[Callable[[Row], Any], str]] = {
    "step ms": (lambda row: 1e3 * row["window_step_s"], ".2f"),
    "tokens/s/GPU": (lambda row: row["tokens_per_s_per_gpu"], ",.0f"),
    "TFLOP/s": (lambda row: row["tokens_per_s_per_gpu"] * row["flops_per_token"] / 1e12, ".1f"),
    "MFU": (lambda row: row["mfu"], ".1%"),
    "efficiency": (lambda row: _efficiency(row) if row["world_size"] > 1 else None, ""),
    "of the best": (lambda row: _of_the_best(row), ".3f"),
    "exposed ms": (lambda row: 1e3 * row["comm_exposed_s"], ".2f"),
    "mJ/token": (lambda row: 1e3 * row["joules_per_token"], ".2f"),
    "GiB": (lambda row: row["peak_allocated_bytes"] / GIB, ".1f"),
    "micro batches tried": (lambda row: row["micro_batch_tried"] or None, ""),
}
# What a rehearsal has in the place of a model.
TINY = {"llama": "llama-tiny", "cs336": "llama-tiny", "andromeda": "andromeda-tiny"}
TINY_TRAIN = {"seq_len": 16, "micro_batch_size": 1, "compile": False, "attention": None}
# The axes that a rehearsal keeps, and what it has in the place of their values (None: themselves).
TINY_AXES: dict[str, list[Any] | None] = {
    "strategy": None,
    "model.alibi_num_heads": [0, 2],
    "train.mode": None,
    "train.seq_len": [16, 32, 64],
    "train.micro_batch_size": [1, 2, 4],
    "train.precision": None,
    "train.compile": None,
    "train.activation_checkpointing": None,
    "train.attention": ["naive", "sdpa_bias", "sdpa_causal"],  # a CPU has no backward of flex
}
TINY_MEASURE = {"warmup": {"min_steps": 2, "max_steps": 2}, "steps": 2}


def complete(table: Table, suite: Suite, *, rehearse: bool) -> Suite:
    """A suite as it is run."""
    made = {
        "question": table.question,
        "data": {"source": "random"},
        "measure": SHORT,
        "collect": ["memory"],
        "parity": "cross",
        "limits": {"timeout_s": 420},
        "env": ENVIRONMENT,
        **suite,
    }
    return _tiny(made) if rehearse else made


def _tiny(suite: Suite) -> Suite:
    axes = {k: TINY_AXES[k] or v for k, v in suite.get("axes", {}).items() if k in TINY_AXES}
    return suite | {
        "model": TINY[_named(suite["model"]).partition("-")[0]],
        "train": suite["train"] | TINY_TRAIN,
        "measure": suite["measure"] | TINY_MEASURE,
        "axes": axes,
        "device": "cpu",
        "env": {},
    }


def _named(model: str | Mapping[str, Any]) -> str:
    return model if isinstance(model, str) else str(model["base"])


def part(table: Table, only: Sequence[int]) -> Table:
    """A table of some of its suites; of all without a number."""
    return replace(table, suites=[table.suites[index] for index in only] or table.suites)


def run_table(table: Table, out: Path, *, rehearse: bool, sets: Mapping[str, Any]) -> None:
    """Run what a table needs, into folders of `out`, beside what other runs left there."""
    first = 1 + max((int(run.name[5:]) for run in out.glob("ours-*")), default=-1)
    first += first % 2  # a time cut in its middle leaves one turn
    names = [f"ours-{first + index}" for index in range(len(table.suites))]
    runs = list(zip(names, table.suites, strict=True))
    order: list[tuple[str, Suite | None]] = [*runs]
    if table.peers:
        ours, turns = table.suites[0], [*table.peers]
        order = [*((f"{peer}-{first}", None) for peer in turns)]
        order += [(f"ours-{first}", ours), (f"ours-{first + 1}", ours)]
        order += [*((f"{peer}-{first + 1}", None) for peer in reversed(turns))]
    for name, suite in order:
        print(f"-- {name}", file=sys.stderr, flush=True)
        if suite is None:
            (out / name).mkdir(parents=True)
            _run_peer(table, out / name, rehearse=rehearse, sets=sets)
        else:
            _run_ours(complete(table, suite, rehearse=rehearse), out / name, sets)


def _run_ours(suite: Suite, run: Path, sets: Mapping[str, Any]) -> None:
    """Of a run that has ended its tables are kept."""
    andromeda_scale.run(suite, sets=sets, run_dir=run, quiet=True)
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (*FILES.values(), "suite.yaml"):
            path.unlink()


def _run_peer(table: Table, kept: Path, *, rehearse: bool, sets: Mapping[str, Any]) -> None:
    """One torchrun of a peer's script with the train settings of the first suite."""
    suite = complete(table, table.suites[0], rehearse=rehearse)
    given = {key.removeprefix("train."): v for key, v in sets.items() if key.startswith("train.")}
    train = suite["train"] | given
    name = kept.name.rpartition("-")[0]
    world, (script, model, *rest) = max(suite["world"]), table.peers[name]
    of = suite["model"] if rehearse else model
    words = [of, *rest]
    words += [f"--set={key}={json.dumps(value)}" for key, value in train.items()]
    if rehearse:
        words += ["--warmup=1", "--steps=2"]
    where = f"{Path.cwd()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    threads = str(max(1, (os.cpu_count() or 1) // world))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    words = [sys.executable, *torchrun, str(Path(__file__).with_name(script)), *words]
    said, errors = _ended(
        words, {**os.environ, **suite["env"], "PYTHONPATH": where, "OMP_NUM_THREADS": threads}
    )
    lines = [line for line in said.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {}
    cause = "" if found else _cause(errors)
    about = {"peer": name, "model": of, "world_size": world, "cause": cause, **train, **found}
    (kept / "peer.json").write_text(json.dumps(about, indent=1) + "\n")


def _ended(words: Sequence[str], environment: Mapping[str, str]) -> tuple[str, str]:
    """What a command said, on stdout and stderr; one that does not end is asked to, and then is."""
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            return process.communicate(timeout=PEER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its ranks, which a kill would leave
            try:
                said, _ = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
            return said, f"TimeoutError: not done in {PEER_TIMEOUT_S:g} s"


def _cause(stderr: str) -> str:
    """The first error with a text: torchrun's own, which has none, come after a rank's."""
    said = re.search(r"^(?:\[\w+\]:\s*)?([\w.]*Error: .*\S)\s*$", stderr, re.MULTILINE)
    return said[1] if said else "it printed nothing"


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of a table, from its files."""
    found: list[dict[str, Any]] = []
    for folder in sorted((path for path in out.iterdir() if path.is_dir()), key=_numbered):
        if (folder / "peer.json").exists():
            found.append(_peer_row(json.loads((folder / "peer.json").read_text())))
        else:
            found += andromeda_scale.load_run(folder).table("cases").to_dict("records")
        for row in found:
            row.setdefault("run", folder.name)
    found = list(_without_cut(found))
    flops = {row["model"]: row["flops_per_token"] for row in found if "flops_per_token" in row}
    for row in found:
        row.setdefault("flops_per_token", flops.get(row["model"]))
    return found


def _numbered(run: Path) -> tuple[str, int]:
    """What sorts ours-10 behind ours-9."""
    name, _, number = run.name.rpartition("-")
    return (name, int(number)) if number.isdigit() else (run.name, 0)


def _without_cut(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A case that one run was cut before, or in, stands once: as another run has it, if one has."""
    cut = ("pending", "interrupted")
    seen: set[str] = set()
    ended = {row.get("case_id") for row in rows if row["status"] not in cut}
    for row in rows:
        if row["status"] not in cut:
            yield row
        elif row["case_id"] not in ended | seen:
            seen.add(row["case_id"])
            yield row


def _peer_row(about: dict[str, Any]) -> dict[str, Any]:
    step_s = about.get("step_s", float("nan"))
    tokens = about["micro_batch_size"] * about["seq_len"]
    return about | {
        "strategy": about["peer"],
        "options": "",
        "status": "ok" if "step_s" in about else "failed",
        "other": "{}",
        "step_time_s": step_s,
        "window_step_s": step_s,
        "tokens_per_s_per_gpu": tokens / step_s,
        "mfu": None,
    }


def cells(table: Table, row: Row, rows: Sequence[Row]) -> dict[str, str]:
    """A row under SETTINGS, MEASURED, the table's own columns and its reach."""
    settings = dict(zip(SETTINGS, _settings(row), strict=True))
    if row["status"] != "ok":
        dashes = dict.fromkeys((*MEASURED, *table.columns), "-")
        said = textwrap.shorten(f"{row['status']}: {row['cause']}", 80, placeholder=" ...")
        # What auto leaves out, as it does not fit, misses nothing.
        missed = "" if row["status"] == "skipped" else "missed"
        return settings | dashes | {"reach": said, "": missed}
    found = {head: _written(row, *how) for head, how in MEASURED.items()}
    for head, (value, form) in table.columns.items():
        found[head] = _written(row, lambda row, value=value: value(row, rows), form)
    if (reach := table.reach(row, rows)) is None:
        return settings | found | {"reach": "", "": ""}
    sign = "<=" if reach.at_most else ">="
    said = f"{reach.what} {_significant(reach.found)} {sign} {_significant(reach.bound)}"
    met = "reached" if reach.met else f"missed by {abs(reach.found / reach.bound - 1):.1%}"
    return settings | found | {"reach": said, "": met}


def _settings(row: Row) -> Iterator[str]:
    other = {key.rpartition(".")[2]: value for key, value in json.loads(row["other"]).items()}
    hidden = ("compile", "source", "measure", "warmup", "steps", "repeats", "profile_steps")
    if other.get("NCCL_NVLS_ENABLE") == "0":  # of every row
        del other["NCCL_NVLS_ENABLE"]
    said = ", ".join(f"{k}={json.dumps(v)}" for k, v in other.items() if k not in hidden)
    yield from (str(row["run"]), str(row["model"]))
    yield " ".join(part for part in (row["strategy"], row["options"]) if part)
    yield from (str(row[key]) for key in ("world_size", "precision", "seq_len", "micro_batch_size"))
    yield " ".join(part for part in (_compiled(other.get("compile")), said) if part)


def _efficiency(row: Row) -> str | None:
    """With its 95 % interval over launches, where there are several."""
    if pd.isna(row["efficiency"]) or row["base_world_size"] == row["world_size"]:
        return None
    low, high = row["efficiency_low"], row["efficiency_high"]
    interval = "" if pd.isna(low) or pd.isna(high) else f" [{low:.3f}, {high:.3f}]"
    return f"{row['efficiency']:.3f}{interval}"


def _of_the_best(row: Row) -> float | None:
    """Per-GPU speed over that of the best strategy at the smallest world.

    A strategy that is slow there looks efficient beside itself. Of the best itself it is the
    efficiency.
    """
    if pd.isna(row["efficiency"]) or row["base_world_size"] == row["world_size"]:
        return None
    itself = row["common_base_case_id"] == row["base_case_id"]
    return None if itself else float(row["efficiency_common"])


def _significant(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _written(row: Row, value: Callable[[Row], Any], form: str) -> str:
    try:
        found = value(row)
    except (KeyError, TypeError):  # not collected, or a peer's, which measures time alone
        return "-"
    return "-" if pd.isna(found) else format(found, form)


def table_of(name: str, out: Path) -> tuple[str, bool]:
    """A table from its files, as Markdown; whether every reach is met."""
    if name in INSTRUMENTS:
        instrument = INSTRUMENTS[name]
        text, met = instrument.printed(out / instrument.record)
        return f"{instrument.question}\n\n{text}", met
    table, rows = TABLES[name], rows_of(out)
    frame = pd.DataFrame([cells(table, row, rows) for row in rows])
    met = not frame[""].str.startswith("missed").any()
    empty = [head for head in (*MEASURED, *table.columns) if (frame[head] == "-").all()]
    frame = frame.drop(columns=empty)
    frame = frame if (frame[""] != "").any() else frame.drop(columns=["reach", ""])
    text = f"{table.question}\n\n{frame.to_markdown(index=False)}\n{_against_peers(rows)}"
    return text, met


def show(name: str, out: Path) -> bool:
    """Print a table and keep it beside its files; whether every reach is met."""
    text, met = table_of(name, out)
    (out / "table.md").write_text(text)
    print(text, flush=True)
    return met


def _compiled(how: Any) -> str:
    """How a row was compiled: '', 'compiled', or with a mode and whether as one graph."""
    if not isinstance(how, Mapping):
        return "compiled" if how else ""
    return " ".join(("compiled", *["whole"] * bool(how.get("whole")), str(how.get("mode", ""))))


def _against_peers(rows: Sequence[Row]) -> str:
    """Ours against each peer, once for every time that both took turns."""
    ended = [row for row in rows if row["status"] == "ok"]
    runs = {row["run"]: float(row["window_step_s"]) for row in ended}
    said = []
    for before in (row["run"] for row in ended if "peer" in row):
        peer, _, number = before.rpartition("-")
        first = int(number) if number.isdigit() else 1
        turns = (before, f"ours-{first}", f"ours-{first + 1}", f"{peer}-{first + 1}")
        if first % 2 == 0 and all(name in runs for name in turns):
            their, our, our_again, their_again = (runs[name] for name in turns)
            ratio = (our * our_again / (their * their_again)) ** 0.5
            said += [f"A step of ours lasts {ratio:.4f} of one of {peer} ({', '.join(turns)})."]
    return "".join(f"\n{line}\n" for line in said)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table", choices=(*TABLES, *INSTRUMENTS, "all"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", dest="sets")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on this CPU")
    parser.add_argument("--show", action="store_true", help="run nothing: print what is there")
    parser.add_argument(
        "--again", action="store_true", help="beside what is there; an instrument: anew"
    )
    parser.add_argument(
        "--only", type=int, action="append", default=[], metavar="N", help="its suite N, from 0"
    )
    asked = parser.parse_args()
    sets = {key: _value(text) for key, _, text in (word.partition("=") for word in asked.sets)}
    suites = len(TABLES[asked.table].suites) if asked.table in TABLES else 0
    if not all(0 <= index < suites for index in asked.only):
        parser.error(f"--only: {asked.table} has {suites} suites, counted from 0")
    met = True
    for name in (*TABLES, *INSTRUMENTS) if asked.table == "all" else [asked.table]:
        out = asked.out / name
        if not asked.show:
            if out.exists() and not asked.again:
                parser.error(f"{out} exists: give another --out, --again, or --show")
            if name in INSTRUMENTS:
                INSTRUMENTS[name].run(out, rehearse=asked.rehearse, **ENVIRONMENT)
            else:
                run_table(part(TABLES[name], asked.only), out, rehearse=asked.rehearse, sets=sets)
        met &= show(name, out)
    return 0 if met or asked.rehearse else 1


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())

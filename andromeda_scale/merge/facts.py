"""What ranks read back of themselves, as facts: dotted names with one value each. No torch.

A fact is what happened, never what was asked: `dtypes.master`, `optimizer.class`, `threads`,
`attention.kernel`, `software.torch`. All ranks of a launch, and all launches of a case, must agree;
where they do not, the fact's value says who had which, and a problem names it. null: not read back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from andromeda_scale.contracts.records import RankRecord, RepeatRecord
from andromeda_scale.merge.system import flatten
from andromeda_scale.merge.values import of_ranks
from andromeda_scale.suite.config import Case

Facts = dict[str, Any]

# Sizes differ from rank to rank, times and cache hits from launch to launch; the world is the row.
_MEASURED = ("bytes", "bytes_on", "world_size")
_MEASURED_ENDINGS = ("seconds", "_s", "cache_hits", "cache_misses", "compile.cold")
# Where a job runs, not how, and what no rank minds: launchers set these as they like.
_PLACES = (
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",  # ranks set their number of threads themselves: the fact `threads`
    "OMP_NUM_THREADS",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_NNODES",
    "SLURM_NTASKS",
)
_HARDWARE = ("machine", "cpu_model", "cpu_cores", "gpu_driver")
MAX_SHOWN = 4  # values of a list
DIGITS = 16  # of a hash: chance makes no two alike


def repeat_facts(record: RepeatRecord, problems: list[str]) -> Facts:
    """The facts of one launch, from all its ranks and nodes; disagreements become problems."""
    ranks = sorted(record.ranks.values(), key=lambda rank: rank.rank)
    alike: dict[str, list[int]] = {}
    for rank in ranks:
        text = json.dumps(_of_rank(rank), sort_keys=True, default=str)
        alike.setdefault(text, []).append(rank.rank)
    described = {of_ranks(who): _flat(json.loads(text)) for text, who in alike.items()}
    facts = agreed(described, problems)
    if ranks:
        found = ranks[0].values("setup", "data").get("fingerprint")
        facts["data.fingerprint"] = found[:DIGITS] if isinstance(found, str) else None
    nodes = {
        f"node {index}": _of_node(environment)
        for index, node in enumerate(record.nodes)
        if isinstance(environment := node.get("environment"), dict) and environment
    }
    unlike: list[str] = []
    facts |= agreed(nodes, unlike)
    # Versions and hardware that differ are named by what reads the fingerprint.
    problems += [problem for problem in unlike if problem.startswith("variables.")]
    return facts


def case_facts(case: Case, launches: Sequence[tuple[int, Facts]], problems: list[str]) -> Facts:
    """The facts of a case: (repeat, facts) of its pooled launches, and the work of a step.

    Batch and length are the case's: tokens that contradict them make a launch invalid.
    """
    found: list[str] = []
    alike: dict[str, list[int]] = {}
    for repeat, facts in launches:
        alike.setdefault(json.dumps(facts, sort_keys=True), []).append(repeat)
    facts = agreed(
        {
            f"in repeat {', '.join(map(str, repeats))}": json.loads(text)
            for text, repeats in alike.items()
        },
        found,
    )
    problems += [f"{case.case_id}: {problem}" for problem in found]
    if not launches:
        return {}
    return facts | {
        **{f"variables.{name}": value for name, value in case.env.items()},
        "seq_len": case.train.seq_len,
        "micro_batch_size": case.train.micro_batch_size,
        "grad_accum": case.train.grad_accum,
        "global_batch_size": case.global_batch_size,
    }


def agreed(found: dict[str, Facts], problems: list[str]) -> Facts:
    """One value a fact, from who said what; where they differ, a text that says both."""
    if len(found) == 1:
        return dict(next(iter(found.values())))
    facts: Facts = {}
    for name in dict.fromkeys(name for said in found.values() for name in said):
        values: dict[str, list[str]] = {}
        for who, said in found.items():
            unset = "unset" if name.startswith("variables.") else None
            values.setdefault(shown(said.get(name, unset)), []).append(who)
        if len(values) == 1:
            facts[name] = next(said[name] for said in found.values() if name in said)
        else:
            facts[name] = "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items())
            problems.append(f"{name} is not one value: {facts[name]}")
    return facts


def shown(value: Any) -> str:
    """A fact's value as text; one that is not there was not read back."""
    if value is None:
        return "not read back"
    return value if isinstance(value, str) else json.dumps(value)


def _of_rank(rank: RankRecord) -> dict[str, Any]:
    """What a rank read back, without what is measured."""
    described = {key: value for key, value in rank.describe.items() if key not in _MEASURED}
    if "dtypes" in described:
        described["dtypes"] = _dtypes(described["dtypes"], rank.describe)
    if described.get("compile", 0) is None:
        described["compile"] = {"graphs": 0, "graph_breaks": 0}
    return described | {
        "threads": rank.start.get("threads"),
        "device_name": rank.start.get("device"),
    }


def _dtypes(dtypes: Any, described: dict[str, Any]) -> Any:
    """A kind of state that was read back and holds no byte has dtype none, not an unknown one."""
    sizes = described.get("bytes")
    if not isinstance(dtypes, dict) or not isinstance(sizes, dict):
        return dtypes
    empty = {kind: "none" for kind in dtypes if dtypes[kind] is None and sizes.get(kind) == 0}
    if described.get("world_size") == 1 and dtypes.get("reduction", "") is None:
        empty["reduction"] = "none"
    return dtypes | empty


def _flat(described: dict[str, Any]) -> Facts:
    facts: Facts = {}
    for name, value in flatten(described).items():
        if name.endswith(_MEASURED_ENDINGS):
            continue
        if isinstance(value, list) and any(isinstance(one, dict) for one in value):
            facts |= _of_parts(name, [one for one in value if isinstance(one, dict)])
        else:
            facts[name] = _list(value) if isinstance(value, list) else value
    return facts


def _of_parts(name: str, parts: list[dict[str, Any]]) -> Facts:
    """A list of mappings, such as FSDP's units: how many, and what they have in common."""
    keys = dict.fromkeys(key for part in parts for key in part)
    common = {
        f"{name}.{key}": _list(sorted({shown(part.get(key)) for part in parts}))
        for key in keys
        if all(isinstance(part.get(key), bool | None) for part in parts)
    }
    return {f"{name}.num": len(parts), **common}


def _list(values: list[Any]) -> str:
    if len(values) > MAX_SHOWN:
        total = f", {sum(values)} in all" if all(type(one) is int for one in values) else ""
        return f"{len(values)} values{total}"
    return ", ".join(shown(value) for value in values)


def _of_node(environment: dict[str, Any]) -> Facts:
    versions, variables = environment.get("versions"), environment.get("variables")
    names: Iterable[Any] = environment.get("gpus") or ()
    gpus = [one.get("name") for one in names if isinstance(one, dict)]
    return {
        **{f"software.{name}": found or "none" for name, found in _items(versions)},
        "software.source": environment.get("source_sha256"),
        **{f"hardware.{name}": environment.get(name) or "none" for name in _HARDWARE},
        "hardware.gpus": ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
        or "none",
        **{f"variables.{n}": value for n, value in _items(variables) if n not in _PLACES},
    }


def _items(values: Any) -> Iterable[tuple[str, Any]]:
    return values.items() if isinstance(values, dict) else ()

"""The columns of the scaling table: what a reader sees, and the result columns behind. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from andromeda_scale.metrics import METRICS
from andromeda_scale.metrics.formats import NOT_MEASURED, significant
from andromeda_scale.report.rows import Row, has, is_base, world


@dataclass(frozen=True)
class Column:
    """One column: what a reader sees, and the result columns behind it."""

    header: str
    names: tuple[str, ...]  # in CSV, with full precision
    text: Callable[[Row], str]
    left: bool = False
    folds: bool = False  # over several lines of a terminal, where it must
    is_setting: bool = False  # an axis of the suite


def metric(name: str) -> Callable[[Row], str]:
    """Prints one metric as the registry says."""
    return lambda row: METRICS[name].text(row[name]) if has(row, name) else NOT_MEASURED


def _step(row: Row) -> str:
    if not has(row, "step_time_s"):
        return NOT_MEASURED
    text = significant(row["step_time_s"] * 1e3)
    if not has(row, "step_time_mad_s"):  # of one step
        return text
    return f"{text} +-{significant(row['step_time_mad_s'] * 1e3, 2)}"


def _speedup(row: Row) -> str:
    return "base" if is_base(row) else metric("speedup")(row)


def _efficiency(row: Row) -> str:
    if is_base(row):
        return "base"
    if not has(row, "efficiency"):
        return NOT_MEASURED
    centre = f"{row['efficiency'] * 100:.1f}"
    if not has(row, "efficiency_low"):
        return centre
    return f"{centre} [{row['efficiency_low'] * 100:.1f}, {row['efficiency_high'] * 100:.1f}]"


def _exposed(row: Row) -> str:
    if not has(row, "comm_exposed_s"):
        return NOT_MEASURED
    return f"{significant(row['comm_exposed_s'] * 1e3, 3)} ({row['comm_exposed_share']:.0%})"


def _imbalance(row: Row) -> str:
    """With the rank that the others wait for most, and how many more are blamed."""
    if not has(row, "blamed_rank"):
        return metric("imbalance")(row)
    more = row["blamed_ranks"].count(",")
    return f"{metric('imbalance')(row)} r{row['blamed_rank']}{f'+{more}' if more else ''}"


def _compile(row: Row) -> str:
    """Cold / warm seconds; a row without compilation has neither."""
    cold, warm = (metric(name)(row) for name in COMPILE)
    return NOT_MEASURED if cold == warm == NOT_MEASURED else f"{cold} / {warm}"


def _micro_batch(row: Row) -> str:
    """With a mark where it was found, and without a size where none was."""
    if has(row, "micro_batch_asked") and not has(row, "micro_batch_found"):
        return "auto"
    return f"{row['micro_batch_size']}{' auto' if has(row, 'micro_batch_tried') else ''}"


def _memory(row: Row) -> str:
    rank = f" r{row['peak_memory_rank']}" if has(row, "peak_memory_rank") else ""
    return metric("peak_memory_bytes")(row) + rank


def _status(row: Row) -> str:
    mark = f" [{row['mark']}]" if row.get("mark") else ""
    if row["status"] == "ok" and row["num_launches"] < row["num_repeats_planned"]:
        return f"ok {row['num_launches']}/{row['num_repeats_planned']}{mark}"
    return f"{row['status']}{mark}"


_INTERVAL = ("{0}", "{0}_low", "{0}_high")


def _with_interval(name: str) -> tuple[str, ...]:
    return tuple(part.format(name) for part in _INTERVAL)


PRECISION = ("half_width", "wanted_precision", "launches_needed", "steps_needed")
TOKENS = Column("tokens/s", (*_with_interval("tokens_per_s"), *PRECISION), metric("tokens_per_s"))
# Which lines of the fairness table a row stands out in.
UNFAIR = Column("unfair", ("unfair",), lambda row: str(row["unfair"]), left=True)
COMPILE = ("compile_cold_s", "compile_warm_s")
# Left out where no row compiled.
COMPILED = Column("compile s cold/warm", COMPILE, _compile)
# Left out where every micro batch was given.
SEARCHED = Column(
    "micro batch",
    (
        "micro_batch_size",
        "micro_batch_asked",
        "micro_batch_found",
        "micro_batch_tried",
        "micro_batch_margin",
    ),
    _micro_batch,
)
# Left out where no row has another of its strategy and settings at a smaller world.
AGAINST_BASE = (
    Column("speedup", _with_interval("speedup"), _speedup),
    Column(
        "efficiency %",
        (
            *_with_interval("efficiency"),
            "base_case_id",
            "base_world_size",
            *_with_interval("efficiency_common"),
            *_with_interval("karp_flatt"),
        ),
        _efficiency,
        folds=True,
    ),
)
MEMORY = (
    "peak_memory_bytes",
    "peak_memory_rank",
    "peak_memory_host",
    "peak_allocated_bytes",
    "estimated_memory_bytes",
    "estimate_error",
)
BLAME = (
    "blamed_ranks",
    "blame_s",
    "blame_floor_s",
    "blame_kind",
    "blame_cause",
    "blamed_host",
    "blamed_device",
    "nobody_blamed",
)
WORLD = Column("world", ("world_size", "nodes", "ranks_per_node"), world)
COLUMNS = (
    WORLD,
    Column(
        "status",
        ("status", "statuses", "num_launches", "num_repeats_planned", "cause"),
        _status,
        left=True,
    ),
    SEARCHED,
    TOKENS,
    Column("per rank", _with_interval("tokens_per_s_per_gpu"), metric("tokens_per_s_per_gpu")),
    Column(
        "step ms +-MAD",
        (
            *_with_interval("step_time_s"),
            "step_time_mad_s",
            "step_time_p95_s",
            "step_autocorrelation",
        ),
        _step,
    ),
    COMPILED,
    *AGAINST_BASE,
    Column(
        "exposed ms",
        (
            "comm_exposed_s",
            "comm_exposed_share",
            "comm_total_s",
            "exposed_wait_s",
            "exposed_method",
            "ablation_s",
            "ablation_error_s",
            "contention_s",
        ),
        _exposed,
    ),
    Column("imbalance", ("imbalance", *BLAME), _imbalance),
    Column("peak memory", MEMORY, _memory),
)
MFU = Column("MFU", ("mfu", "flop_convention"), metric("mfu"))
# Against the best matrix product of a probe: there is one for devices without a published peak.
MAMF = Column("of mamf", ("mfu_of_mamf", "mamf_flops_per_s", "mamf_cause"), metric("mfu_of_mamf"))
# Left out where no row collects energy, as MFU and mamf where no peak is known.
JOULES = Column("J/token", ("joules_per_token", "power_w"), metric("joules_per_token"))
FABRIC = Column(
    "busbw GB/s",
    ("busbw_op", "busbw_gbps", "busbw_probe_gbps", "busbw_share", "busbw_cause"),
    metric("busbw_gbps"),
)


def setting(name: str) -> Callable[[Row], str]:
    """Prints one key of a suite."""
    return lambda row: str(row[name])

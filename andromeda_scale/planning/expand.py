"""Suite -> cases: the product of axes and worlds, every point validated as if written out."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from andromeda_scale.errors import UserError
from andromeda_scale.planning.model_file import resolve_model, short, told_apart
from andromeda_scale.registry import COLLECTORS, STRATEGIES, load
from andromeda_scale.suite import faults
from andromeda_scale.suite.config import Auto, Case, Settings, StrategySpec, Strong, Suite
from andromeda_scale.suite.schema import Schema, shown
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.validation import Where, place, refuse_unknown, suggestion, validate
from andromeda_scale.suite.world import World

MAX_CASES = 10_000  # a sweep of more could not be launched, and its product may not fit memory

# These do not change what a repeat does, or are lists already.
_NO_AXES = (
    "question",
    "axes",
    "world",
    "limits",
    "measure.repeats",
    "measure.precision",
    "measure.max_repeats",
    "slurm",
)
AUTO = "auto"  # for a strategy: every one there is
# The key that the short form `model: NAME` or `strategy: NAME` stands for.
_SHORT_FORMS = {"model": "base", "strategy": "name"}


@dataclass(frozen=True)
class Point:
    """One case of the product, and why it cannot exist (None: it can)."""

    case: Case
    skip: str | None = None


def expand(suite: Suite, where: Where) -> list[Point]:
    """Every point of axes x worlds in the order written, the last axis fastest, world last.

    `where` says in errors where a value was written. Raises UserError for a value no case can have.
    """
    axes = axes_of(suite, where)
    num_points = math.prod(map(len, axes.values())) * len(suite.world)
    if num_points > MAX_CASES:
        raise UserError(
            f"axes: span {num_points} cases, more than {MAX_CASES} ({place(where, 'axes')}); "
            "shorten an axis"
        )
    base = suite.model_dump(mode="json", exclude_unset=True, exclude={"axes", "env"})
    base["env"] = {k: v for k, v in suite.env.items() if isinstance(v, str)}
    if "strategy" in base:
        base["strategy"] = {"name": suite.strategy.name, **suite.strategy.options}
    points = list(_points(base, axes, suite.world, where))
    names = told_apart([(point.case.model_name, point.case.model) for point in points])
    return [
        replace(point, case=point.case.model_copy(update={"model_name": name}))
        for point, name in zip(points, names, strict=True)
    ]


def axes_of(suite: Suite, where: Where) -> dict[str, tuple[Any, ...]]:
    """Every axis but world: those under `axes`, and each variable of `env` that is a list."""
    axes = dict(suite.axes)
    axes |= {f"env.{name}": v for name, v in suite.env.items() if not isinstance(v, str)}
    for key in axes:
        if any(key == no or key.startswith(f"{no}.") for no in _NO_AXES):
            remedy = (
                "list the values under world itself"
                if key == "world"
                else f"set {key} once, outside axes"
            )
            raise UserError(
                f"axes.{key}: is no axis, for it makes no other case "
                f"({place(where, f'axes.{key}')}); {remedy}"
            )
    return axes


def unknown_collectors(suite: Suite, where: Where) -> tuple[str, ...]:
    """What is asked for and nobody can collect; the rest goes on without it."""
    asked = [*suite.collect, *itertools.chain.from_iterable(suite.axes.get("collect", ()))]
    unknown = dict.fromkeys(name for name in asked if name not in COLLECTORS)
    return tuple(
        f"collect: {shown(name)} is no collector ({place(where, 'collect')}): unavailable; "
        f"{suggestion(str(name), [*COLLECTORS])}"
        for name in unknown
    )


def _points(
    base: dict[str, Any], axes: dict[str, tuple[Any, ...]], worlds: tuple[World, ...], where: Where
) -> Iterator[Point]:
    for values in itertools.product(*axes.values()):
        raw = copy.deepcopy(base)
        # A parent goes first: an axis over model must not undo one over model.num_layers.
        for key, value in sorted(zip(axes, values, strict=True), key=lambda kv: kv[0].count(".")):
            set_key(raw, key, value)
        at = ", ".join(f"{key}={short(v)}" for key, v in zip(axes, values, strict=True))
        here = partial(_at_point, where, at)
        point = validate(Suite, raw, here)
        name, model = resolve_model(raw["model"], here)
        strategies = _strategies(point, here)
        _refuse_search(point, here)
        _refuse_share(point, here)
        settings = {key: getattr(point, key) for key in Settings.model_fields}
        settings["collect"] = tuple(name for name in point.collect if name in COLLECTORS)
        for strategy, world in itertools.product(strategies, worlds):
            train, skip = _train_at(point, world)
            case = Case(
                **(settings | {"train": train}),
                model_name=name,
                model=model,
                strategy=strategy,
                world=world,
                regime="strong" if isinstance(point.scaling, Strong) else "weak",
                env={k: v for k, v in point.env.items() if isinstance(v, str)},
                auto=_auto(point),
            )
            skip = skip or strategy_skip(case) or faults.world_skip(case.faults, world)
            if case.auto is None:  # otherwise its size is not known yet
                skip = skip or faults.batch_skip(case.faults, case.train.micro_batch_size)
            yield Point(case, skip)


def _at_point(where: Where, at: str, key: str) -> str:
    return f"{place(where, key)}, at {at}" if at else place(where, key)


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Write `value` at a dotted key of nested mappings, in place.

    `model: NAME` becomes `{base: NAME}` and `strategy: NAME` `{name: NAME}` to hold a key below.
    """
    *parents, last = key.split(".")
    at = raw
    for depth, parent in enumerate(parents):
        inner = at.get(parent)
        if isinstance(inner, str) and depth == 0 and parent in _SHORT_FORMS:
            inner = {_SHORT_FORMS[parent]: inner}
        elif inner is None or (parent == "scaling" and inner == "weak"):
            inner = {}
        if not isinstance(inner, dict):
            raise UserError(f"{key}: {parent} is {short(inner)}, which holds no keys; set {parent}")
        at[parent] = at = dict(inner)
    at[last] = value


def _strategies(suite: Suite, where: Where) -> list[StrategySpec]:
    """The strategy with its options checked; `auto` is every one there is, as it comes."""
    name, given = suite.strategy.name, suite.strategy.options
    if name == AUTO:
        if given:
            raise UserError(
                f"strategy.{next(iter(given))}: auto takes every strategy as it comes "
                f"({place(where, 'strategy')}); remove it, or list strategies under axes.strategy"
            )
        return [StrategySpec(name=known) for known in STRATEGIES]
    refuse_unknown("strategy", name, "strategy", where, also=(AUTO,))
    options_class: type[Schema] = load("strategy", name).Options
    options = validate(options_class, given, where, prefix="strategy")
    given = options.model_dump(mode="json", exclude_defaults=True)
    return [StrategySpec(name=name, options=given)]


def _auto(suite: Suite) -> Auto | None:
    """How the micro batch is to be found; None: it is given."""
    size = suite.train.micro_batch_size
    return size if isinstance(size, str) else None


def _refuse_search(suite: Suite, where: Where) -> None:
    """Raise UserError where a micro batch that is to be found has nothing to find."""
    if (auto := _auto(suite)) is None:
        return
    problem = None
    if isinstance(suite.scaling, Strong) and suite.scaling.strong.shrink == "micro_batch":
        problem = "scaling.strong.shrink: micro_batch says it already; use shrink: accumulation"
    elif isinstance(suite.scaling, Strong) and auto == "auto_worlds":
        problem = "strong scaling compares worlds with any; use auto"
    elif (changed := faults.changes_memory(suite.faults)) is not None:
        problem = f"faults[{changed}] changes what fits on one rank; give a number"
    if problem:
        wrong, _, remedy = problem.partition("; ")
        at = place(where, "train.micro_batch_size")
        raise UserError(f"train.micro_batch_size: {auto}, and {wrong} ({at}); {remedy}")


def _refuse_share(suite: Suite, where: Where) -> None:
    """Raise UserError where a suite gives what strong scaling finds."""
    if not isinstance(suite.scaling, Strong) or _auto(suite):
        return
    key = _found_by(suite.scaling)
    if key in suite.train.model_fields_set:
        raise UserError(
            f"train.{key}: {getattr(suite.train, key)}, and scaling.strong finds it from "
            f"global_batch_size ({place(where, f'train.{key}')}); remove it"
        )


def _found_by(scaling: Strong) -> str:
    """What strong scaling shrinks as ranks are added."""
    return "grad_accum" if scaling.strong.shrink == "accumulation" else "micro_batch_size"


def _train_at(suite: Suite, world: World) -> tuple[Train, str | None]:
    """What one rank does at this world, and why it cannot."""
    asked = suite.train.model_dump()
    if _auto(suite):
        asked["micro_batch_size"] = 1  # until a machine is known
    train = Train.model_validate(asked)
    if not isinstance(suite.scaling, Strong):
        return train, None
    strong = suite.scaling.strong
    shrinks = _found_by(suite.scaling)
    keeps = "micro_batch_size" if strong.shrink == "accumulation" else "grad_accum"
    unit = getattr(train, keeps) * world.size
    share, rest = divmod(strong.global_batch_size, unit)
    skip = (
        f"global batch {strong.global_batch_size} does not divide into {keeps} "
        f"{getattr(train, keeps)} x {world.size} ranks"
        if rest
        else None
    )
    return train.model_copy(update={shrinks: max(1, share)}), skip


def strategy_skip(case: Case) -> str | None:
    """Why the strategy cannot run at the case's world, on any machine."""
    if case.world.size > 1 and not load("strategy", case.strategy.name).distributed:
        return f"{case.strategy.name} runs on one rank only"
    return None

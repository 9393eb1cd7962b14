"""What is there, for `list`: models, suites, strategies, collectors, metrics. No torch."""

from __future__ import annotations

import inspect
from typing import Any

from andromeda_scale.cost.model import num_parameters
from andromeda_scale.metrics import METRICS
from andromeda_scale.planning.model_file import resolve_model
from andromeda_scale.registry import COLLECTORS, STRATEGIES, load, model_config
from andromeda_scale.suite import resources, safe_yaml


def entries(kind: str) -> list[tuple[str, str]]:
    """(name, what it is) of everything of one kind."""
    match kind:
        case "models":
            return _models()
        case "suites":
            return _suites()
        case "strategies":
            return [(name, _strategy(name)) for name in STRATEGIES]
        case "collectors":
            return [(name, _first_line(load("collector", name))) for name in COLLECTORS]
        case _:
            return [(name, f"[{m.unit}] {m.meaning}") for name, m in METRICS.items()]


def _models() -> list[tuple[str, str]]:
    rows = []
    for name in resources.names("models"):
        _, model = resolve_model(name, name)
        family, shape = model["family"], model_config(model).shape()
        if shape is None:
            rows.append((name, family))
            continue
        size = num_parameters(shape)
        count = f"{size / 1e9:.3f} B" if size >= 1e8 else f"{size / 1e6:.3f} M"
        text = f"{family}, {count} parameters, width {shape.d_model}, "
        rows.append((name, f"{text}{shape.num_layers} blocks, vocabulary {shape.vocab_size}"))
    forms = {"FOLDER/config.json": "huggingface", "MODULE:CALLABLE": "custom"}
    described = {form: _first_line(load("model family", name)) for form, name in forms.items()}
    return [*rows, *described.items()]


def _suites() -> list[tuple[str, str]]:
    names = resources.names("suites")
    return [(n, safe_yaml.read(resources.find("suites", n))[0]["question"]) for n in names]


def _strategy(name: str) -> str:
    strategy = load("strategy", name)
    fields = strategy.Options.model_fields.items()
    options = ", ".join(f"{key}={field.default!r}" for key, field in fields)
    needs = ", ".join(strategy.requires)
    notes = [f"options: {options}" if options else "", f"needs {needs}" if needs else ""]
    return "; ".join(part for part in (_first_line(strategy), *notes) if part)


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0].rstrip(".")

"""What the installed transformers knows, read from its source: importing it would import torch.

Every function answers None where transformers is not installed or keeps its tables elsewhere: the
ranks then find out.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_SHARED = ("configuration_utils.py", "modeling_rope_utils.py")  # what configurations inherit
_NEAR = 0.8  # difflib's ratio: hidden_sise to hidden_size is 0.91


@cache
def model_types() -> tuple[dict[str, str], dict[str, str]] | None:
    """Model type -> class: of causal language models, and of all."""
    if (models := _models()) is None:
        return None
    try:
        causal = _table(models / "auto" / "modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
        known = causal | _table(models / "auto" / "modeling_auto.py", "MODEL_MAPPING_NAMES")
    except (OSError, ValueError, SyntaxError, AttributeError, IndexError):
        return None
    return (causal, known) if causal else None


def unread(config: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Keys of a config.json that no source of its model reads, each with the key it nearly is.

    Published files hold many such keys, of older releases and of other programs, so that one alone
    is no mistake; one that nearly is a key which the file lacks is. Dropout is always off.
    """
    if (found := _words(str(config["model_type"]))) is None:
        return None
    words, fields = found
    keys = [key for key in config if key not in words and "drop" not in key and key[:1] != "_"]
    lacking = sorted(fields - config.keys())
    near = (difflib.get_close_matches(key, lacking, n=1, cutoff=_NEAR) for key in keys)
    return {key: next(iter(close), None) for key, close in zip(keys, near, strict=True)}


@cache
def _words(kind: str) -> tuple[set[str], set[str]] | None:
    """Every word in the sources of a model type, and the fields of its configurations."""
    if (models := _models()) is None:
        return None
    try:
        modules = _table(models / "auto" / "auto_mappings.py", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    except (OSError, ValueError, SyntaxError, AttributeError, IndexError):
        modules = {}
    folder = models / modules.get(kind, kind.replace("-", "_"))
    configurations = list(folder.glob("configuration_*.py"))
    sources = [*configurations, *folder.glob("modeling_*.py")]
    sources += [models.parent / name for name in _SHARED]
    try:
        words = {word for source in sources for word in re.findall(r"\w+", _text(source))}
        fields = {
            field for one in configurations for field in re.findall(r"(?m)^    (\w+): ", _text(one))
        }
    except (OSError, ValueError):
        return None
    return (words, fields) if fields else None


def _models() -> Path | None:
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "models"


def _text(source: Path) -> str:
    return source.read_text(encoding="utf-8")


def _table(source: Path, table: str) -> dict[str, str]:
    """The pairs in `table = OrderedDict([("llama", "LlamaForCausalLM"), ...])`.

    AttributeError where a newer transformers writes it otherwise: read, never run.
    """
    for node in ast.parse(_text(source)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table:
            # Raised, see above.
            pairs = ast.literal_eval(node.value.args[0])  # type: ignore[attr-defined]
            return dict(pairs)
    return {}

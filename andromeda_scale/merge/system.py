"""What a repeat ran on and with, from its nodes' environment lines."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from andromeda_scale.contracts.records import RepeatRecord
from andromeda_scale.hardware import distortion
from andromeda_scale.hardware.environment import fingerprint
from andromeda_scale.merge.ranks import RankTable


@dataclass
class System:
    """Empty strings where no node said it."""

    device_name: str = ""
    software: str = ""  # versions and hash of the code, for people and for comparing rows
    fingerprint: str = ""  # canonical JSON: launches are pooled only where it is equal
    problems: list[str] = field(default_factory=list)

    def columns(self) -> dict[str, str]:
        return {
            "device_name": self.device_name,
            "software": self.software,
            "fingerprint": self.fingerprint,
        }


def read_system(record: RepeatRecord, table: RankTable) -> System:
    """Read every node's environment; nodes that differ are named, and make one fingerprint."""
    environments = [node.get("environment") for node in record.nodes]
    known = [found for found in environments if isinstance(found, dict) and found]
    if not known:
        silent = "no node says its environment: unlike systems cannot be told"
        return System(problems=[silent] if record.ranks else [])  # without a rank: nothing to tell
    prints: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for environment in known:
        try:
            found = fingerprint(environment)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"a node's environment cannot be read: {error!r}")
            continue
        prints[json.dumps(found, sort_keys=True)] = found
    if len(prints) > 1:
        problems.append(f"its nodes differ in {', '.join(unlike(list(prints)))}")
    accelerators = [name for name in table.columns["device"] if name not in ("", "cpu")]
    processors = [str(environment.get("cpu_model") or "") for environment in known]
    return System(
        device_name=_join(accelerators or processors),
        software=_join([_software(environment) for environment in known]),
        fingerprint="\n".join(sorted(prints)),
        problems=problems,
    )


def distortions(record: RepeatRecord, device: str, asked: Collection[str]) -> tuple[str, ...]:
    """What variables that the case did not ask for did to the numbers, on any node."""
    lines: dict[str, None] = {}
    for node in record.nodes:
        environment = node.get("environment")
        variables = environment.get("variables") if isinstance(environment, dict) else None
        if isinstance(variables, dict):
            known = {name: value for name, value in variables.items() if isinstance(value, str)}
            lines |= dict.fromkeys(distortion.distortions(known, device, asked))
    return tuple(lines)


def unlike(fingerprints: list[str]) -> list[str]:
    """Dotted keys in which fingerprints (canonical JSON, a line a node) differ."""
    flat = [
        flatten(json.loads(line)) for text in fingerprints for line in text.splitlines() if line
    ]
    names = dict.fromkeys(name for found in flat for name in found)
    return [name for name in names if len({repr(found.get(name)) for found in flat}) > 1]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _software(environment: dict[str, Any]) -> str:
    versions = environment.get("versions")
    parts = versions.items() if isinstance(versions, dict) else ()
    texts = [f"{name} {found}" for name, found in parts if found]
    if environment.get("source_sha256"):
        texts.append(f"source {environment['source_sha256']}")
    return ", ".join(texts)


def _join(names: list[str]) -> str:
    return " | ".join(dict.fromkeys(name for name in names if name))

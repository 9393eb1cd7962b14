"""Cases whose communication is profiled, and what a rank's lines say of it."""

from __future__ import annotations

from typing import Any

from group import Line, end, phase_values

CLASSES = ("compute_s", "exposed_wait_s", "exposed_transfer_s", "data_s", "host_s")
PROFILED = {"collect": ("communication",), "measure": {"steps": 1, "profile_steps": 4}}


def communication(lines: list[Line]) -> dict[str, Any]:
    assert end(lines)["status"] == "ok", end(lines)
    found: dict[str, Any] = phase_values(lines, "profile")["communication"]
    return found

"""Commands that train nothing, and the package itself, import no torch: seconds of every start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# In a process of its own: this one has torch already.
_PROBE = """
import sys
from andromeda_scale.cli import app
from typer.testing import CliRunner
for command in sys.argv[1:]:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0 and done.stdout, (command, done.output, done.exception)
    heavy = {"torch", "deepspeed", "accelerate", "transformers"} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
_LIGHT = [
    "--help",
    "run --help",
    "plan quickstart",
    *(f"list {kind}" for kind in ("strategies", "models", "suites", "collectors", "metrics")),
    "schema",
    "report tests/replay/run",
    "report tests/replay/run --format md",
]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY,
    )  # fmt: skip


def test_importing_the_package_imports_no_torch() -> None:
    done = python(
        "import sys, andromeda_scale, andromeda_scale.launch.driver\n"
        "import andromeda_scale.commands.sweep\n"
        "assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_a_command_that_trains_nothing_imports_no_torch() -> None:
    done = python(_PROBE, *_LIGHT)
    assert done.returncode == 0, done.stderr


def test_the_probe_finds_torch_where_it_is() -> None:
    planted = _PROBE.replace("for command", "sys.modules['torch'] = sys\nfor command")
    assert "'--help', {'torch'}" in python(planted, "--help").stderr

"""What a file of settings may be, and what its numbers and texts mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.errors import UserError
from andromeda_scale.suite import safe_yaml

SUITE = "question: '?'\nmodel: andromeda-tiny\nworld: 1\ndata: {source: random}\n"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SUITE, encoding="utf-8")


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, (done.output, done.exception)
    (line,) = done.stderr.splitlines()
    return line


# The core schema of YAML 1.2.2, section 10.3.2; 0b11 and 1_000 are PyYAML's.
@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("0x10", 16), ("0o17", 15), ("-5", -5), ("+5", 5), ("1e-3", 1e-3),
     ("1.5e3", 1500.0), ("1e+5", 1e5), (".5", 0.5), ("5.", 5.0), ("0b11", 3),
     ("1:30", "1:30"), ("1:30.5", "1:30.5"),
     ("1_000", 1000), ("1.2.3", "1.2.3"), ("2:00:00", "2:00:00"), (".inf", float("inf"))],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = safe_yaml.parse(text, "x")
    assert found == value
    assert type(found) is type(value)


def test_what_is_dumped_is_read_alike() -> None:
    value = {"a": ["1e3", "1.5e3", "0o17", "010", "1:30", "off", 1e-5, 1e20, 10, True, None, "%"]}
    assert safe_yaml.parse(safe_yaml.dump(value), "x") == value


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (r'question: "\ud800"', "question"),
        (r'env: {FOO: "a\ud83d"}', "env.FOO"),
        (r'axes: {model: [a, "\udfff"]}', "axes.model[1]"),
    ],
)
def test_half_a_character_is_named_by_its_key(text: str, key: str) -> None:
    with pytest.raises(UserError, match=r"is half a character \(x\); write") as error:
        safe_yaml.parse(text, "x")
    assert str(error.value).startswith(f"{key}: \\ud")
    Path("x.json").write_text(json.dumps({"a": "\ud800"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"a: \\ud800 is half a character \(x\.json\)"):
        safe_yaml.read(Path("x.json"))


@pytest.mark.timeout(20)  # opening a pipe that nobody writes waits for ever
def test_a_pipe_is_refused_and_what_a_shell_opened_is_read() -> None:
    for name in ("f.yaml", "f.json", "f.npy"):
        os.mkfifo(name)
    said = "is a pipe, a socket or a device"
    assert f"f.yaml: {said}" in refused("plan", "f.yaml")
    assert f"f.yaml: {said}" in refused("plan", "s.yaml", "--set", "model=f.yaml")
    config = "strategy={name: zero3, config: f.json}"
    assert f"f.json: {said}" in refused("plan", "s.yaml", "--set", config)
    data = "data={source: files, files: f.npy}"
    assert f"f.npy {said}" in refused("plan", "s.yaml", "--set", data)
    read, write = os.pipe()
    os.write(write, SUITE.encode())
    os.close(write)
    assert safe_yaml.read(Path(f"/dev/fd/{read}"))[1] == SUITE
    os.close(read)


@pytest.mark.parametrize(
    "command",
    ["run s.yaml --run-dir LONG", "submit s.yaml --run-dir LONG", "report LONG", "run LONG.yaml",
     "run LONG", "plan s.yaml --set model=LONG.yaml", "plan s.yaml --set model=LONG", "init LONG",
     "compare LONG LONG", "resume LONG", "probe --run-dir LONG"],
)  # fmt: skip
def test_a_name_too_long_for_a_file_is_a_mistake_that_is_told(command: str) -> None:
    long = "a" * 300
    line = refused(*command.replace("LONG", long).split())
    assert long in line
    assert "File name too long" in line or "no shipped" in line


def test_a_model_file_that_is_none_names_key_and_place() -> None:
    Path("m.yaml").write_text("- 1\n", encoding="utf-8")
    line = refused("plan", "s.yaml", "--set", "model=m.yaml")
    assert line.startswith("andromeda-scale: model: ")
    assert line.endswith(
        "m.yaml: is not a mapping (--set model=m.yaml); write family and sizes as key: value"
    )


@pytest.mark.parametrize(("redirection", "why"), [(">&-", "closed"), (">/dev/full", "No space")])
def test_a_stdout_that_takes_nothing_is_said_in_one_line(redirection: str, why: str) -> None:
    command = f'"{sys.executable}" -m andromeda_scale.cli list strategies {redirection}'
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("andromeda-scale: stdout")
    assert why in line

"""What is known of a machine: stored whole, read whatever the file holds, copied into runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from merging import even_run
from test_run_dir import FINGERPRINT, make_plan

from andromeda_scale.hardware import calibration
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.merge import merge_run

HARDWARE = {"machine": "x86_64", "cpu_model": "some", "cpu_cores": 2, "gpus": "", "torch": "2.13"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_sections_are_replaced_one_by_one_and_nothing_else_is_left_behind(cache: Path) -> None:
    assert calibration.load(HARDWARE) == {}
    calibration.store(HARDWARE, "floors", {"cpu/2": {"blame_s": 0.01}})
    calibration.store(HARDWARE, "ceilings", {"a": 1})
    path = calibration.store(HARDWARE, "ceilings", {"b": 2})
    assert calibration.load(HARDWARE) == {
        "hardware": {name: HARDWARE[name] for name in calibration.HARDWARE},
        "floors": {"cpu/2": {"blame_s": 0.01}},
        "ceilings": {"b": 2},
    }
    assert [file for file in cache.rglob("*") if file.is_file()] == [path]


def test_other_hardware_has_another_file_and_other_software_the_same() -> None:
    calibration.store(HARDWARE, "ceilings", {"a": 1})
    assert calibration.load({**HARDWARE, "torch": "2.14"})["ceilings"] == {"a": 1}
    assert calibration.load({**HARDWARE, "cpu_cores": 4}) == {}


def test_a_relative_cache_home_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert calibration.directory() == Path.home() / ".cache/andromeda_scale/calibration"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (b'{"ceilings": {"a"', "is not a JSON file"),
        (b"\xff\xfe\x00", "is not a JSON file"),
        (b"[" * 10**5, "is not a JSON file"),
        (b"[1]", "holds no object"),
        (b'{"ceilings": [], "floors": {"cpu/2": {}}}', "ceilings: is no object"),
    ],
)
def test_a_damaged_file_is_a_note_of_the_run_and_a_store_mends_it(
    damage: bytes, says: str, tmp_path: Path
) -> None:
    path = calibration.store(HARDWARE, "floors", {"cpu/2": {"blame_s": 1.0}})
    path.write_bytes(damage)
    assert says in calibration.load(HARDWARE)["problem"]
    run, _ = even_run(tmp_path / "run", repeats=1)
    RunDir.open(run).calibrate(HARDWARE)
    problems = merge_run(run).problems
    assert any(says in problem and str(path) in problem for problem in problems)
    calibration.store(HARDWARE, "ceilings", {"a": 1})
    RunDir.open(run).calibrate(HARDWARE)
    assert not any(str(path) in problem for problem in merge_run(run).problems)
    assert calibration.load(HARDWARE)["ceilings"] == {"a": 1}


def test_a_file_that_may_not_be_read_is_a_note() -> None:
    path = calibration.path_of(HARDWARE)
    path.mkdir(parents=True)
    assert calibration.load(HARDWARE) == {"problem": f"{path}: cannot be read (Is a directory)"}


def test_a_new_run_holds_a_copy_and_a_resumed_one_what_is_newer(tmp_path: Path) -> None:
    def copy() -> dict[str, Any]:
        return json.loads((tmp_path / "run" / calibration.FILE).read_bytes())

    calibration.store(FINGERPRINT, "floors", {"cpu/2": {"blame_s": 0.1}})
    RunDir.create(tmp_path / "run", make_plan(), "", FINGERPRINT)
    assert copy()["floors"] == {"cpu/2": {"blame_s": 0.1}}
    calibration.store(FINGERPRINT, "ceilings", {"a": 1})
    RunDir.create(tmp_path / "run", make_plan(), "", FINGERPRINT)
    assert copy()["ceilings"] == {"a": 1}
    assert copy()["floors"] == {"cpu/2": {"blame_s": 0.1}}
    calibration.path_of(FINGERPRINT).unlink()
    RunDir.create(tmp_path / "run", make_plan(), "", FINGERPRINT)
    assert copy()["ceilings"] == {"a": 1}


def test_a_run_on_a_machine_never_calibrated_has_no_copy(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", make_plan(), "", FINGERPRINT)
    assert not (tmp_path / "run" / calibration.FILE).exists()

"""The run directory: what is kept, what is refused, what a kill may leave."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.errors import UserError
from andromeda_scale.launch import lock
from andromeda_scale.launch.disk import write_atomic
from andromeda_scale.launch.local_files import remove_stale
from andromeda_scale.launch.run_dir import FAILED, RunDir, fresh
from andromeda_scale.suite.config import Case, StrategySpec
from andromeda_scale.suite.world import World

FINGERPRINT = {"code": "abc", "torch": "2.13"}


def make_case(name: str) -> Case:
    return Case(model_name=name, model={}, strategy=StrategySpec(name="ddp"), world=World())


def make_plan(names: Sequence[str] = ("a", "b"), repeats: int = 1, reference: str = "") -> Plan:
    cases = [make_case(name) for name in names]
    planned = {case.case_id: case for case in cases}
    items = []
    reference_id = None
    if reference:
        other = make_case(reference)
        planned[other.case_id], reference_id = other, other.case_id
        items.append(PlannedRepeat(case_id=other.case_id, repeat=0, role="reference"))
    items += [
        PlannedRepeat(case_id=case.case_id, repeat=repeat, reference_id=reference_id)
        for repeat in range(repeats)
        for case in cases
    ]
    return Plan(suite_name="s", question="?", cases=planned, repeats=tuple(items))


def create(path: Path, plan: Plan | None = None, **options: bool) -> RunDir:
    return RunDir.create(path, plan or make_plan(), "question: '?'\n", FINGERPRINT, **options)


def finish(run: RunDir, item: PlannedRepeat, word: str, note: str = "") -> None:
    attempt = run.begin(item, 0)
    end = {"v": 1, "case_id": item.case_id, "repeat": item.repeat, "rank": 0, "kind": "end"}
    (attempt / "node-0.jsonl").write_text(note or json.dumps({**end, "status": word}))
    run.finish(item, attempt, {"status": word})


def test_every_repeat_is_pending_in_a_new_run(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert [word for _, word in run.statuses()] == ["pending", "pending"]
    assert run.todo() == list(run.plan.repeats)


def test_a_resume_keeps_what_ended_and_runs_the_interrupted_and_pending(tmp_path: Path) -> None:
    run = create(tmp_path / "run", make_plan(["ok", "crashed", "interrupted", "skipped", "new"]))
    for item, word in zip(
        run.plan.repeats, ["ok", "crashed", "interrupted", "skipped"], strict=False
    ):
        finish(run, item, word)
    assert [item.case_id.split("_")[0] for item in run.todo()] == ["interrupted", "skipped", "new"]


@pytest.mark.parametrize("word", sorted(FAILED))
def test_only_failed_selects_every_failure_and_nothing_else(tmp_path: Path, word: str) -> None:
    run = create(tmp_path / "run", make_plan(["ok", "bad", "pending", "skipped"]))
    for item, status in zip(run.plan.repeats, ["ok", word, None, "skipped"], strict=True):
        if status:
            finish(run, item, status)
    assert [item.case_id.split("_")[0] for item in run.todo(only_failed=True)] == ["bad"]


def test_a_reference_is_launched_only_for_something_that_needs_it(tmp_path: Path) -> None:
    run = create(tmp_path / "run", make_plan(["a"], reference="ref"))
    reference, item = run.plan.repeats
    assert run.todo() == [reference, item]
    assert run.todo(only_failed=True) == []
    finish(run, reference, "ok")
    assert run.todo() == [item]
    finish(run, item, "diverged")
    assert run.todo() == []
    assert run.todo(only_failed=True) == [item]
    finish(run, reference, "crashed")
    assert run.todo(only_failed=True) == [reference, item]


def test_references_lie_apart_from_cases(tmp_path: Path) -> None:
    run = create(tmp_path / "run", make_plan(["a"], reference="a"))
    reference, item = run.plan.repeats
    finish(run, reference, "ok", "reference")
    finish(run, item, "crashed", "case")
    assert (run.case_dir(reference) / "node-0.jsonl").read_text() == "reference"
    assert (run.case_dir(item) / "node-0.jsonl").read_text() == "case"


def test_another_attempt_replaces_the_whole_directory(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    item = run.plan.repeats[0]
    attempt = run.begin(item, 0)
    (attempt / "of-the-first").touch()
    run.finish(item, attempt, {"status": "crashed"})
    finish(run, item, "ok")
    assert {p.name for p in run.case_dir(item).iterdir()} == {"node-0.jsonl", "status.json"}
    assert [p.name for p in run.case_dir(item).parent.iterdir()] == ["0"]


def test_an_attempt_under_way_changes_nothing_that_was_finished(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    item = run.plan.repeats[0]
    finish(run, item, "crashed", "first")
    (run.begin(item, 1) / "node-0.jsonl").write_text("half")
    assert (run.case_dir(item) / "node-0.jsonl").read_text() == "first"
    run.recover()
    assert not (run.path / "running").exists()
    assert run.statuses()[0][1] == "crashed"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    item = run.plan.repeats[0]
    finish(run, item, "crashed", "first")
    place = run.case_dir(item)
    place.rename(place.with_name("0.old"))  # as `finish` does, then dies
    assert run.statuses()[0][1] == "pending"
    run.recover()
    assert run.statuses()[0][1] == "crashed"


def test_a_kill_after_the_second_rename_keeps_the_new_one(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    item = run.plan.repeats[0]
    finish(run, item, "ok", "new")
    old = run.case_dir(item).with_name("0.old")
    old.mkdir()
    (old / "status.json").write_text('{"status": "crashed"}')
    run.recover()
    assert not old.exists()
    assert run.statuses()[0][1] == "ok"


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"v": 1}', "\0\xff", "[" * 100_000),
        *(
            '{"status": ["ok"]}',
            '{"status": null}',
            '{"status": "done"}',
            '{"v": 2, "status": "ok"}',
        ),
    ],
)
def test_an_unreadable_status_is_not_finished(tmp_path: Path, content: str) -> None:
    run = create(tmp_path / "run")
    item = run.plan.repeats[0]
    finish(run, item, "ok")
    (run.case_dir(item) / "status.json").write_text(content)
    assert run.statuses()[0][1] == "interrupted"  # as a merge has it
    finish(run, item, "ok")
    assert run.statuses()[0][1] == "ok"


def test_a_write_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomic(file, "first")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(file, "second")
    assert file.read_text() == "first"


def test_a_run_is_taken_up_with_more_repeats(tmp_path: Path) -> None:
    run = create(tmp_path / "run", make_plan(repeats=1))
    finish(run, run.plan.repeats[0], "ok")
    again = create(tmp_path / "run", make_plan(repeats=2))
    assert len(again.todo()) == 3
    assert len(RunDir.open(tmp_path / "run").plan.repeats) == 4


def test_a_run_of_other_cases_is_refused_and_left_alone(tmp_path: Path) -> None:
    create(tmp_path / "run", make_plan(["a"]))
    before = (tmp_path / "run" / "plan.json").read_bytes()
    with pytest.raises(UserError, match=r"holds a run of other cases \(suite 's'\).*--run-dir"):
        create(tmp_path / "run", make_plan(["z"]))
    assert (tmp_path / "run" / "plan.json").read_bytes() == before


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_as_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used as the run directory"):
        create(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be used as the run directory"):
        create(tmp_path / "file" / "below")


@pytest.mark.usefixtures("unprivileged")
def test_a_directory_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        create(tmp_path)


def test_a_missing_or_damaged_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        RunDir.open(tmp_path / "nowhere")
    create(tmp_path / "run")
    for damage in ("", "{", '{"cases": {}}'):
        (tmp_path / "run" / "plan.json").write_text(damage)
        with pytest.raises(UserError, match=r"plan\.json: .*start a new run"):
            RunDir.open(tmp_path / "run")


def test_another_fingerprint_is_refused_by_its_keys_unless_mixing_is_allowed(
    tmp_path: Path,
) -> None:
    create(tmp_path / "run")
    other = {**FINGERPRINT, "torch": "2.14", "gpu": "H100"}
    with pytest.raises(UserError, match=r"gpu: None, now 'H100'; torch: '2\.13', now '2\.14'"):
        RunDir.create(tmp_path / "run", make_plan(), "", other)
    mixed = RunDir.create(tmp_path / "run", make_plan(), "", other, allow_mixed=True)
    assert json.loads((mixed.path / "fingerprint.json").read_text()) == FINGERPRINT


@pytest.mark.parametrize("at", range(1, 5))
def test_a_driver_killed_while_it_makes_its_run_leaves_one_to_take_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed at any of its writes, which leaves the temporary file."""
    writes = []

    def killed(self: Path, target: Path) -> None:
        writes.append(target)
        if len(writes) == at:
            raise KeyboardInterrupt
        os.rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path / "run")
    run = create(tmp_path / "run")
    run.recover()
    left = {path.name for path in run.path.iterdir()}
    assert left == {"plan.json", "suite.yaml", "fingerprint.json", "lock"}


def test_a_second_driver_is_refused_and_named_until_the_first_ends(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    with run.lock():
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"), run.lock():
            pass
        with pytest.raises(UserError, match="in use"):
            create(tmp_path / "run")
    with run.lock():
        pass


def test_where_files_cannot_be_locked_the_last_driver_is_taken_to_hold_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path / "run")
    assert (lock.is_held(run.path), run.holder()) == (False, None)

    def unable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    assert (lock.is_held(run.path), run.holder()) == (True, (os.getpid(), socket.gethostname()))
    with pytest.raises(UserError, match="its file system cannot lock files"), run.lock():
        pass
    (run.path / "lock").unlink()
    assert (lock.is_held(run.path), run.holder()) == (False, None)


def test_a_fresh_directory_is_one_that_is_not_there(tmp_path: Path) -> None:
    assert re.fullmatch(r"x-\d{8}-\d{6}", fresh("x", tmp_path).name)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "strftime", lambda _: "now")
        for name in ("x-now", "x-now-2", "x-now-3"):
            assert fresh("x", tmp_path) == tmp_path / name
            (tmp_path / name).mkdir()


def test_a_failed_reference_is_tried_again_with_what_still_needs_it(tmp_path: Path) -> None:
    run = create(tmp_path / "run", make_plan(["a", "b"], reference="ref"))
    reference, first, second = run.plan.repeats
    finish(run, reference, "timeout")
    finish(run, first, "ok")
    assert run.todo() == [reference, second]
    # What was measured without its reference is not verified, so it counts as failed too.
    assert run.todo(only_failed=True) == [reference, first]
    finish(run, reference, "ok")
    assert run.todo(only_failed=True) == []


def test_parity_launches_are_made_again_for_what_needs_them(tmp_path: Path) -> None:
    cases = [make_case(name) for name in ("ref", "shallow", "a")]
    ref, shallow, a = (case.case_id for case in cases)
    items = (
        PlannedRepeat(case_id=ref, repeat=0, role="reference"),
        PlannedRepeat(case_id=shallow, repeat=0, role="parity", reference_id=ref),
        PlannedRepeat(case_id=a, repeat=0, parity_id=shallow),
        PlannedRepeat(case_id=a, repeat=1, parity_id=shallow),
    )
    plan = Plan(suite_name="s", question="?", cases={c.case_id: c for c in cases}, repeats=items)
    run = create(tmp_path / "run", plan)
    reference, launch, first, second = run.plan.repeats
    assert run.case_dir(launch) == run.path / "parity" / shallow / "0"
    assert run.todo() == [reference, launch, first, second]
    assert run.todo(only_failed=True) == []
    finish(run, reference, "ok")
    finish(run, launch, "crashed")
    finish(run, first, "ok")
    assert run.todo() == [launch, second]  # the second is still to be checked
    assert run.todo(only_failed=True) == [launch]  # which decides of the first without it
    finish(run, reference, "oom")
    finish(run, launch, "unavailable")
    assert run.todo(only_failed=True) == [reference, launch]
    finish(run, launch, "diverged")
    finish(run, first, "diverged")
    assert run.todo(only_failed=True) == [reference, launch, first]
    finish(run, reference, "ok")
    finish(run, launch, "ok")
    finish(run, second, "ok")
    assert run.todo() == []


def test_fewer_repeats_keep_the_launches_that_ended_and_say_so(tmp_path: Path) -> None:
    run = create(tmp_path / "run", make_plan(["a"], repeats=4))
    for item in run.plan.repeats[:3]:
        finish(run, item, "ok")
    again = create(tmp_path / "run", make_plan(["a"], repeats=1))
    assert [item.repeat for item in again.plan.repeats] == [0, 1, 2]  # 3 had not ended
    assert again.todo() == []
    assert again.plan.notes == (
        "2 launches of an earlier plan with more repeats are kept and counted",
    )
    assert RunDir.open(run.path).plan == again.plan


@pytest.mark.parametrize("damage", ["", "{", "[]", "\x00"])
def test_a_damaged_fingerprint_is_named(tmp_path: Path, damage: str) -> None:
    create(tmp_path / "run")
    (tmp_path / "run" / "fingerprint.json").write_text(damage)
    with pytest.raises(UserError, match=r"fingerprint\.json: is damaged .*start a new run"):
        create(tmp_path / "run")


def test_a_full_disk_is_said_with_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    message = r"run: disk full \(No space left on device\); .*`andromeda-scale resume .*run`"
    with pytest.raises(UserError, match=message):
        create(tmp_path / "run")


def test_directories_of_killed_agents_are_removed_and_those_of_live_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = [f"andromeda_scale-{gone.pid}-a", f"andromeda_scale-{os.getpid()}-b", "other-1-c"]
    for name in names:
        (tmp_path / name).mkdir()
    remove_stale()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])

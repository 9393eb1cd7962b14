"""A run directory with searches: how they go on, end and fail, and what is left to measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planning import AUTO, plan

from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.contracts.records import RecordWriter
from andromeda_scale.launch import searching
from andromeda_scale.launch.lost import close_lost
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.merge import merge_run
from andromeda_scale.report.scaling import scaling_table


def run_of(path: Path, **keys: Any) -> RunDir:
    return RunDir.create(path, plan(train=AUTO, world=[2], parity="off", **keys), "", {"code": "x"})


def tried(run: RunDir, item: PlannedRepeat, **words: str) -> None:
    for size, word in words.items():
        trial = item.model_copy(update={"role": "trial", "repeat": int(size[1:])})
        run.finish(trial, run.begin(trial, 0), {"status": word, "cause": f"cause {word}"})


def test_a_search_goes_on_after_the_trials_that_ended(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (item,) = run.todo()
    case = run.plan.cases[item.case_id]
    case = case.model_copy(update={"train": case.train.model_copy(update={"micro_batch_size": 4})})

    def at() -> int | None:
        trial = searching.next_trial(run, item, case)
        return None if trial is None else trial.repeat

    assert at() == 4
    tried(run, item, _4="oom")
    assert at() == 3
    tried(run, item, _3="interrupted")
    assert at() == 3
    tried(run, item, _3="timeout", _1="ok")
    assert at() == 2
    tried(run, item, _2="ok")
    assert at() is None
    assert searching.outcome(run, item, case).status == "ok"
    said = searching.summary(run, item, case)
    assert said["found"] == 2
    assert [(one["size"], one["status"]) for one in said["tried"]] == [
        (1, "ok"), (2, "ok"), (3, "timeout"), (4, "oom")]  # fmt: skip


def test_a_run_of_which_searches_have_ended_is_taken_up_by_the_same_suite(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (item,) = run.todo()
    tried = [{"size": 3, "status": "ok"}, {"size": 4, "status": "oom"}]
    status = {"status": "ok", "found": 3, "margin": 0.1, "tried": tried}
    run.finish(item, run.begin(item, 0), status)
    assert run.todo() == []  # what is measured waits for its size
    left = run.after_searches()
    assert {run.plan.cases[i.case_id].train.micro_batch_size for i in left} == {3}
    assert run.after_searches() == []
    again = run_of(tmp_path / "run")  # neither refused nor searched again
    assert again.plan.repeats == run.plan.repeats
    assert RunDir.open(tmp_path / "run").plan.cases == again.plan.cases
    results = merge_run(tmp_path / "run")
    (row,) = results.cases.to_dict("records")
    assert (row["micro_batch_size"], row["micro_batch_found"]) == (3, 3)
    assert row["micro_batch_tried"] == "3 ok, 4 oom"
    table = scaling_table(results)
    assert "3 auto" in table.to_markdown()


def test_a_search_without_a_size_leaves_a_skipped_row(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (item,) = run.todo()
    case = run.plan.cases[item.case_id]
    tried(run, item, _1="oom")
    verdict = searching.outcome(run, item, case)
    cause = "not enough memory for micro_batch_size 1: cause oom"
    assert (verdict.status, verdict.cause) == ("oom", cause)
    run.finish(item, run.begin(item, 0), {"status": "oom", "cause": cause, "found": None})
    (left, *_) = run.after_searches()
    assert left.skip == f"its search for a micro batch is oom: {cause}"
    assert run.todo(only_failed=True) == [item]  # asked again, it may be found


def test_a_failed_search_that_is_asked_for_again_tries_again(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (item,) = run.todo()
    case = run.plan.cases[item.case_id]
    tried(run, item, _1="crashed")
    for word, left in (("interrupted", ["1"]), ("crashed", [])):
        run.finish(item, run.begin(item, 0), {"status": word, "found": None})
        searching.begin(run, item)
        trials = [path.name for path in run.path.glob("searches/*/*") if path.name != "0"]
        assert trials == left
    trial = searching.next_trial(run, item, case)
    assert trial is not None
    searching.begin(run, item)  # nothing is there


def test_a_damaged_word_on_a_search_harms_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (item,) = run.todo()
    run.finish(item, run.begin(item, 0), {"status": "ok", "found": 3})
    run.after_searches()
    for text in ("{", "[]", '{"status": "ok", "found": true, "tried": 3}'):
        (run.case_dir(item) / "status.json").write_text(text)
        (row,) = merge_run(run.path).cases.to_dict("records")
        assert row["micro_batch_size"] == 3
        scaling_table(merge_run(run.path))
        assert run.holds(plan(train=AUTO, world=[2], parity="off"))
    assert run_of(tmp_path / "run").plan.machine is not None


def test_an_agent_killed_in_a_trial_costs_that_size(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (item,) = run.todo()
    trial = item.model_copy(update={"role": "trial", "repeat": 7})
    run.begin(trial, 0)
    assert close_lost(run, item, "the agent was killed by SIGKILL") is None
    assert (run.status(trial) or {})["status"] == "node_failed"
    assert run.status(item) is None


def test_the_next_size_is_read_off_the_memory_that_all_ranks_of_a_trial_told(
    tmp_path: Path,
) -> None:
    run = run_of(tmp_path / "run")
    (item,) = run.todo()
    case = run.plan.cases[item.case_id]
    case = case.model_copy(update={"train": case.train.model_copy(update={"micro_batch_size": 40})})

    def trial(size: int, *shares: float | None) -> None:
        one = item.model_copy(update={"role": "trial", "repeat": size})
        attempt = run.begin(one, 0)
        for rank, share in enumerate(shares):
            record = RecordWriter(attempt / f"node-{rank}.jsonl", one.case_id, size, rank)
            room = {} if share is None else {"used_bytes": round(1000 * share)}
            room |= {"capacity_bytes": 1000}
            fits = share is None or share <= 0.9
            if fits:
                record.write("phase", phase="warmup", start_s=0.0, end_s=1.0, values={"room": room})
                record.write("end", status="ok")
            else:
                record.write("end", status="oom", cause="used", detail=room)
            record.close()
        word = "ok" if all(share is None or share <= 0.9 for share in shares) else "oom"
        run.finish(one, attempt, {"status": word, "cause": None})

    def at() -> int | None:
        found = searching.next_trial(run, item, case)
        return None if found is None else found.repeat

    trial(40, 0.4, 0.5)
    assert at() == 72  # by the fuller rank
    trial(72, 0.7, 0.95)
    assert at() == 68  # between 40 and 72
    trial(68, 0.7, None)  # one of its ranks tells nothing
    assert at() == 69  # 0.9 is below 72 by the same line, and 68 ran

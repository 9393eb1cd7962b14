"""Time left: from launches of the same role and world, or not at all."""

from __future__ import annotations

from collections import Counter
from typing import Any

from run_files import make_case

from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.launch.progress import TimeLeft
from andromeda_scale.launch.time_left import estimate, kind

REFERENCE, ONE, TWO = "reference w1", "measure w1", "measure w2"


def end(of_kind: str, seconds: float, status: str = "ok") -> dict[str, Any]:
    return {"event": "end", "kind": of_kind, "seconds": seconds, "status": status}


def test_a_kind_is_a_role_at_a_world() -> None:
    case = make_case("ddp", 2)
    assert kind(PlannedRepeat(case_id=case.case_id, repeat=1), case) == TWO


def test_only_kinds_of_which_one_ended_are_estimated() -> None:
    left = estimate(Counter({ONE: 3, TWO: 2}), {REFERENCE: [0.5], ONE: [10.0, 12.0, 90.0]})
    assert (left.seconds, left.told, left.total) == (36.0, 3, 5)
    assert left.of_all == " for 3 of 5 launches, the others are not estimated yet"
    assert estimate(Counter({ONE: 1}), {ONE: [1.0]}).of_all == ""
    assert estimate(Counter({ONE: 1, TWO: 2}), {ONE: [1.0]}).told == 0  # few of all


def test_a_sweep_says_nothing_of_cases_before_one_has_ended() -> None:
    left = TimeLeft()
    left.take({"event": "sweep", "total": 5, "done": 0, "left": {REFERENCE: 1, ONE: 2, TWO: 2}})
    assert str(left) == "time left not estimated yet"
    left.take(end(REFERENCE, 0.5))
    left.take(end(ONE, 3.0, "crashed"))
    assert str(left) == "time left not estimated yet"
    left.take(end(TWO, 70.0))
    assert str(left) == "1:10 left for 1 of 2 launches, the others are not estimated yet"
    left.take(end(ONE, 20.0))
    assert str(left) == "1:10 left"
    left.take(end(TWO, 80.0))
    assert (str(left), left.done) == ("0:00 left", 5)

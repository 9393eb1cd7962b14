"""The reader uses every sound line, names every other, and never raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andromeda_scale.contracts.records import RecordWriter, read_repeat, read_status

HEAD = {"v": 1, "case_id": "c", "repeat": 0}
MEASURE = {"kind": "phase", "phase": "measure", "values": {"step_time": {"step_ns": [1]}}}


def _line(**fields: Any) -> bytes:
    return json.dumps(HEAD | fields).encode() + b"\n"


def _start(rank: Any) -> bytes:
    return _line(kind="start", rank=rank, host="h")


def _write(directory: Path, *lines: bytes, node: int = 0) -> None:
    (directory / f"node-{node}.jsonl").write_bytes(b"".join(lines))


def test_what_the_writer_wrote_is_read_back(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "node-0.jsonl", "c", 0, 1)
    writer.write("start", host="h")
    writer.write("describe", values={"wrapper": "FSDP"})
    writer.write("phase", phase="measure", values={"step_time": {"step_ns": [5, 6]}})
    writer.write("end", status="ok")
    writer.close()
    found = read_repeat(tmp_path, "c", 0, 2)
    assert found.problems == []
    assert list(found.ranks) == [1]
    rank = found.ranks[1]
    assert rank.start["host"] == "h"
    assert rank.describe == {"wrapper": "FSDP"}
    assert rank.values("measure", "step_time") == {"step_ns": [5, 6]}
    assert rank.values("profile", "communication") == {}
    assert rank.end is not None
    assert rank.end["status"] == "ok"


def test_a_truncated_last_line_is_named_and_the_rest_used(tmp_path: Path) -> None:
    whole = _line(kind="end", rank=0, status="ok")
    _write(tmp_path, _start(0), whole[: len(whole) // 2])
    found = read_repeat(tmp_path, "c", 0, 1)
    assert found.ranks[0].end is None
    assert [str(problem) for problem in found.problems] == [
        "node-0.jsonl:2: is not a JSON line; the file ends in the middle of it"
    ]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b"\x00\xff garbage\n", "is not a JSON line"),
        (b"[" * 100_000 + b"\n", "is not a JSON line"),
        (b'{"v": 1' + b"0" * 5000 + b"}\n", "is not a JSON line"),
        (b"[1, 2]\n", "is not a JSON object"),
        (_line(kind="start", rank=0, v=2), "has format version 2; this reads 1"),
        (_line(kind="start", rank=0, v=True), "has format version True; this reads 1"),
        (_line(kind="start", rank=0, case_id="d"), "belongs to 'd' repeat 0"),
        (_line(kind="start", rank=0, repeat=7), "belongs to 'c' repeat 7"),
        (_start(2), "has rank 2 in a world of 2"),
        (_start(-1), "has rank -1 in a world of 2"),
        (_start(True), "has rank True in a world of 2"),
        (_start(None), "has rank None in a world of 2"),
        (_line(kind="node", rank=0, values={}), "is a node's line with a rank (0)"),
        (_line(kind="node", rank=None), "is a 'node' line without values"),
        (_line(kind="phase", rank=0, phase="measure", values=3), "is a 'phase' line without"),
        (_line(kind="phase", rank=0, phase=[1], values={}), "is of unknown phase [1]"),
        (_line(kind="end", rank=0, status="fine"), "has unknown status 'fine'"),
        (_line(kind="tail", rank=0), "is of unknown kind 'tail'"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line_and_not_used(
    tmp_path: Path, bad: bytes, what: str
) -> None:
    _write(tmp_path, _start(0), bad, _start(1))
    found = read_repeat(tmp_path, "c", 0, 2)
    assert sorted(found.ranks) == [0, 1]
    assert found.nodes == []
    (problem,) = found.problems
    assert (problem.file, problem.line) == ("node-0.jsonl", 2)
    assert problem.what.startswith(what)


def test_of_a_rank_in_two_files_the_first_is_used_and_named_once(tmp_path: Path) -> None:
    end = {"kind": "end", "rank": 0}
    _write(tmp_path, _start(0), _line(**end, status="ok"), node=2)
    _write(tmp_path, _start(0), _line(**end, status="oom"), node=10)
    found = read_repeat(tmp_path, "c", 0, 1)
    assert found.ranks[0].end is not None
    assert found.ranks[0].end["status"] == "ok"
    assert [str(problem) for problem in found.problems] == [
        "node-10.jsonl:1: rank 0 was already read from node-2.jsonl; the first is used"
    ]


def test_a_second_line_of_the_same_kind_is_not_used(tmp_path: Path) -> None:
    again = {**MEASURE, "values": {"step_time": {"step_ns": [9]}}}
    _write(tmp_path, _line(rank=0, **MEASURE), _line(rank=0, **again))
    found = read_repeat(tmp_path, "c", 0, 1)
    assert found.ranks[0].values("measure", "step_time") == {"step_ns": [1]}
    assert [problem.line for problem in found.problems] == [2]


def test_a_line_written_twice_costs_none_of_those_after_it(tmp_path: Path) -> None:
    node = _line(kind="node", rank=None, values={"system": {}})
    end = _line(kind="end", rank=0, status="ok")
    _write(tmp_path, node, node, _start(0), _start(0), _line(rank=0, **MEASURE), end)
    found = read_repeat(tmp_path, "c", 0, 1)
    assert found.nodes == [{"system": {}}]
    assert found.ranks[0].values("measure", "step_time") == {"step_ns": [1]}
    assert found.ranks[0].end is not None
    assert [problem.line for problem in found.problems] == [2, 4]


def test_after_a_second_start_that_differs_nothing_of_the_rank_is_used(tmp_path: Path) -> None:
    other = _line(kind="start", rank=0, host="other")
    _write(
        tmp_path, _start(0), other, _line(rank=0, **MEASURE), _line(kind="end", rank=0, status="ok")
    )
    found = read_repeat(tmp_path, "c", 0, 1)
    assert found.ranks[0].start["host"] == "h"
    assert found.ranks[0].end is None
    assert [problem.line for problem in found.problems] == [2]


def test_what_many_lines_have_in_common_is_said_once(tmp_path: Path) -> None:
    newer = [_line(kind="end", rank=0, v=2)] * 40
    _write(tmp_path, _start(0), *newer, b"garbage\n")
    assert [str(problem) for problem in read_repeat(tmp_path, "c", 0, 1).problems] == [
        "node-0.jsonl:2: has format version 2; this reads 1 (40 lines like it)",
        "node-0.jsonl:42: is not a JSON line",
    ]


def test_no_files_are_no_ranks(tmp_path: Path) -> None:
    assert read_repeat(tmp_path, "c", 0, 1).ranks == {}
    assert read_repeat(tmp_path / "absent", "c", 0, 1).ranks == {}


def test_a_directory_in_place_of_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "node-0.jsonl").mkdir()
    (problem,) = read_repeat(tmp_path, "c", 0, 1).problems
    assert str(problem) == "node-0.jsonl: cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (b'{"status": "ok"', "status.json: is not a JSON file"),
        (b"[" * 100_000, "status.json: is not a JSON file"),
        (b'["ok"]', "status.json: has no known status"),
        (b'{"status": "fine"}', "status.json: has no known status"),
        (b'{"status": "running"}', "status.json: has no known status"),  # its folder says that
        (b'{"status": ["ok"]}', "status.json: has no known status"),
        (b'{"v": 2, "status": "ok"}', "status.json: has format version 2; this reads 1"),
    ],
)
def test_a_status_that_cannot_be_used_is_named(tmp_path: Path, written: bytes, why: str) -> None:
    (tmp_path / "status.json").write_bytes(written)
    assert read_status(tmp_path / "status.json") == ({}, why)


def test_a_status_of_any_age_is_read_and_one_that_is_not_there_is_no_problem(
    tmp_path: Path,
) -> None:
    assert read_status(tmp_path / "status.json") == ({}, None)
    for status in ({"status": "oom", "rank": 1}, {"v": 1, "status": "ok"}):
        (tmp_path / "status.json").write_text(json.dumps(status))
        assert read_status(tmp_path / "status.json") == (status, None)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "rank", "phase", "values", "status", "x"]), inner, max_size=4
        )
    ),
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(lines=st.lists(st.binary(max_size=40) | _JSON, max_size=8))
def test_whatever_a_file_holds_the_reader_does_not_raise(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Any]
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any"  # a new one each time takes longest of all
    directory.mkdir(exist_ok=True)
    encoded = [
        line + b"\n" if isinstance(line, bytes) else _line(**line) if isinstance(line, dict)
        else json.dumps(line).encode() + b"\n"
        for line in lines
    ]  # fmt: skip
    _write(directory, *encoded)
    found = read_repeat(directory, "c", 0, 2)
    assert set(found.ranks) <= {0, 1}

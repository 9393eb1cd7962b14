"""What a user can get wrong: one paragraph, status 2, before anything starts or is written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from andromeda_scale import resources
from andromeda_scale.cli import app
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.machine import Machine
from andromeda_scale.plan import make_plan
from andromeda_scale.suite_file import load_suite

TWO_CORES = Machine(cpu_cores=2, memory_bytes=16 << 30)

GOOD = """\
question: Is this refused?
model: andromeda-tiny
data: {source: random}
train: {seq_len: 32}
strategy: ddp
world: [1]
"""


@pytest.fixture(autouse=True)
def _empty_folder_where_nothing_may_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a sweep was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("andromeda_scale.launch.driver.run", started)
    monkeypatch.setattr("andromeda_scale.machine.detect_machine", lambda: TWO_CORES)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of what it holds."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refuse(*arguments: str) -> str:
    """The paragraph `run` refuses with; checks status 2, one line, and an untouched folder."""
    before = contents(Path.cwd())
    done = CliRunner().invoke(app, ["run", *arguments])
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert contents(Path.cwd()) == before
    assert not Path("runs").exists()
    return line.removeprefix("andromeda-scale: ")


def refuse_suite(old: str, new: str) -> str:
    """As `refuse`, for the good suite with one text changed."""
    assert old in GOOD
    Path("x.yaml").write_text(GOOD.replace(old, new), encoding="utf-8")
    return refuse("x.yaml")


def test_the_good_suite_gets_past_every_check() -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    done = CliRunner().invoke(app, ["run", "x.yaml"])
    assert isinstance(done.exception, AssertionError)
    assert str(done.exception) == "a sweep was started"


@pytest.mark.parametrize("size", ["0", "-4"])
@pytest.mark.parametrize("key", ["seq_len", "micro_batch_size", "grad_accum"])
def test_a_size_that_is_not_positive(key: str, size: str) -> None:
    assert refuse_suite("seq_len: 32", f"{key}: {size}") == (
        f"train.{key}: {size} is not a positive integer (x.yaml); use 1 or more"
    )


def test_a_world_of_no_ranks() -> None:
    assert refuse_suite("world: [1]", "world: [0]") == (
        "world[0]: 0 is not a positive number of ranks (x.yaml); use 1 or more"
    )


def test_a_model_without_blocks() -> None:
    changed = "{base: andromeda-tiny, num_layers: 0}"
    assert refuse_suite("andromeda-tiny", changed) == (
        "model.num_layers: 0 is not a positive integer (x.yaml); use 1 or more"
    )


def test_heads_that_do_not_divide() -> None:
    line = refuse_suite("andromeda-tiny", "{base: andromeda-tiny, num_heads: 5, num_kv_heads: 2}")
    assert line.startswith("model.num_kv_heads: 2 does not divide num_heads 5 (x.yaml); use ")


def test_heads_that_do_not_divide_the_width() -> None:
    line = refuse_suite("andromeda-tiny", "{base: llama-tiny, d_model: 130}")
    assert line.startswith("model.num_heads: 4 ")
    assert "d_model 130" in line


def test_a_world_over_the_device_count() -> None:
    assert refuse_suite("world: [1]", "world: [4]\ndevice: cuda") == (
        "x: none of its 1 cases can run here: needs 4 GPUs per node, 0 here "
        "(fallback: cpu would use the CPU); `andromeda-scale plan` shows all; "
        "change world, device, fallback or limits"
    )
    assert "4 ranks on 2 cores would share cores" in refuse_suite("world: [1]", "world: [4]")


def test_an_unknown_strategy() -> None:
    assert refuse_suite("strategy: ddp", "strategy: dpp") == (
        "strategy: 'dpp' is no strategy (x.yaml); did you mean ddp?"
    )


def test_an_unknown_option_of_a_strategy() -> None:
    line = refuse_suite("strategy: ddp", "strategy: {name: fsdp2, reshard_after_foward: true}")
    assert line == (
        "strategy.reshard_after_foward: unknown key (x.yaml); did you mean reshard_after_forward?"
    )


def test_an_unknown_model() -> None:
    line = refuse_suite("andromeda-tiny", "andromeda-tinny")
    assert line.startswith("model: andromeda-tinny: no shipped model of this name; did you mean")
    assert "(x.yaml)" in line


def test_yaml_that_cannot_be_read() -> None:
    assert refuse_suite("world: [1]", "world: [1") == (
        "x.yaml: is not YAML: expected ',' or ']', but got '<stream end>' in line 7; mend that line"
    )


def test_a_yaml_bomb() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    line = refuse_suite("question: Is this refused?\n", f"{bomb}question: Is this refused?\n")
    assert line.startswith("holds 1")
    assert line.endswith("when its aliases expand, over 100000 (x.yaml); write less, "
                         "or remove aliases")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "x.yaml: is empty; write question, model, world and train as key: value"),
        ("- 1\n", "x.yaml: holds list, not a mapping; write question, model"),
    ],
)
def test_a_file_that_is_no_suite(text: str, expected: str) -> None:
    Path("x.yaml").write_text(text, encoding="utf-8")
    assert refuse("x.yaml").startswith(expected)


def test_a_suite_with_no_cases() -> None:
    assert refuse_suite("world: [1]", "world: []") == "world: is empty (x.yaml); give at least one"
    assert refuse_suite("world: [1]", "world: [1]\naxes: {seed: []}") == (
        "axes.seed: has no values (x.yaml); list at least one, or remove the axis"
    )
    assert refuse_suite("strategy: ddp\nworld: [1]", "strategy: single\nworld: [2]").startswith(
        "x: none of its 1 cases can run here: single runs on one rank only; "
    )


def test_a_suite_that_is_not_there() -> None:
    assert refuse("nowhere.yaml").startswith("nowhere.yaml: no such file in ")
    assert refuse("quickstrat") == (
        "quickstrat: no shipped suite of this name; did you mean quickstart? "
        "(a file of yours needs its suffix)"
    )
    Path("folder.yaml").mkdir()
    assert refuse("folder.yaml") == "folder.yaml: is a folder; give the path of a YAML file"


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_a_text_file_with_no_text(text: str) -> None:
    Path("empty.txt").write_text(text, encoding="utf-8")
    assert refuse_suite("{source: random}", "{source: files, files: [empty.txt]}") == (
        "data.files: empty.txt holds no text (suite x); give a file with text"
    )


def test_a_text_file_that_is_not_there_or_too_short() -> None:
    line = refuse_suite("{source: random}", "{source: files, files: [nowhere.txt]}")
    assert line.startswith("data.files: nowhere.txt")
    Path("short.txt").write_text("ten bytes.", encoding="utf-8")
    line = refuse_suite("{source: random}", "{source: files, files: [short.txt]}")
    assert line.startswith("data")
    assert "10 tokens in all are too few for train.seq_len 32" in line


@pytest.mark.parametrize("where", ["/proc/andromeda", "a-file", "a-file/below", "/dev/null"])
def test_a_run_directory_that_cannot_be_written(where: str) -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    Path("a-file").write_text("mine", encoding="utf-8")
    line = refuse("x.yaml", "--run-dir", where)
    assert where.rpartition("/")[2] in line
    assert line.endswith("choose a writable one with --run-dir")


@pytest.fixture
def _a_locked_folder() -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    Path("locked").mkdir(mode=0o500)


@pytest.mark.usefixtures("_a_locked_folder", "unprivileged")
def test_a_run_directory_without_permission() -> None:
    assert "Permission denied" in refuse("x.yaml", "--run-dir", "locked/run")


def test_a_folder_that_holds_something_else() -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    Path("thesis").mkdir()
    Path("thesis/draft.txt").write_text("mine", encoding="utf-8")
    line = refuse("x.yaml", "--run-dir", "thesis")
    assert "thesis: is not empty and holds no run; choose another --run-dir" in line


def test_a_run_directory_of_another_suite() -> None:
    suite, name, text = load_suite("quickstart", ["data.source=random"])
    RunDir.create("theirs", make_plan(suite, name, TWO_CORES), text, {})
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    line = refuse("x.yaml", "--run-dir", "theirs")
    assert "theirs: holds a run of other cases (suite 'quickstart')" in line
    assert "choose another --run-dir, or resume that run with" in line


def test_options_that_contradict_the_run_directory() -> None:
    suite, name, text = load_suite("quickstart", ["data.source=random"])
    RunDir.create("theirs", make_plan(suite, name, TWO_CORES), text, {})
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    assert "holds a run already; leave out --new" in refuse(
        "x.yaml", "--run-dir", "theirs", "--new"
    )
    assert "holds no run; leave out --only" in refuse(
        "x.yaml", "--run-dir", "none", "--only", "failed"
    )
    assert "no run of x with these cases lies under runs/" in refuse("x.yaml", "--only", "failed")


@pytest.mark.parametrize("command", ["status", "report", "resume"])
def test_a_run_that_is_not_there(command: str) -> None:
    done = CliRunner().invoke(app, [command, "nowhere"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "nowhere" in line
    assert not Path("nowhere").exists()


def test_a_damaged_plan() -> None:
    Path("run").mkdir()
    Path("run/plan.json").write_text('{"suite_name": 3', encoding="utf-8")
    for command in ("status", "report", "resume"):
        done = CliRunner().invoke(app, [command, "run"])
        assert done.exit_code == 2, done.exception
        assert "plan.json" in done.stderr


@pytest.mark.parametrize("name", resources.names("suites"))
@pytest.mark.parametrize("byte", [0, 200, 400])
def test_a_suite_cut_short_is_refused_or_read_but_never_raises(name: str, byte: int) -> None:
    text = resources.find("suites", name).read_text(encoding="utf-8")[:byte]
    Path("cut.yaml").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", "cut.yaml"])
    assert done.exit_code in (0, 2), done.exception

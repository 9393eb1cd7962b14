"""What a user can get wrong: one paragraph, status 2, before anything starts or is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import GOOD, empty_folder_where_nothing_may_start, refuse, refuse_suite
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.planning.suite_file import read_suite
from andromeda_scale.suite import resources

__all__ = ["empty_folder_where_nothing_may_start"]


def test_the_good_suite_gets_past_every_check() -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    done = CliRunner().invoke(app, ["run", "x.yaml"])
    assert isinstance(done.exception, AssertionError)
    assert str(done.exception) == "a sweep was started"


@pytest.mark.parametrize("size", ["0", "-4"])
@pytest.mark.parametrize("key", ["seq_len", "micro_batch_size", "grad_accum"])
def test_a_size_that_is_not_positive(key: str, size: str) -> None:
    words = ", auto or auto_worlds" if key == "micro_batch_size" else ""
    assert refuse_suite("seq_len: 32", f"{key}: {size}") == (
        f"train.{key}: {size} is not a positive integer (x.yaml); use 1 or more{words}"
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
        "device: cuda cannot run: needs 4 GPUs per node, 0 here (fallback: cpu would use the CPU) "
        "(x.yaml); use device: cpu, or fallback: cpu "
        "(none of 1 cases can run here, `andromeda-scale plan` shows why)"
    )
    line = refuse("quickstart", "--axis", "world=4000")
    assert line.startswith("world: 4000 cannot run: 4000 ranks on 2 cores would share cores")
    assert "(--axis world=4000); change world" in line
    assert "(--set device=cuda); use device: cpu" in refuse("quickstart", "--set", "device=cuda")
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
    assert line == (
        "model: andromeda-tinny: no shipped model of this name (x.yaml); did you mean "
        "andromeda-tiny? A file of yours needs its suffix"
    )


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
        "strategy: single cannot run: single runs on one rank only (x.yaml); "
    )


def test_a_suite_that_is_not_there() -> None:
    assert refuse("nowhere.yaml").startswith("nowhere.yaml: no such file in ")
    assert refuse("quickstrat") == (
        "quickstrat: no shipped suite of this name; did you mean quickstart? "
        "A file of yours needs its suffix"
    )
    for name in ("folder.yaml", "folder"):
        Path(name).mkdir()
        assert refuse(name) == f"{name}: is a folder; give the path of a YAML file"
    Path("folder/suite.yaml").write_text(GOOD, encoding="utf-8")  # as a run has it
    assert refuse("folder") == "folder: is a folder; give folder/suite.yaml"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--axis", "world=1", "--axis", "world=2"),
            "world: is given twice (--axis world=1 and --axis world=2); keep one, with all its "
            "values: --axis world=V1,V2",
        ),
        (
            ("--set", "seed=1", "--axis", "seed=1,2"),
            "seed: is given twice (--set seed=1 and --axis seed=1,2); keep one, with all its "
            "values: --axis seed=V1,V2",
        ),
        (
            ("--set", "seed=1", "--set", "seed=2"),
            "seed: is given twice (--set seed=1 and --set seed=2); keep one",
        ),
    ],
)
def test_a_key_that_is_given_twice(options: tuple[str, ...], expected: str) -> None:
    assert refuse("quickstart", *options) == expected


def test_a_run_dir_without_a_name_is_not_the_current_directory() -> None:
    assert refuse("quickstart", "--run-dir", "") == (
        "--run-dir '': names no directory; give a path, or leave out --run-dir"
    )


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_a_text_file_with_no_text(text: str) -> None:
    Path("empty.txt").write_text(text, encoding="utf-8")
    assert refuse_suite("{source: random}", "{source: files, files: [empty.txt]}") == (
        f"data.files: {Path.cwd()}/empty.txt holds no text (x.yaml); give a file with text"
    )


def test_a_text_file_that_is_not_there_or_too_short() -> None:
    line = refuse_suite("{source: random}", "{source: files, files: [nowhere.txt]}")
    assert line.startswith(f"data.files: {Path.cwd()}/nowhere.txt cannot")
    Path("short.txt").write_text("ten bytes.", encoding="utf-8")
    line = refuse_suite("{source: random}", "{source: files, files: [short.txt]}")
    assert line.startswith("data")
    assert "10 tokens in all are too few for train.seq_len 32" in line


def test_files_lie_beside_the_suite_and_those_of_an_option_here() -> None:
    Path("sub").mkdir()
    good = GOOD.replace("{source: random}", "{source: files, files: [a.txt]}")
    Path("sub/x.yaml").write_text(good, encoding="utf-8")
    Path("sub/a.txt").write_text("text enough " * 9, encoding="utf-8")
    suite, *_ = read_suite("sub/x.yaml")
    assert suite.data.files == (str(Path.cwd() / "sub/a.txt"),)
    for option in (["--set", "data.files=[b.txt]"], ["--axis", "data.files=[b.txt]"]):
        line = refuse("sub/x.yaml", *option)
        assert line.startswith(f"data.files: {Path.cwd()}/b.txt cannot be read")
        assert f"({' '.join(option)}" in line


def test_a_length_beyond_the_text_is_blamed_on_both() -> None:
    Path("a.txt").write_text("text enough " * 9, encoding="utf-8")
    Path("x.yaml").write_text(
        GOOD.replace("{source: random}", "{source: files, files: [a.txt]}"), encoding="utf-8"
    )
    line = refuse("x.yaml", "--set", "train.seq_len=4096")
    assert "which needs 4097 (x.yaml and --set train.seq_len=4096); give more text" in line


def test_a_binary_file_is_no_text() -> None:
    Path("a.txt").write_bytes(b"some text " * 20 + b"\0" * 9)
    assert refuse_suite("{source: random}", "{source: files, files: [a.txt]}") == (
        f"data.files: {Path.cwd()}/a.txt holds NUL bytes and so is no text (x.yaml); "
        "use .bin or .npy for tokens"
    )


@pytest.mark.parametrize(
    "option",
    [
        "env.HF_TOKEN=hunter2",
        "env.NCCL_SECRET_KEY=hunter2",
        "env.db_pwd=hunter2",
        "env.PLAIN=ghp_hunter2",
    ],
)
@pytest.mark.parametrize("kind", ["--set", "--axis"])
def test_a_secret_is_refused_and_not_echoed(kind: str, option: str) -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    name = option.partition("=")[0]
    line = refuse("x.yaml", kind, option)
    assert line == (
        f"{name}: looks like a secret ({kind} {name}=...); export it in the shell instead: "
        "suites are stored with results"
    )


def test_a_secret_in_a_suite_file_is_refused() -> None:
    for written in (
        "env: {HF_TOKEN: hunter2}",
        "env: {HF_TOKEN: [hunter2, b]}",
        "axes: {env.HF_TOKEN: [hunter2]}",
        "axes: {env: [{HF_TOKEN: hunter2}]}",
    ):
        line = refuse_suite("world: [1]", f"world: [1]\n{written}")
        assert "env.HF_TOKEN: looks like a secret (x.yaml" in line
        assert "hunter2" not in line
    assert "hunter2" not in refuse("x.yaml", "--set", "env={HF_TOKEN: hunter2}")


@pytest.mark.parametrize(
    "name",
    ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
     "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"],
)  # fmt: skip
def test_what_the_launcher_sets_is_refused(name: str) -> None:
    line = refuse_suite("world: [1]", f"world: [1]\nenv: {{{name}: '1'}}")
    assert line.startswith(f"env.{name}: is the launcher's to set (x.yaml); ")


@pytest.mark.parametrize(
    "option",
    ["model.d_model=1" + "0" * 400, "model.d_model=4294967296", "model.num_layers=100001",
     "model.vocab_size=1" + "0" * 30, "limits.timeout_s=1e308", "limits.timeout_s=1" + "0" * 400,
     "limits.heartbeat_s=1e8", "limits.memory_gib=1e8", "seed=99999999999999999999999999",
     "seed=9223372036854775808", "measure.steps=1000000000000", "measure.repeats=10001",
     "measure.profile_steps=1000001", "measure.warmup.max_steps=1000001",
     "train.micro_batch_size=1000001", "train.grad_accum=1000001", "train.seq_len=16777217",
     "threads_per_rank=10001", "world=1000001", "world=1001x1000", "world=1" + "0" * 4000,
     "world=2x1" + "0" * 5000, "scaling.strong.global_batch_size=1000001"],
)  # fmt: skip
def test_a_number_beyond_any_use(option: str) -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    line = refuse("x.yaml", "--set", option)
    key = option.partition("=")[0]
    assert line.startswith(key)
    assert f"(--set {option[:30]}" in line
    assert "; use " in line
    assert len(line) < 400


@pytest.mark.parametrize("family", ["andromeda-tiny", "llama-tiny"])
@pytest.mark.parametrize("key", ["vocab_size", "d_model", "num_heads", "num_kv_heads", "head_dim"])
def test_the_limit_is_told_as_it_is_written(family: str, key: str) -> None:
    line = refuse_suite("andromeda-tiny", f"{{base: {family}, {key}: 2147483649}}")
    assert line == (
        f"model.{key}: 2147483649 is above the limit 2147483648 (x.yaml); use at most 2147483648"
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1: 2", "1: the key 1 with the value 2 is not text (x.yaml); "),
        ("limits: {3: x}", "limits.3: the key 3 with the value 'x' is not text (x.yaml); "),
        ("seed: 2026-01-01", "seed: 2026-01-01 is a date, which no setting has (x.yaml); quote it"),
        ("axes: {seed: [1, 2026-01-01]}", "axes.seed[1]: 2026-01-01 is a date, which no setting"),
    ],
)
def test_a_kind_that_no_setting_has_is_named(written: str, expected: str) -> None:
    assert refuse_suite("world: [1]", f"world: [1]\n{written}").startswith(expected)


def test_the_command_line_is_blamed_for_what_it_said() -> None:
    Path("x.yaml").write_text(f"{GOOD}axes: {{model: [andromeda-tiny]}}\n", encoding="utf-8")
    for option in (
        ["--set", "model.num_layers=0"],
        ["--axis", "train.seq_len=0"],
        ["--axis", "strategy=dpp"],
        ["--set", "world=2026-01-01"],
        ["--axis", "world=0"],
        ["--set", "axes={limits: [{}]}"],
    ):
        assert f"({' '.join(option)}" in refuse("x.yaml", *option)


@pytest.mark.parametrize("name", resources.names("suites"))
@pytest.mark.parametrize("byte", [0, 200, 400])
def test_a_suite_cut_short_is_refused_or_read_but_never_raises(name: str, byte: int) -> None:
    text = resources.find("suites", name).read_text(encoding="utf-8")[:byte]
    Path("cut.yaml").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", "cut.yaml"])
    assert done.exit_code in (0, 2), done.exception

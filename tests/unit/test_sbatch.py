"""What a suite's slurm: section may say, and the script that is made of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.commands import submitting
from andromeda_scale.errors import UserError
from andromeda_scale.launch import jobs, sbatch
from andromeda_scale.planning.suite_file import read_suite
from andromeda_scale.suite.slurm import Container, Slurm

SUITE = """\
question: q?
model: andromeda-tiny
data: {source: random}
world: [1, 2, 4x2]
device: cpu
"""


def loaded(tmp_path: Path, more: str = "", *sets: str) -> submitting.Loaded:
    (tmp_path / "x.yaml").write_text(SUITE + more, encoding="utf-8")
    return read_suite(str(tmp_path / "x.yaml"), sets)


def script(tmp_path: Path, more: str = "", *sets: str) -> str:
    return scripts(tmp_path, more, *sets)["job.sbatch"]


def scripts(tmp_path: Path, more: str = "", *sets: str) -> dict[str, str]:
    return submitting.prepare(loaded(tmp_path, more, *sets), tmp_path / "run").scripts()


def test_one_allocation_holds_the_largest_world_and_survives_a_lost_node(tmp_path: Path) -> None:
    lines = script(tmp_path).splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"--nodes=4", "--ntasks-per-node=1", "--no-kill", "--requeue", "--exclusive"} <= asked
    srun = " ".join(lines[-2:])
    assert "--no-kill --kill-on-bad-exit=0 --wait=0" in srun
    assert srun.endswith("--ranks-per-agent 2")


def test_every_key_of_the_section_is_in_the_script(tmp_path: Path) -> None:
    keys = {"partition": "p", "account": "a", "qos": "q", "time": "1-00", "gres": "gpu:2"}
    section = keys | {"constraint": "h100&ib", "nodes": 5, "extra": ["--mem 0"], "modules": ["m/1"]}
    found = script(tmp_path, f"slurm: {section}\n")
    for key, value in keys.items():
        assert f"#SBATCH --{key}={value}\n" in found
    assert '#SBATCH "--constraint=h100&ib"\n' in found
    assert "#SBATCH --nodes=5\n" in found
    assert "#SBATCH --mem 0\n" in found
    assert "\nmodule load m/1\n" in found


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("time: 7200", "slurm.time: 7200 is a number"),
        ("time: soon", "slurm.time: 'soon' is no time limit"),
        ('partition: "a\\nb"', "slurm.partition: "),
        ("extra: [rm -rf]", "slurm.extra: 'rm -rf' is no option of sbatch"),
        ("extra: [--nodes=1]", "slurm.extra: '--nodes=1' is submit's to say"),
        ("extra: [-N1]", "slurm.extra: '-N1' is submit's to say"),
        ("partitions: x", "slurm.partitions: unknown key"),
        ("nodes: 3", "slurm.nodes: 3 is fewer than the 4 of the largest world"),
        ("template: none.sbatch", "slurm.template: "),
    ],
)
def test_a_mistake_in_the_section_is_named_before_anything_is_written(
    section: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        script(tmp_path, f"slurm: {{{section}}}\n")
    assert str(error.value).startswith(said)
    assert not (tmp_path / "run").exists()


def test_a_files_name_writes_no_directive(tmp_path: Path) -> None:
    suite = tmp_path / "x\n#SBATCH --account=theirs\n.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    with pytest.raises(UserError, match="rename the suite's file"):
        submitting.prepare(read_suite(str(suite)), tmp_path / "run")


def test_an_array_has_a_task_a_case_by_their_nodes_and_a_job_that_merges(tmp_path: Path) -> None:
    found = scripts(tmp_path, "slurm: {array: true}\naxes: {seed: [1, 2]}\n")
    assert list(found) == ["array-1.sbatch", "array-4.sbatch", "merge.sbatch"]
    told = re.findall(r"^#SBATCH --array=([\d,]+)$", "\n".join(found.values()), re.MULTILINE)
    assert sorted(index for tasks in told for index in tasks.split(",")) == list("012345")
    assert "#SBATCH --nodes=4\n" in found["array-4.sbatch"]
    assert "--array --requeue" in found["array-4.sbatch"]
    assert "--gather" in found["merge.sbatch"]


def test_worlds_of_an_array_cannot_share_the_size_that_they_find(tmp_path: Path) -> None:
    sets = ("train.micro_batch_size=auto_worlds",)
    with pytest.raises(UserError, match=r"auto_worlds, and slurm\.array gives every world a job"):
        script(tmp_path, "slurm: {array: true}\n", *sets)
    script(tmp_path, "", *sets)
    assert scripts(tmp_path, "slurm: {array: true}\n", "train.micro_batch_size=auto")


def test_gpus_must_be_asked_for_or_declined(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"slurm\.gres: says no GPUs, and device is auto"):
        script(tmp_path, "", "device=auto")
    assert "--gres=none" in script(tmp_path, "", "device=auto", "slurm.gres=none")


def test_a_template_must_hold_every_blank_once(tmp_path: Path) -> None:
    template = tmp_path / "mine.sbatch"
    for text, said in {
        "@directives@\n@setup@": "holds @agent@ 0 times",
        "@directives@\n@setup@\n@agent@ @agent@": "holds @agent@ 2 times",
        "@directives@\n@setup@\n@agent@ @world@": "@world@ is no blank",
    }.items():
        template.write_text(text)
        with pytest.raises(UserError, match=said):
            script(tmp_path, "slurm: {template: mine.sbatch}\n")
    template.write_text("@directives@\n@setup@\nsource my/env\nexec srun @agent@\n")
    assert "\nsource my/env\n" in script(tmp_path, "slurm: {template: mine.sbatch}\n")


def test_words_of_the_agent_are_one_shell_word_each() -> None:
    words = ["a b", "$(touch x)", "it's", ";"]
    shown = sbatch.agent(Slurm(python="/my python"), words, gpus=False)
    assert shlex.split(shown) == ["/my python", "-m", "andromeda_scale.agent", *words]


def test_every_example_of_the_docs_is_a_script(tmp_path: Path) -> None:
    text = Path(__file__).parents[2].joinpath("docs", "clusters.md").read_text(encoding="utf-8")
    examples = re.findall(r"^\|[^|]+\| `(\{.+\})` \|$", text, re.MULTILINE)
    assert len(examples) >= 8
    for section in examples:
        assert "andromeda_scale.agent" in script(tmp_path, f"slurm: {section}\n", "device=auto")
    assert "--container-mounts=/proj python -m" in script(tmp_path, f"slurm: {examples[-1]}\n")
    for given in ("slurm.partition=gpu-debug", "slurm.time=00:30:00"):
        assert given in text
        script(tmp_path, "", given)


def test_a_container_holds_the_agent() -> None:
    box = Slurm(container=Container(image="i.sif", options=("--bind=/data",)))
    start = "apptainer exec --nv --bind=/data i.sif python -m andromeda_scale.agent"
    assert sbatch.agent(box, [], gpus=True) == start
    box = Slurm(container=Container(image="nvcr.io#nvidia/pytorch:25.09-py3", runtime="pyxis"))
    assert sbatch.agent(box, [], gpus=True).startswith("'--container-image=nvcr.io#nvidia/pytorch")


def test_a_submitted_suite_means_the_same_in_any_directory(tmp_path: Path) -> None:
    (tmp_path / "tokens.npy").touch()
    more = "axes: {strategy: [ddp, {name: fsdp2, reshard_after_forward: false}], seed: [1, 2]}\n"
    more += "env: {A: ['1', '2'], B: 'x'}\nstrategy: {name: zero2, overlap_comm: false}\n"
    first = loaded(tmp_path, more, "data={source: files, files: [tokens.npy]}", "train.seq_len=64")
    again = tmp_path / "run" / "slurm" / "x.yaml"
    again.parent.mkdir(parents=True)
    again.write_text(submitting.resolved(first.suite))
    assert read_suite(str(again)).suite == first.suite


def test_a_directory_that_holds_something_is_not_submitted_into(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    submitting.refuse_used(tmp_path)  # sbatch had refused it
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        submitting.refuse_used(tmp_path)
    jobs.record(tmp_path, "12")
    with pytest.raises(UserError, match=r"holds a run already; go on with it by `.* resume"):
        submitting.refuse_used(tmp_path)
    submitting.refuse_used(tmp_path / "new")


def test_a_dry_run_prints_the_script_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.yaml").write_text(SUITE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["submit", "x.yaml", "--dry-run", "--set", "slurm.qos=x"])
    assert done.exit_code == 0
    assert "#SBATCH --qos=x" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize(
    ("code", "status"),
    [("0", 0), ("768", 3), ("33280", 130), ("15", 143), ("3:0", 3), ("0:9", 137), ("?", 0)],
)
def test_an_exit_status_is_read_as_squeue_and_as_sacct_write_it(code: str, status: int) -> None:
    assert jobs._status(code) == status


@pytest.mark.parametrize(
    ("text", "shown"),
    [  # what sacct of SLURM 22.05.8 printed, on a slurmdbd
        ("COMPLETED|0:0|n[1-2]\n", "job 7: COMPLETED on n[1-2]"),
        ("FAILED|3:0|n[1-2]\n", "job 7: FAILED on n[1-2], exit status 3"),
        ("FAILED|0:9|n1\n", "job 7: FAILED on n1, exit status 137"),
        ("CANCELLED by 0|0:0|n1\n", "job 7: CANCELLED on n1"),
        ("COMPLETED|0:0|n[1-2]\nFAILED|1:0|n1\n", "job 7: FAILED on n1, exit status 1"),
        ("", "None"),
    ],
)
def test_a_job_that_squeue_has_forgotten_is_read_of_sacct(text: str, shown: str) -> None:
    assert str(jobs._accounted("7", text)) == shown


def test_lines_of_jobs_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    jobs.record(tmp_path, "12")
    with open(tmp_path / "slurm" / "jobs.jsonl", "a") as file:
        file.write('nonsense\n[]\n{"job_id": 7}\n{"job_id": "--all"}\n{"job_id": "13"')
    assert jobs.of_run(tmp_path) == ["12"]
    jobs.record(tmp_path, "14")  # after half a line
    with open(tmp_path / "slurm" / "jobs.jsonl", "ab") as file:
        file.write(b'\xff\xfe{"job_id": "15"}\n' + b"[" * 100_000)
    assert jobs.of_run(tmp_path) == ["12", "14"]


@pytest.mark.parametrize("error", [UserError("refused"), OSError(28, "No space left on device")])
def test_what_is_submitted_in_part_is_cancelled_and_said(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []
    numbers = iter("12")

    def record(*_: object) -> None:
        if next(taken) == 2:
            raise error

    taken = iter((1, 2))
    monkeypatch.setattr(jobs, "submit", lambda *_: next(numbers))
    monkeypatch.setattr(jobs, "record", record)
    monkeypatch.setattr(jobs, "cancel", cancelled.extend)
    array = submitting.prepare(loaded(tmp_path, "slurm: {array: true}\n"), tmp_path / "run")
    with pytest.raises(UserError, match="; job 1 is cancelled; job 2 is cancelled"):
        submitting.submit(array)
    assert cancelled == ["1", "2"]

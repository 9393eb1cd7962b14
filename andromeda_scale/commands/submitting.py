"""`submit`: a sweep as a SLURM job, followed, cancelled, taken up again. No torch.

A submitted run holds slurm/: the suite as it was submitted (<suite>.yaml, resolved), the scripts
(*.sbatch), jobs.jsonl, and a log a job (<job id>.out). The plan is made where the job starts,
on the first node, because only that node knows its GPUs and cores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.launch import gather, jobs, sbatch
from andromeda_scale.launch.disk import write_atomic
from andromeda_scale.planning.plan import make_plan, require_runnable
from andromeda_scale.planning.suite_file import Loaded, read_suite
from andromeda_scale.suite import paths, resources, safe_yaml
from andromeda_scale.suite.config import Suite
from andromeda_scale.suite.validation import place

INTERRUPTED = 130
_POLL_S = (1.0, 15.0)  # between two looks at a job: at first, and later
_ENOUGH = 1 << 50  # memory of a machine that is not known yet


@dataclass(frozen=True)
class Submission:
    """What is to be submitted: a checked suite, its plan as far as it is known, where it runs."""

    loaded: Loaded
    plan: Plan
    run_dir: Path

    @property
    def folder(self) -> Path:
        return self.run_dir / jobs.FOLDER

    @property
    def suite_file(self) -> Path:
        return self.folder / f"{self.loaded.name}.yaml"

    def scripts(self, *, only_failed: bool = False, allow_mixed: bool = False) -> dict[str, str]:
        """Name -> text of the scripts in the order of their submission; the last makes the table.

        One for a whole sweep; of an array one a number of nodes, and one that merges.
        """
        suite = self.loaded.suite
        flags = ["--only-failed"] * only_failed + ["--allow-mixed"] * allow_mixed
        if not suite.slurm.array:
            nodes = [f"--nodes={num_nodes(suite)}"]
            return {"job.sbatch": self._script("%j", nodes, ["--requeue", *flags])}
        tasks: dict[int, list[str]] = {}
        for index, case_id in enumerate(gather.case_ids(self.plan)):
            tasks.setdefault(self.plan.cases[case_id].world.nodes, []).append(str(index))
        scripts = {}
        for nodes_of_world, indices in sorted(tasks.items()):
            options = [f"--nodes={nodes_of_world}", f"--array={','.join(indices)}"]
            name = f"array-{nodes_of_world}.sbatch"
            scripts[name] = self._script("%A_%a", options, ["--array", "--requeue", *flags])
        scripts["merge.sbatch"] = self._script("%j", ["--nodes=1"], ["--gather", *flags])
        return scripts

    def _script(self, log: str, options: Sequence[str], flags: Sequence[str]) -> str:
        suite, slurm = self.loaded.suite, self.loaded.suite.slurm
        # Before the time limit agents are told: they close the repeat, and merge.
        options = [*options, "--ntasks-per-node=1", "--no-kill", "--requeue"]
        options += [f"--signal=TERM@{sbatch.NOTICE_S}"]
        name, output = f"andromeda_scale-{self.loaded.name}", self.folder / f"{log}.out"
        words = [str(self.suite_file), "--run-dir", str(self.run_dir), *flags]
        words += ["--ranks-per-agent", str(max(w.ranks_per_node for w in suite.world))]
        path, template = _template(suite, self.loaded)
        values = {
            "directives": sbatch.directives(slurm, name, output, *options),
            "setup": sbatch.setup(slurm),
            "agent": sbatch.agent(slurm, words, gpus=suite.device != "cpu"),
        }
        return sbatch.render(template, path, values)


def prepare(loaded: Loaded, run_dir: Path) -> Submission:
    """Check all that can be known before the job starts. Raises UserError; writes nothing."""
    suite, where = loaded.suite, loaded.where
    if suite.slurm.gres is None and suite.device != "cpu":
        raise UserError(
            f"slurm.gres: says no GPUs, and device is {suite.device} ({place(where, 'slurm.gres')})"
            "; use gres: gpu:N, gres: none where whole nodes come with theirs, or device: cpu"
        )
    if suite.slurm.nodes is not None and suite.slurm.nodes < _largest(suite):
        raise UserError(
            f"slurm.nodes: {suite.slurm.nodes} is fewer than the {_largest(suite)} of the largest "
            f"world ({place(where, 'slurm.nodes')}); leave it out, or give more for spares"
        )
    if "\\" in str(run_dir) or not str(run_dir).isprintable():
        raise UserError(f"{run_dir}: has a backslash or no text in its name; choose --run-dir")
    if not loaded.name.isprintable():  # a line break would end a directive, and begin another
        raise UserError(f"{loaded.name!r}: no text for the name of a job; rename the suite's file")
    ranks = max(world.ranks_per_node for world in suite.world)
    gpus = () if suite.device == "cpu" else (_ENOUGH,) * ranks
    machine = Machine(_ENOUGH, gpus, _ENOUGH, num_nodes(suite))
    plan = make_plan(suite, loaded.name, machine, where)
    require_runnable(plan, where)
    if suite.slurm.array and any(case.auto == "auto_worlds" for case in plan.cases.values()):
        raise UserError(
            "train.micro_batch_size: auto_worlds, and slurm.array gives every world a job that "
            f"knows nothing of the others ({place(where, 'train.micro_batch_size')}); use auto, a "
            "number, or array: false"
        )
    submission = Submission(loaded, plan, run_dir)
    submission.scripts()  # a template that cannot be filled in is found now
    return submission


def submit(submission: Submission, **flags: bool) -> str:
    """Write suite and scripts into the run, submit them, record the jobs; the last one's id."""
    folder, scripts = submission.folder, submission.scripts(**flags)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(submission.suite_file, resolved(submission.loaded.suite))
        for name, text in scripts.items():
            write_atomic(folder / name, text)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose --run-dir on a disk that all "
            "nodes see"
        ) from None
    submitted: list[str] = []
    for name in scripts:
        after = [f"--dependency=afterany:{':'.join(submitted)}"] if name == "merge.sbatch" else []
        try:
            submitted.append(jobs.submit(folder / name, *after))
            jobs.record(submission.run_dir, submitted[-1], Path(name).stem)
        except (UserError, OSError) as error:  # a job that nobody knows of, or half an array
            if submitted:
                jobs.cancel(submitted)
            said = "".join(f"; job {job_id} is cancelled" for job_id in submitted)
            raise UserError(f"{error}{said}") from None
    return submitted[-1]


def refuse_used(run_dir: Path) -> None:
    """Raise UserError for a directory that holds a run, or something else, already."""
    if was_submitted(run_dir) or paths.exists(run_dir / "plan.json"):
        raise UserError(
            f"--run-dir {run_dir}: holds a run already; go on with it by `andromeda-scale resume "
            f"{run_dir}`, or name another directory"
        )
    # A script that sbatch refused may lie there, to be written anew.
    foreign = run_dir.is_dir() and any(f.name != jobs.FOLDER for f in run_dir.iterdir())
    if foreign or (run_dir.exists() and not run_dir.is_dir()):
        raise UserError(f"--run-dir {run_dir}: is not empty and holds no run; name another one")


def again(run_dir: Path) -> Submission:
    """A submitted run, to be submitted once more. Raises UserError while a job of it is alive."""
    run_dir = run_dir.absolute()
    for job in look(run_dir):
        if isinstance(job, jobs.Job) and not job.over:
            raise UserError(
                f"{run_dir}: {job}; wait for it (`andromeda-scale status {run_dir}`), or "
                f"`andromeda-scale cancel {run_dir}`"
            )
    files = sorted((run_dir / jobs.FOLDER).glob("*.yaml"))
    if len(files) != 1:
        raise UserError(
            f"{run_dir}/{jobs.FOLDER}: holds {len(files)} suites, not one; submit the suite again "
            f"with --run-dir {run_dir}"
        )
    return prepare(read_suite(str(files[0])), run_dir)


def was_submitted(run_dir: Path) -> bool:
    return bool(jobs.of_run(run_dir))


def resolved(suite: Suite) -> str:
    """A suite as YAML that means the same in any directory, overrides and files' paths included."""
    raw: dict[str, Any] = suite.model_dump(mode="json", exclude_unset=True)
    raw["world"] = [str(world) for world in suite.world]
    if "strategy" in raw:
        raw["strategy"] = {"name": suite.strategy.name, **suite.strategy.options}
    return safe_yaml.dump(raw)


def look(run_dir: Path) -> Iterator[jobs.Job | str]:
    """Every job of a run as SLURM sees it; text where it cannot say."""
    for job_id in jobs.of_run(run_dir):
        try:
            yield jobs.look(job_id) or f"job {job_id}: over; SLURM has forgotten it"
        except jobs.NoAnswerError as error:
            yield f"job {job_id}: not known here ({error})"


def cancel(run_dir: Path) -> list[str]:
    """Cancel what is alive of a run's jobs; their ids."""
    alive = [job.job_id for job in look(run_dir) if isinstance(job, jobs.Job) and not job.over]
    if alive:
        jobs.cancel(alive)
    return alive


def follow(run_dir: Path, job_id: str) -> int:
    """Print a job's log as it grows until the job is over; the exit status of its sweep.

    130 where it was cancelled or ran out of time, 1 where it ended otherwise without a status.
    """
    log = run_dir / jobs.FOLDER / f"{job_id}.out"
    shown, said, pause_s = 0, "", _POLL_S[0]
    while True:
        try:
            job = jobs.look(job_id)
        except jobs.NoAnswerError as error:
            job = jobs.Job(job_id, "PENDING", f"no answer: {error}")
        shown = _show(log, shown)
        if job is None:
            raise UserError(f"job {job_id}: SLURM knows it no more; `andromeda-scale report` shows")
        if (state := f"{job.word} {job.reason} {job.nodes}") != said:
            typer.echo(f"andromeda-scale: {job}", err=True)
            said, pause_s = state, _POLL_S[0]
        if job.over:
            return _outcome(job)
        time.sleep(pause_s)
        pause_s = min(_POLL_S[1], 1.2 * pause_s)


def _show(log: Path, shown: int) -> int:
    """Print what the log holds beyond `shown` bytes; how many it holds now."""
    try:
        with open(log, "rb") as file:
            file.seek(shown)
            data = file.read()
    except OSError:
        return shown  # the job has not started, or the disk shows it later
    sys.stdout.write(data.decode("utf-8", errors="replace"))
    sys.stdout.flush()
    return shown + len(data)


def _outcome(job: jobs.Job) -> int:
    if job.word in ("CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE"):
        return INTERRUPTED
    return 0 if job.word == "COMPLETED" else job.exit_code or 1


def _largest(suite: Suite) -> int:
    return max(world.nodes for world in suite.world)


def num_nodes(suite: Suite) -> int:
    """Nodes of the allocation: those of the largest world, and spares where the suite wants any."""
    return suite.slurm.nodes or _largest(suite)


def _template(suite: Suite, loaded: Loaded) -> tuple[str, str]:
    """(name, text) of the template: the suite's own or the shipped one."""
    path = Path(suite.slurm.template or resources.TOP / "slurm" / "allocation.sbatch")
    try:
        return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"slurm.template: {path} cannot be read ({error}; "
            f"{place(loaded.where, 'slurm.template')}); `andromeda-scale init DIR` copies one"
        ) from None

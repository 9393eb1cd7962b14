"""The jobs of a submitted run: their list in the run directory, and what SLURM says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from andromeda_scale.errors import UserError

FOLDER = "slurm"  # in a run directory: the suite as submitted, the script, the logs, the jobs
_JOBS = "jobs.jsonl"
_ANSWER_S = 60.0  # a busy controller takes seconds
_FIELDS = ("State", "Reason", "NodeList", "TimeLeft", "exit_code")
_ALIVE = frozenset(
    "PENDING CONFIGURING RUNNING COMPLETING SUSPENDED STOPPED REQUEUED REQUEUE_HOLD REQUEUE_FED "
    "RESIZING SIGNALING STAGE_OUT SPECIAL_EXIT RESV_DEL_HOLD".split()
)


class NoAnswerError(Exception):
    """SLURM cannot be asked here, or does not answer now."""


@dataclass(frozen=True)
class Job:
    """A job as SLURM sees it; `exit_code` counts only when it is over."""

    job_id: str
    word: str  # RUNNING, COMPLETED, ...
    reason: str = ""
    nodes: str = ""
    time_left: str = ""
    exit_code: int = 0

    @property
    def over(self) -> bool:
        return self.word not in _ALIVE

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else ""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        left = f", {self.time_left} left" if self.word == "RUNNING" and self.time_left else ""
        code = f", exit status {self.exit_code}" if self.over and self.exit_code else ""
        return f"job {self.job_id}: {self.word}{why}{where}{left}{code}"


def submit(script: Path, *options: str) -> str:
    """Submit a script; its job id. Raises UserError with what sbatch says."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "submit: sbatch is not found; type this on a login node of a SLURM cluster "
            "(--dry-run shows the script without it)"
        )
    done = _slurm("sbatch", "--parsable", *options, str(script))
    if done.returncode:
        raise UserError(f"{script}: sbatch refuses it: {_said(done)}; change the slurm: section")
    return done.stdout.strip().partition(";")[0]


def record(run_dir: Path, job_id: str, kind: str = "job") -> None:
    """Add a job to the run's list."""
    line = {"job_id": job_id, "kind": kind, "submitted_unix_s": time.time()}
    with open(run_dir / FOLDER / _JOBS, "a+b") as file:
        file.seek(0)
        old = file.read()
        torn = b"\n" if old and not old.endswith(b"\n") else b""  # or this one were lost with it
        file.write(torn + json.dumps(line).encode() + b"\n")


def of_run(run_dir: Path) -> list[str]:
    """Ids of a run's jobs in the order of their submission; [] of a run that was not submitted."""
    try:
        lines = (run_dir / FOLDER / _JOBS).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            job_id = json.loads(line.decode())["job_id"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # half a line of a submit that was killed
        if isinstance(job_id, str) and job_id.isdecimal():
            found.append(job_id)
    return found


def look(job_id: str) -> Job | None:
    """What squeue says of a job, or sacct when squeue has forgotten it; None: neither knows it.

    Raises NoAnswerError.
    """
    form = ",".join(f"{field}:|" for field in _FIELDS)
    done = _slurm("squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--Format={form}")
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") >= len(_FIELDS)]
    if rows:
        return _merged([_from_squeue(job_id, row) for row in rows])
    if done.returncode and "Invalid job id" not in done.stderr:
        raise NoAnswerError(_said(done))
    return _from_sacct(job_id)


def _from_squeue(job_id: str, row: list[str]) -> Job:
    word, reason, nodes, left, code = (cell.strip() for cell in row[: len(_FIELDS)])
    return Job(job_id, word, reason, nodes, left, _status(code))


def _status(code: str) -> int:
    """An exit status from sacct's 3:0 or 0:15, or the 768 that squeue has from wait(2).

    A signal counts as with a shell.
    """
    status, colon, signal = code.partition(":")
    if not status.isdecimal():
        return 0
    if not colon:
        status, signal = str(int(status) >> 8), str(int(status) & 127)
    return int(status) or (128 + int(signal) if signal.isdecimal() and int(signal) else 0)


def _from_sacct(job_id: str) -> Job | None:
    if shutil.which("sacct") is None:
        return None
    form = "--format=State,ExitCode,NodeList"
    done = _slurm("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}", form)
    return _accounted(job_id, done.stdout)


def _accounted(job_id: str, text: str) -> Job | None:
    """A job of sacct's lines "State|ExitCode|NodeList", one a task of an array."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    jobs = [
        Job(job_id, word.split()[0], nodes=nodes, exit_code=_status(code))
        for word, code, nodes in rows
        if word
    ]
    return _merged(jobs) if jobs else None


def _merged(jobs: list[Job]) -> Job:
    """A job, or the tasks of an array as one: alive while one is, else its first failure."""
    chosen = [job for job in jobs if not job.over] or [
        job for job in jobs if job.word != "COMPLETED"
    ]
    return (chosen or jobs)[0]


def cancel(job_ids: list[str]) -> None:
    """Cancel jobs. Raises UserError with what scancel says."""
    done = _slurm("scancel", *job_ids)
    if done.returncode:
        raise UserError(f"job {' '.join(job_ids)}: cannot be cancelled: {_said(done)}")


def node_is_down(host: str) -> bool:
    """Whether SLURM has given a node up."""
    try:
        done = _slurm("sinfo", "--noheader", f"--nodes={host}", "--format=%T")
    except NoAnswerError:
        return False
    return any(line.startswith(("down", "fail")) for line in done.stdout.split())


def requeue(job_id: str) -> str | None:
    """Have SLURM start a job anew; what it says against that."""
    try:
        done = _slurm("scontrol", "requeue", job_id)
    except NoAnswerError as error:
        return str(error)
    return _said(done) if done.returncode else None


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_S, check=False
        )
    except FileNotFoundError:
        raise NoAnswerError(f"no {command[0]} on this machine") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswerError(f"{command[0]}: {error}") from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"

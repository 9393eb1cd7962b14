"""Commands that start, go on with, stop and ask after a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from andromeda_scale.commands.options import (
    AllowMixed,
    Axes,
    Device,
    DeviceKind,
    New,
    OnlyFailed,
    Quiet,
    RunPath,
    Sets,
    SuiteName,
    Wait,
    plan_of,
    run_dir_option,
)

if TYPE_CHECKING:
    from andromeda_scale.commands.submitting import Submission
    from andromeda_scale.contracts.planned import Plan


def run(
    suite: SuiteName,
    set_: Sets = None,
    axis: Axes = None,
    run_dir: Annotated[Path | None, run_dir_option("runs/SUITE-DATE-TIME.")] = None,
    new: New = False,
    only: OnlyFailed = None,
    allow_mixed: AllowMixed = False,
    quiet: Quiet = False,
) -> None:
    """Plan, launch, measure, merge and print the scaling table; resumes an unfinished run.

    Status 0: every planned repeat has ended and at least one case was measured; failed cases are
    rows of the table. Status 1: nothing could be measured.
    """

    def planned() -> tuple[Plan, str]:
        from andromeda_scale.planning.plan import require_runnable

        plan, loaded = plan_of(suite, set_, axis)
        require_runnable(plan, loaded.where)
        return plan, loaded.text

    _launch(
        planned,
        run_dir,
        new=new,
        only_failed=only is not None,
        allow_mixed=allow_mixed,
        quiet=quiet,
    )


def probe(
    world: Annotated[
        str | None, typer.Option("--world", metavar="N,N", help="Default: 1,2,4 to what is here.")
    ] = None,
    device: Device = DeviceKind.auto,
    quick: Annotated[bool, typer.Option("--quick", help="A look: few sizes, little time.")] = False,
    run_dir: Annotated[Path | None, run_dir_option("runs/probe-DATE-TIME.")] = None,
    new: New = False,
    quiet: Quiet = False,
) -> None:
    """Measure this machine's ceilings: matrix products, memory, and what collectives reach.

    They are kept for this hardware: runs that start later hold their numbers against them.
    """

    def planned() -> tuple[Plan, str]:
        from andromeda_scale.commands import probing

        return probing.plan_here(world, device.value, quick=quick), probing.SUITE_TEXT

    _launch(planned, run_dir, new=new, quiet=quiet)


def resume(
    run_dir: RunPath,
    only: OnlyFailed = None,
    allow_mixed: AllowMixed = False,
    wait: Wait = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run where it stopped; what has ended stays. What was submitted, is again."""
    from andromeda_scale.commands import submitting, sweep
    from andromeda_scale.commands.stopping import Stoppable

    if submitting.was_submitted(run_dir):
        submission = submitting.again(run_dir)
        _submit(submission, wait=wait, only_failed=only is not None, allow_mixed=allow_mixed)
    with Stoppable() as stoppable:
        stoppable.run_dir = run_dir
        run = sweep.reopen(run_dir, allow_mixed=allow_mixed)
        raise typer.Exit(sweep.execute(run, only_failed=only is not None, quiet=quiet))


def submit(
    suite: SuiteName,
    set_: Sets = None,
    axis: Axes = None,
    run_dir: Annotated[
        Path | None, run_dir_option("runs/SUITE-DATE-TIME; on a disk that all nodes see.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script; write and submit nothing.")
    ] = False,
    wait: Wait = False,
) -> None:
    """Run a suite as one SLURM job: an agent a node, smaller worlds on the first of its nodes."""
    from andromeda_scale.commands import choosing, submitting
    from andromeda_scale.planning.suite_file import read_suite

    loaded = read_suite(suite, set_ or [], axis or [])
    where = choosing.place(loaded.name, run_dir)
    submitting.refuse_used(where)
    submission = submitting.prepare(loaded, where.absolute())
    if dry_run:
        for name, text in submission.scripts().items():
            typer.echo(f"# {name}\n{text}" if loaded.suite.slurm.array else text.rstrip("\n"))
        return
    _submit(submission, wait=wait)


def cancel(run_dir: RunPath) -> None:
    """Stop a run: its SLURM job, or the driver on this machine. What has ended stays."""
    from andromeda_scale.commands import submitting, sweep

    if not submitting.was_submitted(run_dir):
        typer.echo(f"told process {sweep.interrupt(run_dir)} to stop")
        return
    alive = submitting.cancel(run_dir)
    typer.echo(f"cancelled job {' '.join(alive)}" if alive else "no job of it is alive")


def status(run_dir: RunPath) -> None:
    """Say how far a run is: done, running, failed, time left; its SLURM jobs where it has any."""
    from andromeda_scale.commands import how_far, submitting

    jobs = [str(job) for job in submitting.look(run_dir)]
    for line in (*jobs, *how_far.progress(run_dir, planned=not jobs)):
        typer.echo(line)


def _launch(
    planned: Callable[[], tuple[Plan, str]],
    run_dir: Path | None,
    *,
    new: bool,
    quiet: bool,
    only_failed: bool = False,
    allow_mixed: bool = False,
) -> NoReturn:
    """Run a plan and its suite's text where it belongs, or go on with an earlier run of it."""
    from andromeda_scale.commands.stopping import Stoppable

    with Stoppable() as stoppable:
        from andromeda_scale.commands import choosing, sweep
        from andromeda_scale.launch.run_dir import RUNS

        plan, text = planned()
        path, resumed = choosing.choose(plan, RUNS, run_dir, new=new, only_failed=only_failed)
        stoppable.run_dir = path
        run = sweep.start(path, plan, text, allow_mixed=allow_mixed)
        if resumed and not quiet:
            typer.echo(f"going on with {path} (--new starts afresh)", err=True)
        raise typer.Exit(sweep.execute(run, only_failed=only_failed, quiet=quiet))


def _submit(submission: Submission, *, wait: bool, **flags: bool) -> NoReturn:
    from andromeda_scale.commands import submitting

    job_id = submitting.submit(submission, **flags)
    typer.echo(f"job {job_id}; andromeda-scale status {submission.run_dir}", err=True)
    raise typer.Exit(submitting.follow(submission.run_dir, job_id) if wait else 0)

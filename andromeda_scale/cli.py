"""The commands, no logic: each reads its arguments, calls one stage, prints what was asked.

Exit status: 0 the command did what it says; 1 it could not finish, or a sweep measured nothing;
2 a mistake in what was given, before anything started; 130 interrupted.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from andromeda_scale.errors import UserError

if TYPE_CHECKING:
    from andromeda_scale.planned import Plan
    from andromeda_scale.submitting import Submission
    from andromeda_scale.suite_file import Loaded


class _Commands(TyperGroup):
    """Turns a user's mistake into one paragraph and status 2, and Ctrl-C into 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"andromeda-scale: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("andromeda-scale: interrupted", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distributed scaling benchmarks for training transformers: one YAML file to a table.",
)

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite or a YAML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the suite."),
]
Axes = Annotated[
    list[str] | None,
    typer.Option("--axis", metavar="KEY=V1,V2", help="Sweep one key over these values."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]
AllowMixed = Annotated[
    bool,
    typer.Option("--allow-mixed", help="Go on although software or hardware has changed."),
]


class Only(StrEnum):
    """What `--only` can select."""

    failed = "failed"


Wait = Annotated[
    bool,
    typer.Option("--wait", help="Follow a submitted job to its table; exit with its outcome."),
]
OnlyFailed = Annotated[
    Only | None, typer.Option("--only", help="failed: run again what did not end ok.")
]


@app.command()
def run(
    suite: SuiteName,
    set_: Sets = None,
    axis: Axes = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Default: runs/SUITE-DATE-TIME.")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Start afresh, resume nothing.")] = False,
    only: OnlyFailed = None,
    allow_mixed: AllowMixed = False,
    quiet: Quiet = False,
) -> None:
    """Plan, launch, measure, merge and print the scaling table; resumes an unfinished run.

    Status 0: every planned repeat has ended and at least one case was measured; failed cases are
    rows of the table. Status 1: nothing could be measured.
    """
    from andromeda_scale import sweep
    from andromeda_scale.plan import require_runnable

    plan, loaded = _plan(suite, set_, axis)
    require_runnable(plan, loaded.where)
    path, resumed = sweep.choose(plan, sweep.RUNS, run_dir, new=new, only_failed=only is not None)
    run = sweep.start(path, plan, loaded.text, allow_mixed=allow_mixed)
    if resumed and not quiet:
        typer.echo(f"going on with {path} (--new starts afresh)", err=True)
    raise typer.Exit(sweep.execute(run, only_failed=only is not None, quiet=quiet))


@app.command()
def resume(
    run_dir: RunPath,
    only: OnlyFailed = None,
    allow_mixed: AllowMixed = False,
    wait: Wait = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run where it stopped; what has ended stays. What was submitted, is again."""
    from andromeda_scale import submitting, sweep

    if submitting.was_submitted(run_dir):
        submission = submitting.again(run_dir)
        _submit(submission, wait=wait, only_failed=only is not None, allow_mixed=allow_mixed)
    run = sweep.reopen(run_dir, allow_mixed=allow_mixed)
    raise typer.Exit(sweep.execute(run, only_failed=only is not None, quiet=quiet))


@app.command()
def submit(
    suite: SuiteName,
    set_: Sets = None,
    axis: Axes = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir", help="Default: runs/SUITE-DATE-TIME; on a disk that all nodes see."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script; write and submit nothing.")
    ] = False,
    wait: Wait = False,
) -> None:
    """Run a suite as one SLURM job: an agent a node, smaller worlds on the first of its nodes."""
    from andromeda_scale import submitting, sweep
    from andromeda_scale.suite_file import read_suite

    loaded = read_suite(suite, set_ or [], axis or [])
    where = sweep.place(loaded.name, run_dir)
    submitting.refuse_used(where)
    submission = submitting.prepare(loaded, where.absolute())
    if dry_run:
        for name, text in submission.scripts().items():
            typer.echo(f"# {name}\n{text}" if loaded.suite.slurm.array else text.rstrip("\n"))
        return
    _submit(submission, wait=wait)


@app.command()
def cancel(run_dir: RunPath) -> None:
    """Stop a run: its SLURM job, or the driver on this machine. What has ended stays."""
    from andromeda_scale import submitting, sweep

    if not submitting.was_submitted(run_dir):
        typer.echo(f"told process {sweep.interrupt(run_dir)} to stop")
        return
    alive = submitting.cancel(run_dir)
    typer.echo(f"cancelled job {' '.join(alive)}" if alive else "no job of it is alive")


@app.command()
def plan(suite: SuiteName, set_: Sets = None, axis: Axes = None) -> None:
    """Show what would run, what is skipped and why, memory and launches; starts nothing."""
    from andromeda_scale.plan_table import print_plan
    from andromeda_scale.sweep import RUNS, earlier_seconds

    planned = _plan(suite, set_, axis)[0]
    print_plan(planned, earlier_seconds(planned, RUNS))


@app.command()
def status(run_dir: RunPath) -> None:
    """Say how far a run is: done, running, failed, time left; its SLURM jobs where it has any."""
    from andromeda_scale import submitting, sweep

    jobs = [str(job) for job in submitting.look(run_dir)]
    for line in (*jobs, *sweep.progress(run_dir, planned=not jobs)):
        typer.echo(line)


class Format(StrEnum):
    """How `report` prints the table."""

    terminal = "terminal"
    md = "md"
    csv = "csv"
    latex = "latex"
    json = "json"
    html = "html"


class Tracker(StrEnum):
    """Where `report` can send results."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"
    wandb = "wandb"


class Shown(StrEnum):
    """The tables that `report` can print."""

    scaling = "scaling"
    breakdown = "breakdown"
    communication = "communication"
    memory = "memory"
    phases = "phases"
    energy = "energy"
    laws = "laws"


@app.command()
def report(
    run_dir: RunPath,
    table: Annotated[
        Shown, typer.Option("--table", help="Which table of the run.")
    ] = Shown.scaling,
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.terminal,
    fairness: Annotated[
        bool, typer.Option("--fairness", help="Show every difference between the rows compared.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="A file to write, instead of stdout.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Draw the table again as repeats of a run end.")
    ] = False,
    to: Annotated[
        Tracker | None, typer.Option("--to", help="Send the results there instead.")
    ] = None,
) -> None:
    """Merge a run's records again and print one of its tables, or write its page.

    Needs the files alone. html: every table and figure in one file, report.html in RUN.
    """
    from andromeda_scale import reporting

    if follow and (to or output or fairness or format_ is not Format.terminal):
        raise UserError("--follow: draws a table on the terminal; leave the other options out")
    if follow:
        from andromeda_scale.following import follow as follow_run

        follow_run(run_dir, table.value)
        return
    if to is not None:
        reporting.export(run_dir, to.value)
        return
    reporting.report(run_dir, format_.value, table.value, fairness=fairness, output=output)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="The run to hold against.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The run to judge.")],
    fail_on_regression: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Status 1 where a case is slower by more: 2%."),
    ] = None,
    two_sided: Annotated[
        bool, typer.Option("--two-sided", help="Status 1 where one is faster by more, too.")
    ] = False,
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.terminal,
    output: Annotated[
        Path | None, typer.Option("--output", help="A file to write, instead of stdout.")
    ] = None,
) -> None:
    """Say what changed between two runs of the same cases, and which became slower or faster.

    Only differences beyond chance count, over all cases together; what noise hides is said.
    """
    from andromeda_scale import comparing

    status = comparing.compare(
        before,
        after,
        format_.value,
        fail_on_regression=fail_on_regression,
        two_sided=two_sided,
        output=output,
    )
    raise typer.Exit(status)


class Kind(StrEnum):
    """What `list` can list."""

    models = "models"
    suites = "suites"
    strategies = "strategies"
    collectors = "collectors"
    metrics = "metrics"


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List what is there, one line each."""
    from andromeda_scale.catalogue import entries

    rows = entries(kind.value)
    width = max(len(name) for name, _ in rows)
    for name, meaning in rows:
        typer.echo(f"{name:<{width}}  {meaning}".rstrip())


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the copies go.")],
) -> None:
    """Copy the shipped suites, models, launch scripts and SLURM templates, for editing."""
    from andromeda_scale.resources import copy_to

    number = len(copy_to(folder))
    typer.echo(f"{number} files; andromeda-scale run {folder}/suites/quickstart.yaml")


@app.command()
def schema() -> None:
    """Print the JSON schema of a suite file, for editors."""
    import json

    from andromeda_scale.suite_schema import suite_schema

    typer.echo(json.dumps(suite_schema(), indent=2))


class DeviceKind(StrEnum):
    """Where `probe` and `selftest` run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.command()
def probe(
    world: Annotated[
        str | None, typer.Option("--world", metavar="N,N", help="Default: 1,2,4 to what is here.")
    ] = None,
    device: Annotated[
        DeviceKind, typer.Option("--device", help="auto: GPUs where there are any.")
    ] = DeviceKind.auto,
    quick: Annotated[bool, typer.Option("--quick", help="A look: few sizes, little time.")] = False,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Default: runs/probe-DATE-TIME.")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Start afresh, resume nothing.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure this machine's ceilings: matrix products, memory, and what collectives reach.

    They are kept for this hardware: runs that start later hold their numbers against them.
    """
    from andromeda_scale import probing, sweep

    plan = probing.plan_here(world, device.value, quick=quick)
    path, resumed = sweep.choose(plan, sweep.RUNS, run_dir, new=new)
    run = sweep.start(path, plan, probing.SUITE_TEXT)
    if resumed and not quiet:
        typer.echo(f"going on with {path} (--new starts afresh)", err=True)
    raise typer.Exit(sweep.execute(run, quiet=quiet))


@app.command()
def selftest(
    device: Annotated[
        DeviceKind, typer.Option("--device", help="auto: GPUs where there are any.")
    ] = DeviceKind.auto,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer launches of each row.")] = False,
    quiet: Quiet = False,
) -> None:
    """Plant known truths here and print them beside what the instruments found of them.

    Status 0: nothing failed; what this machine's noise cannot decide is unavailable. It stores
    the machine's null floors, below which no later run blames a rank.
    """
    from andromeda_scale import selftest as made

    raise typer.Exit(made.run(device.value, quick=quick, quiet=quiet))


@app.command()
def doctor() -> None:
    """Check what works here, and the command that mends what does not.

    Status 1: the quickstart would not run.
    """
    from andromeda_scale.doctor import examine
    from andromeda_scale.sweep import RUNS

    broken = False
    for check in examine(RUNS):
        broken |= check.needed and not check.ok
        mark = "ok  " if check.ok else "FAIL" if check.needed else "lack"
        typer.echo(f"{mark}  {check.name}: {check.detail}")
        if not check.ok:
            typer.echo(f"      {check.remedy}")
    raise typer.Exit(1 if broken else 0)


def _plan(suite: str, sets: list[str] | None, axes: list[str] | None) -> tuple[Plan, Loaded]:
    from andromeda_scale.machine import detect_machine
    from andromeda_scale.plan import make_plan
    from andromeda_scale.suite_file import read_suite

    loaded = read_suite(suite, sets or [], axes or [])
    return make_plan(loaded.suite, loaded.name, detect_machine(), loaded.where), loaded


def _submit(submission: Submission, *, wait: bool, **flags: bool) -> NoReturn:
    from andromeda_scale import submitting

    job_id = submitting.submit(submission, **flags)
    typer.echo(f"job {job_id}; andromeda-scale status {submission.run_dir}", err=True)
    raise typer.Exit(submitting.follow(submission.run_dir, job_id) if wait else 0)


def finish(run_dir: Path, quiet: bool = False) -> int:
    """Merge, write and print a run; for agents that an outer launcher started."""
    from andromeda_scale import sweep

    return sweep.finish(run_dir, quiet)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()

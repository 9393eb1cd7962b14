"""Where `report` and `compare` may write, and what a file holds that could not be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from full_disk import no_room
from merging import even_run
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.commands.delivering import deliver, refuse_records
from andromeda_scale.errors import UserError

pytestmark = pytest.mark.slow  # most merge a run of their own


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = even_run(tmp_path_factory.mktemp("kept") / "run", world=1, repeats=1)
    return directory


@pytest.fixture
def run(tmp_path: Path, kept: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "run"))


def command(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout if code == 0 else done.stderr


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["plan.json", "lock", "results.parquet", "cases/x/0/node-0.jsonl", "cases", "slurm/y"]
)
def test_a_runs_own_file_is_never_an_output(run: Path, name: str) -> None:
    before = contents(run)
    said = command("report", run, "--format", "md", "--output", run / name, code=2)
    assert f"{run / name}: is one of the run's own files" in said
    other = shutil.copytree(run, run.parent / "other")
    assert "own files" in command("compare", run, other, "--output", run / name, code=2)
    assert contents(run) == before


def test_links_and_relative_paths_are_seen_through(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.parent / "link.md").symlink_to(run / "plan.json")
    monkeypatch.chdir(run / "cases")
    for name in ("../plan.json", "../../link.md", "../../run/./suite.yaml"):
        assert "own files" in command("report", run, "--format", "md", "--output", name, code=2)
    (run / "report.html").symlink_to("plan.json")
    assert "own files" in command("report", run, "--format", "html", code=2)


def test_records_of_a_run_that_was_not_named_are_safe_too(run: Path) -> None:
    (run / "lock").touch()
    with pytest.raises(UserError, match="own files"):
        refuse_records(run / "plan.json", run.parent / "another")
    refuse_records(run.parent / "plan.json", run)


def test_what_report_writes_there_is_replaced(run: Path) -> None:
    for name in ("table.md", "report.html", "mine/t.md"):
        (run / name).parent.mkdir(exist_ok=True)
        for _ in range(2):
            command("report", run, "--format", "md", "--output", run / name)
        assert (run / name).read_text().startswith("## ")


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "t.md"
    os.link(__file__, file)
    message = r"t.md: cannot be written \(File too large\)"
    with no_room(), pytest.raises(UserError, match=message):
        deliver("new", file)
    assert os.listdir(tmp_path) == ["t.md"]
    assert file.read_text().startswith('"""Where')


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    deliver("text", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_pipes_and_what_a_shell_opened_are_written_in_place(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    deliver("through a pipe", Path(f"/dev/fd/{theirs}"))
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        assert pipe.read() == "through a pipe"
    with open(tmp_path / "file", "w+") as file:
        deliver("in place", Path(f"/dev/fd/{file.fileno()}"))
        assert file.read() == "in place"
    with pytest.raises(UserError, match=r"/dev/full: cannot be written \(No space left"):
        deliver("text", Path("/dev/full"))


def test_the_page_has_every_table_and_takes_none(run: Path) -> None:
    said = command("report", run, "--format", "html", "--table", "memory", code=2)
    assert "--table memory: the page has every table" in said
    assert not (run / "report.html").exists()


def test_compare_offers_no_page(run: Path) -> None:
    assert "html" not in command("compare", "--help")
    assert "'html' is not one of" in command("compare", run, run, "--format", "html", code=2)

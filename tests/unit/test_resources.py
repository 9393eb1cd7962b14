"""What the package ships: where it is found, and the copies that `init` makes."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.errors import UserError
from andromeda_scale.planning.suite_file import read_suite
from andromeda_scale.suite import resources

REPOSITORY = Path(__file__).resolve().parents[2]


def test_in_a_repository_the_files_at_its_top_are_found() -> None:
    assert resources.TOP == REPOSITORY
    assert resources.find("suites", "quickstart") == REPOSITORY / "configs/suites/quickstart.yaml"


def test_init_copies_what_a_user_edits_byte_for_byte(tmp_path: Path) -> None:
    copies = resources.copy_to(tmp_path / "mine")
    for part, names in {
        "suites": {path.name for path in (REPOSITORY / "configs/suites").iterdir()},
        "models": {path.name for path in (REPOSITORY / "configs/models").iterdir()},
        "launch": {"torchrun.sh", "accelerate.sh", "deepspeed.sh", "mpirun.sh"},
        "slurm": {path.name for path in (REPOSITORY / "slurm").iterdir()},
    }.items():
        folder = REPOSITORY / ("configs" if part in ("suites", "models") else "") / part
        assert {path.name for path in copies if path.parent.name == part} == names
        assert filecmp.cmpfiles(folder, tmp_path / "mine" / part, names, shallow=False)[0]
    assert (tmp_path / "mine/launch/torchrun.sh").stat().st_mode & 0o111


def test_init_refuses_to_overwrite_and_then_writes_nothing(tmp_path: Path) -> None:
    edited = tmp_path / "suites" / "weak.yaml"
    edited.parent.mkdir()
    edited.write_text("mine", encoding="utf-8")
    done = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert done.exit_code == 2
    assert f"{edited}: is there already; nothing was written" in done.stderr
    assert edited.read_text(encoding="utf-8") == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [edited]


def test_init_into_a_file_or_a_foreign_folder_names_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, Path("/proc/1/andromeda")):
        with pytest.raises(UserError, match=f"{folder}.*: cannot be written"):
            resources.copy_to(folder)


def test_a_copied_suite_means_the_models_copied_beside_it(tmp_path: Path) -> None:
    resources.copy_to(tmp_path)
    model = tmp_path / "models" / "andromeda-tiny.yaml"
    model.write_text(model.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    edited = read_suite(str(tmp_path / "suites/quickstart.yaml")).suite.model
    assert edited == str(model)
    copied = read_suite(str(tmp_path / "suites/quickstart.yaml"), ["model=cs336-small"])
    assert copied.suite.model == str(tmp_path / "models/cs336-small.yaml")
    assert read_suite("quickstart").suite.model != edited


def test_a_models_path_starts_at_the_suite_or_where_the_option_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = resources.find("models", "andromeda-tiny").read_text(encoding="utf-8")
    for folder in ("suites", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.yaml").write_text(shipped, encoding="utf-8")
    suite = tmp_path / "suites" / "s.yaml"
    suite.write_text("question: q\nmodel: m.yaml\nworld: 1\naxes: {model.num_layers: [1, 2]}\n")
    monkeypatch.chdir(tmp_path / "here")
    # The axis below the model makes of its short form a mapping with a base.
    assert read_suite(str(suite)).suite.model == str(tmp_path / "suites/m.yaml")
    assert read_suite(str(suite), ["model=m.yaml"]).suite.model == str(tmp_path / "here/m.yaml")
    suite.write_text("question: q\nmodel: none.yaml\nworld: 1\n")
    with pytest.raises(UserError, match=r"suites/none\.yaml: no such file \(.*s\.yaml\); give"):
        read_suite(str(suite))

"""The package as a user installs it: a wheel in an environment that knows no repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = ("andromeda_scale", "benchmarks", "configs", "docs", "launch", "slurm", "tests")
LIMIT_S = 240
SMALL = (
    "--quiet --set train.seq_len=32 --set measure.repeats=1 --set measure.profile_steps=2".split()
)
SMALL += "--set measure.warmup.min_steps=0 --set measure.warmup.max_steps=0".split()
SMALL += "--set measure.steps=3 --set device=cpu".split()


def files(folder: Path, parts: tuple[str, ...]) -> set[str]:
    """Paths of the source files below some folders."""
    found = (path for part in parts for path in (folder / part).rglob("*"))
    return {
        path.relative_to(folder).as_posix()
        for path in found
        if path.is_file() and not {"__pycache__", "shipped"} & set(path.parts)
    }


def run(*command: str, folder: Path) -> str:
    """Its stdout, with nothing in the environment that leads to the repository."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*cache", ".hypothesis")
    for name in SHIPPED:
        shutil.copytree(REPOSITORY / name, folder / "source" / name, ignore=skip)
    for file in REPOSITORY.iterdir():
        if file.is_file():
            shutil.copy(file, folder / "source")
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, "-c", build, folder=folder / "source")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the source distribution makes, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    run(sys.executable, "-m", "pip", "wheel", *offline, str(sdist), folder=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel, beside the libraries of this one.

    A path in a .pth file is searched, but its own .pth files are not read: among them the one
    that leads to the repository.
    """
    env = tmp_path_factory.mktemp("env")
    run(sys.executable, "-m", "venv", "--without-pip", str(env), folder=env)
    site = next(env.glob("lib/python*/site-packages"))
    libraries = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)), encoding="utf-8")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed"]
    run(str(env / "bin/python"), *install, str(wheel), folder=env)
    return env / "bin"


def test_the_source_distribution_holds_the_repository(sdist: Path) -> None:
    assert files(sdist, SHIPPED) >= files(REPOSITORY, SHIPPED)
    tops = {"pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"}
    assert tops | {"constraints.txt"} <= {path.name for path in sdist.iterdir()}


def test_the_wheel_holds_every_module_and_what_the_repository_ships(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = {
        f"andromeda_scale/shipped/{name}"
        for name in files(REPOSITORY, ("configs", "launch", "slurm"))
    }
    assert held == files(REPOSITORY, ("andromeda_scale",)) | data


def test_an_installed_quickstart_runs_by_name_from_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    command = str(installed / "andromeda-scale")
    where = "import andromeda_scale; print(andromeda_scale.__file__)"
    found = run(str(installed / "python"), "-c", where, folder=tmp_path)
    assert found.startswith(str(installed.parent))
    two = ["--axis", "strategy=ddp", "--axis", "world=2"]
    table = run(command, "run", "quickstart", *two, *SMALL, folder=tmp_path)
    assert "Which strategy trains a small Andromeda fastest here" in table
    (results,) = tmp_path.glob("runs/quickstart-*/results.parquet")
    assert list(pd.read_parquet(results)["status"]) == ["ok"]

    # What `init` lays down is found beside the suite.
    assert "mine/suites/quickstart.yaml" in run(command, "init", "mine", folder=tmp_path)
    planned = run(command, "plan", "mine/suites/quickstart.yaml", folder=tmp_path)
    assert "andromeda-tiny_zero3_w2_fp32" in planned

"""What is recorded of a node, and what is never recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from andromeda_scale.hardware import environment
from andromeda_scale.suite.secret import is_secret


def test_variables_that_name_a_secret_are_never_recorded() -> None:
    secrets = ["TORCH_HUB_TOKEN", "NCCL_API_KEY", "CUDA_SECRET", "OMP_PASSWORD", "GLOO_AUTH"]
    variables = dict.fromkeys([*secrets, *map(str.lower, secrets)], "hunter2")
    assert environment.relevant_variables(variables) == {}


def test_an_address_with_a_password_is_never_recorded() -> None:
    assert environment.relevant_variables({"TORCH_MIRROR": "https://me:hunter2@host/x"}) == {}


@pytest.mark.parametrize(
    "name",
    ["DB_PWD", "HUB_PAT", "BEARER", "API", "CREDS", "PASS", "COOKIE", "WEBHOOK_URL", "DSN", "KEY2",
     "JWT", "APIKEY", "PASSPHRASE"],
)  # fmt: skip
def test_a_secret_word_in_a_known_prefix_is_never_recorded(name: str) -> None:
    assert environment.relevant_variables({f"NCCL_{name}": "x", f"FI_{name}_2": "x"}) == {}


def test_words_that_hold_a_secret_word_are_none() -> None:
    for name in ("NCCL_IB_PKEY", "OMP_PATH", "MKL_KEYBOARD", "NCCL_PATTERN", "GLOO_AUTHOR"):
        assert environment.relevant_variables({name: "1"}) == {name: "1"}
    assert not is_secret("TOKENIZERS_PARALLELISM", "false")
    assert not is_secret("NCCL_SOCKET_IFNAME", "task-1,eth0")


@pytest.mark.parametrize(
    "value",
    ["ghp_abc", "hf_abc", "sk-abc", "eyJhbGciOi", "xoxb-1-2", "AKIAABCDEFGHIJKLMNOP",
     "https://me:pw@host/x", "https://host/x?sig=abc", "Bearer abc", "x=hf_abc"],
)  # fmt: skip
def test_a_value_that_looks_like_a_secret_is_never_recorded(value: str) -> None:
    assert environment.relevant_variables({"NCCL_NET": value}) == {}


@pytest.mark.parametrize(
    "name", ["DS_DB_PWD", "TORCH_HUB_PAT", "DS_BEARER", "TORCH_API", "TORCHX_CREDS", "TORCH_HOME"]
)
def test_a_prefix_of_a_library_alone_records_nothing(name: str) -> None:
    assert environment.relevant_variables({name: "x"}) == {}


def test_only_variables_that_change_measurements_are_recorded() -> None:
    wanted = {"NCCL_ALGO": "Ring", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0,1"}
    others = {"HOME": "/root", "AWS_REGION": "x", "USER": "me", "MY_NCCL_ALGO": "Tree"}
    assert environment.relevant_variables(wanted | others) == wanted


def test_no_secret_of_the_process_reaches_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_PASSWORD", "hunter2")
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    recorded = json.dumps(environment.collect())
    assert "hunter2" not in recorded
    assert "Ring" in recorded


def test_a_node_says_versions_cores_memory_and_processor() -> None:
    found = environment.collect()
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["torch"]
    assert 1 <= found["cpu_cores"] <= os.cpu_count()
    assert found["memory_bytes"] > 0
    assert found["cpu_model"]
    assert found["hostname"]


def test_another_host_with_the_same_parts_is_the_same_system() -> None:
    here = environment.collect()
    there = here | {"hostname": "other", "kernel": "0", "variables": {"NCCL_ALGO": "Ring"}}
    assert environment.fingerprint(here) == environment.fingerprint(there)


@pytest.mark.parametrize(
    "change",
    [
        {"source_sha256": "0"},
        {"cpu_model": "other"},
        {"cpu_cores": 10_000},
        {"gpu_driver": "1.2"},
        {"gpus": [{"name": "GPU A", "uuid": "1", "memory_bytes": 1}]},
        {"versions": {"torch": "0.1"}},
    ],
)
def test_other_code_versions_or_hardware_is_another_system(change: dict[str, object]) -> None:
    here = environment.collect()
    assert environment.fingerprint(here) != environment.fingerprint(here | change)


def test_a_fingerprint_survives_the_record() -> None:
    here = environment.collect()
    assert environment.fingerprint(json.loads(json.dumps(here))) == environment.fingerprint(here)


def test_the_digest_changes_with_content_and_with_names(tmp_path: Path) -> None:
    digests = set()
    for number, (name, text) in enumerate([("a", "x = 1"), ("a", "x = 2"), ("b", "x = 1")]):
        package = tmp_path / str(number)
        package.mkdir()
        (package / f"{name}.py").write_text(text)
        digests.add(environment.source_digest(package))
    assert len(digests) == 3


def test_a_changed_package_is_a_dirty_commit(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1")
    assert environment.git_state(package) == {"commit": None, "dirty": None}
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, timeout=60)
    clean = environment.git_state(package)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "results.csv").write_text("not the package's")
    assert environment.git_state(package) == clean
    (package / "a.py").write_text("x = 2")
    assert environment.git_state(package) == clean | {"dirty": True}

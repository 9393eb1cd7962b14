"""Text as the tokens of a user's tokenizer: cut once, kept by content, refused where it cannot."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing as mp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from andromeda_scale.data import batches as data
from andromeda_scale.data import tokenizer
from andromeda_scale.errors import UserError
from andromeda_scale.suite.config import Data

WORDS = {"[UNK]": 0, "[BOS]": 1, "one": 2, "two": 3, "three": 4}
TEXT = "one two three two\n" * 50


@pytest.fixture(autouse=True)
def _cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 1)]
    )
    words.save("words.json")
    Path("a.txt").write_text(TEXT)


def source(**changes: Any) -> Data:
    return Data(**{"source": "files", "files": ("a.txt",), "tokenizer": "words.json", **changes})


def shards(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.u32"))


def test_batches_hold_the_tokenizers_ids_in_the_texts_order_without_special_ones() -> None:
    found = tokenizer.tokens([Path("a.txt"), Path("a.txt")], Path("words.json"))
    assert found.tolist() == [2, 3, 4, 3] * 100
    batches = data.Batches(
        source(), vocab_size=5, seq_len=4, micro_batch_size=2, grad_accum=1, rank=0, world_size=1,
        seed=0,
    )  # fmt: skip
    ids, labels = batches.micro_batch(0, 0)
    assert ids.tolist() == [[2, 3, 4, 3]] * 2
    assert labels.tolist() == [[3, 4, 3, 2]] * 2


def test_text_is_cut_once_and_again_when_text_or_tokenizer_change(tmp_path: Path) -> None:
    data.check(source(), vocab_size=5, seq_len=4)
    (first,) = shards(tmp_path)
    made = first.stat().st_mtime_ns
    data.check(source(), vocab_size=5, seq_len=4)
    assert [s.stat().st_mtime_ns for s in shards(tmp_path)] == [made]
    Path("a.txt").write_text(TEXT + "one")
    data.check(source(), vocab_size=5, seq_len=4)
    Path("words.json").write_text(Path("words.json").read_text() + "\n")
    data.check(source(), vocab_size=5, seq_len=4)
    assert len(shards(tmp_path)) == 3


def test_pieces_end_with_a_line_so_that_words_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_PIECE", 20)
    found = tokenizer.tokens([Path("a.txt")], Path("words.json"))
    assert found.tolist()[:12] == [2, 3, 4, 3] * 3


def _cut(folder: str) -> list[int]:
    files = [Path(folder) / "a.txt"]
    found: list[int] = tokenizer.tokens(files, Path(folder) / "words.json").tolist()
    return found


def test_ranks_that_start_at_once_get_the_same_whole_shard(tmp_path: Path) -> None:
    Path("a.txt").write_text(TEXT * 200)
    with mp.get_context("spawn").Pool(2) as pool:
        one, other = pool.map(_cut, [str(tmp_path)] * 2)
    assert one == other == [2, 3, 4, 3] * 50 * 200
    assert [path.suffix for path in sorted((tmp_path / "cache").rglob("*")) if path.is_file()] == [
        ".lock",
        ".u32",
    ]


def test_a_failure_leaves_no_shard_that_could_be_taken_for_whole(tmp_path: Path) -> None:
    Path("a.txt").write_bytes(b"one two\n" * 9 + b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"data.files: a.txt is not UTF-8 text .*; convert it"):
        tokenizer.tokens([Path("a.txt")], Path("words.json"))
    assert shards(tmp_path) == []
    assert [p.suffix for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [".lock"]


def test_an_empty_text_has_no_tokens() -> None:
    Path("a.txt").write_text(" \n")
    assert tokenizer.tokens([Path("a.txt")], Path("words.json")).size == 0


def test_every_shape_of_tokenizer_that_does_not_fit_is_refused_by_name() -> None:
    np.save("ids.npy", np.arange(100))
    Path("plain.json").write_text(json.dumps({"model_type": "llama"}))
    Path("s.model").write_bytes(b"\x0a\x0e")
    refusals = {
        "has ids up to 4, outside 0..3; raise the model's vocab_size to 5": (source(), 4),
        "s.model is a SentencePiece model; save it as tokenizer.json": (
            source(tokenizer="s.model"), 9,
        ),
        "plain.json is no tokenizer.json of Hugging Face": (source(tokenizer="plain.json"), 9),
        "none.json cannot be read (No such file or directory)": (source(tokenizer="none.json"), 9),
        "ids.npy holds token ids already; remove it": (source(files=("ids.npy",)), 999),
    }  # fmt: skip
    for words, (asked, vocab_size) in refusals.items():
        with pytest.raises(UserError) as caught:
            data.check(asked, vocab_size=vocab_size, seq_len=4)
        assert words in str(caught.value)
        assert str(caught.value).startswith("data.tokenizer: ")
    with pytest.raises(UserError, match=r"200 tokens in all are too few for train.seq_len 200"):
        data.check(source(), vocab_size=5, seq_len=200)


def test_without_the_library_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'andromeda-scale\[transformers\]'"):
        data.check(source(), vocab_size=5, seq_len=4)


def test_a_cache_that_cannot_be_written_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be made .*; set XDG_CACHE_HOME"):
        data.check(source(), vocab_size=5, seq_len=4)

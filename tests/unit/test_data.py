"""Token sources and batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andromeda_scale.data.batches import Batches, check
from andromeda_scale.errors import UserError
from andromeda_scale.suite.config import Data

STDLIB, RANDOM = Data(source="stdlib"), Data(source="random")


def _files(*paths: Path) -> Data:
    return Data(source="files", files=tuple(str(path) for path in paths))


def _batches(data: Data, **changes: Any) -> Batches:
    options = {
        "vocab_size": 256,
        "seq_len": 8,
        "micro_batch_size": 2,
        "grad_accum": 1,
        "rank": 0,
        "world_size": 1,
        "seed": 0,
    }
    return Batches(data, **{**options, **changes})


def _global_batch(data: Data, step: int, ranks: int, micro: int, accum: int) -> list[bytes]:
    split = {"micro_batch_size": micro, "grad_accum": accum, "world_size": ranks}
    rows = []
    for index in range(accum):
        for rank in range(ranks):
            tokens, labels = _batches(data, rank=rank, **split).micro_batch(step, index)
            assert tokens.shape == labels.shape == (micro, 8)
            assert tokens.dtype == labels.dtype == np.int64
            rows += [row.tobytes() for row in np.concatenate((tokens, labels), axis=1)]
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("data", [STDLIB, RANDOM], ids=lambda d: d.source)
@pytest.mark.parametrize("step", [0, 7])
def test_a_global_batch_is_the_same_however_it_is_split(data: Data, step: int) -> None:
    whole = _global_batch(data, step, ranks=1, micro=12, accum=1)
    assert len(set(whole)) == 12
    for ranks, micro, accum in ((2, 6, 1), (3, 2, 2), (12, 1, 1), (1, 3, 4)):
        assert _global_batch(data, step, ranks, micro, accum) == whole


@pytest.mark.parametrize("data", [STDLIB, RANDOM], ids=lambda d: d.source)
def test_the_fingerprint_knows_the_global_batches_and_nothing_else(data: Data) -> None:
    whole = _batches(data, micro_batch_size=4).fingerprint(3)
    assert _batches(data, micro_batch_size=1, world_size=4, rank=3).fingerprint(3) == whole
    assert _batches(data, micro_batch_size=2, grad_accum=2).fingerprint(3) == whole
    assert _batches(data, micro_batch_size=4, seed=1).fingerprint(3) != whole
    assert _batches(data, micro_batch_size=4).fingerprint(2) != whole


def test_tokens_are_counted_over_all_ranks() -> None:
    batches = _batches(RANDOM, micro_batch_size=3, grad_accum=2, world_size=4)
    assert batches.global_tokens == 3 * 2 * 8 * 4


def test_labels_are_the_next_tokens_of_the_text(tmp_path: Path) -> None:
    text = bytes(range(32, 120))
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    tokens, labels = _batches(_files(path)).micro_batch(0, 0)
    for row, following in zip(tokens, labels, strict=True):
        start = text.index(bytes(row.tolist()))
        assert start % 8 == 0
        assert bytes(following.tolist()) == text[start + 1 : start + 9]


def test_the_standard_librarys_sources_are_python() -> None:
    check(STDLIB, 256, 128)
    batches = _batches(STDLIB, seq_len=2000, micro_batch_size=64)
    text = bytes(batches.micro_batch(0, 0)[0].ravel().astype(np.uint8))
    assert text.count(b"def ") > 20


def test_random_ids_fill_the_vocabulary_evenly() -> None:
    tokens, _ = _batches(RANDOM, vocab_size=10, seq_len=2000, micro_batch_size=5).micro_batch(3, 0)
    counts = np.bincount(tokens.ravel(), minlength=10)
    assert (counts.size, tokens.min()) == (10, 0)
    assert counts.min() > 850


@settings(deadline=None, max_examples=50)
@given(size=st.integers(9, 400), seed=st.integers(0, 2**31))
def test_an_epoch_reads_every_window_once(
    size: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shard") / "ids.npy"
    np.save(path, np.arange(size))
    batches = _batches(_files(path), micro_batch_size=1, vocab_size=size, seed=seed)
    windows = (size - 1) // 8
    for epoch in range(2):  # short data starts again
        starts = [
            int(batches.micro_batch(epoch * windows + step, 0)[0][0, 0]) for step in range(windows)
        ]
        assert Counter(starts) == Counter(range(0, 8 * windows, 8))


def test_the_order_is_shuffled_and_another_in_the_next_epoch(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(8 * 100 + 1))
    batches = _batches(_files(path), micro_batch_size=100, vocab_size=801)
    first, second = (batches.micro_batch(step, 0)[0][:, 0].tolist() for step in (0, 1))
    assert first != sorted(first)
    assert first != second
    assert sorted(first) == sorted(second)


def test_windows_cross_the_borders_of_files(tmp_path: Path) -> None:
    paths = []
    for name, part in (("a", b"abc"), ("b", b""), ("c", b"defghi"), ("d", b"jklmnopq")):
        paths.append(tmp_path / f"{name}.txt")
        paths[-1].write_bytes(part)
    tokens, labels = _batches(_files(*paths)).micro_batch(0, 0)
    rows = {bytes(t.tolist()): bytes(v.tolist()) for t, v in zip(tokens, labels, strict=True)}
    assert rows == {b"abcdefgh": b"bcdefghi", b"ijklmnop": b"jklmnopq"}


def test_shards_of_both_kinds_hold_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(17, dtype=np.int32))
    np.arange(17, 33).astype("<u2").tofile(tmp_path / "b.bin")
    data = _files(tmp_path / "a.npy", tmp_path / "b.bin")
    check(data, 33, 8)
    tokens, labels = _batches(data, micro_batch_size=4).micro_batch(0, 0)
    assert sorted(tokens.ravel().tolist()) == list(range(32))
    assert sorted(labels.ravel().tolist()) == list(range(1, 33))


def test_impossible_data_is_refused_with_its_name_and_a_remedy(tmp_path: Path) -> None:
    def made(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    text, shard = made("a.txt", b"some text, long enough"), made("a.bin", b"\1\0" * 20)
    np.save(tmp_path / "float.npy", np.ones(20))
    np.save(tmp_path / "table.npy", np.ones((5, 4), np.int64))
    np.save(tmp_path / "negative.npy", np.full(20, -1))
    np.save(tmp_path / "pickled.npy", np.array([{}] * 20), allow_pickle=True)
    refused = [
        (_files(tmp_path / "none.txt"), 256, "cannot be read .No such file"),
        (_files(tmp_path), 256, "is a folder"),
        (Data(source="files", files=("a\0b",)), 256, "cannot be read"),
        (_files(made("empty.txt", b"")), 256, "empty.txt holds no text"),
        (_files(text, made("blank.txt", b" \n\t" * 40)), 256, "blank.txt holds no text"),
        (_files(made("short.txt", b"12345678")), 256, "8 tokens .* train.seq_len 8, which needs 9"),
        (_files(text), 255, "model.vocab_size: 255 cannot hold text"),
        (STDLIB, 100, "model.vocab_size: 100 cannot hold text"),
        (_files(text, shard), 256, "files of one kind"),
        (_files(made("odd.bin", b"123")), 256, "odd number of bytes"),
        (_files(shard), 65537, "a.bin holds 16-bit ids.* model.vocab_size 65537.*to .npy"),
        (_files(shard), 1, "holds the id 1, outside 0..0"),
        (_files(made("no.npy", b"not numpy")), 256, "no.npy is no array"),
        (_files(made("cut.npy", b"")), 256, "cut.npy is no array"),
        (_files(tmp_path / "pickled.npy"), 256, "pickled.npy is no array"),
        (_files(tmp_path / "float.npy"), 256, "not one list of integer ids"),
        (_files(tmp_path / "table.npy"), 256, "not one list of integer ids"),
        (_files(tmp_path / "negative.npy"), 256, "holds the id -1"),
    ]
    for data, vocab_size, told in refused:
        with pytest.raises(UserError, match=told):
            check(data, vocab_size, 8)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("some text, long enough")
    path.chmod(0)
    return path


@pytest.mark.usefixtures("secret_file", "unprivileged")
def test_an_unreadable_file_is_refused(secret_file: Path) -> None:
    with pytest.raises(UserError, match="Permission denied"):
        check(_files(secret_file), 256, 8)


def test_random_ids_need_no_file_and_any_vocabulary() -> None:
    check(RANDOM, 1, 10**6)
    assert _batches(RANDOM, vocab_size=1).micro_batch(0, 0)[0].max() == 0

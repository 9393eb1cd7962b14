"""Token sources and seeded batches (numpy; no torch).

Text is read as bytes: a token is a byte, and a vocabulary needs 256 ids; or as the tokens of a
user's tokenizer. A source is cut into
windows of seq_len + 1 tokens, whose labels are the tokens one further on. Sequence k of a seed is
the same window under every strategy, world and accumulation; step s trains on sequences s * G to
(s + 1) * G - 1, with G the global batch. Short data starts again, in another order.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.data import tokenizer
from andromeda_scale.errors import UserError
from andromeda_scale.suite.config import Data

Ids = NDArray[np.int64]

BYTE_VOCABULARY = 256
SHARD_SUFFIXES = (".npy", ".bin")
_CHUNK = 1 << 24  # tokens looked at in one go while checking
_PROBED = 1 << 20  # bytes of a text file in which a NUL tells that it is binary


def check(data: Data, vocab_size: int, seq_len: int) -> None:
    """Raise UserError when the source cannot feed a model of this vocabulary and length."""
    if data.source == "random":
        return
    paths = _paths(data)
    shards = [path for path in paths if path.suffix in SHARD_SUFFIXES]
    if shards and len(shards) < len(paths):
        text = next(path for path in paths if path not in shards)
        raise UserError(
            f"data.files: {shards[0]} holds token ids and {text} text, and the ids of one mean "
            "nothing in the other; give files of one kind"
        )
    if shards and data.tokenizer is not None:
        raise UserError(
            f"data.tokenizer: {shards[0]} holds token ids already; remove it, or give text"
        )
    if data.tokenizer is not None:
        tokenizer.check(Path(data.tokenizer), vocab_size)
    elif not shards and vocab_size < BYTE_VOCABULARY:
        raise UserError(
            f"model.vocab_size: {vocab_size} cannot hold text read as bytes; "
            f"use {BYTE_VOCABULARY} or more, or data.source: random"
        )
    if data.source == "stdlib" and data.tokenizer is None:
        _check_length(sum(path.stat().st_size for path in paths), seq_len)
        return  # Python's own files need no look inside
    parts = [_open(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if not shards and not part[:_PROBED].all():
            raise UserError(
                f"data.files: {path} holds NUL bytes and so is no text; use .bin or .npy for tokens"
            )
        if data.source == "files" and not shards and not _has_text(part):
            raise UserError(f"data.files: {path} holds no text; give a file with text")
        if shards:
            _check_ids(path, part, vocab_size)
    if data.tokenizer is not None:
        parts = [tokenizer.tokens(paths, Path(data.tokenizer))]
    _check_length(sum(part.size for part in parts), seq_len)


def _check_length(num_tokens: int, seq_len: int) -> None:
    if num_tokens <= seq_len:
        raise UserError(
            f"data: {num_tokens} tokens in all are too few for train.seq_len {seq_len}, "
            f"which needs {seq_len + 1}; give more text or a smaller train.seq_len"
        )


class Source(Protocol):
    """Where a training step finds its batches."""

    global_tokens: int  # of a step, over all ranks

    def micro_batch(self, step: int, index: int) -> tuple[Ids, Ids]:
        """(tokens, labels), each (micro_batch_size, seq_len) int64, of micro-batch `index`."""
        ...


class Batches:
    """The micro-batches of one rank.

    micro_batch_size: sequences per rank and micro-batch; grad_accum: micro-batches per step;
    uneven: the sequences of ranks that have others.
    """

    def __init__(
        self,
        data: Data,
        *,
        vocab_size: int,
        seq_len: int,
        micro_batch_size: int,
        grad_accum: int,
        rank: int,
        world_size: int,
        seed: int,
        uneven: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        sizes = [uneven.get(one, micro_batch_size) for one in range(world_size)]
        self._over_ranks = sum(sizes)  # sequences of a micro-batch
        self._before = sum(sizes[:rank])  # of these, on the ranks before this one
        self._size = sizes[rank]
        self.global_batch_size = self._over_ranks * grad_accum
        self.global_tokens = self.global_batch_size * seq_len
        self._sequences: _RandomIds | _Windows
        if data.source == "random":
            self._sequences = _RandomIds(vocab_size, seq_len, seed)
        else:
            self._sequences = _Windows(_parts(data), seq_len, seed)

    def micro_batch(self, step: int, index: int) -> tuple[Ids, Ids]:
        first = step * self.global_batch_size + index * self._over_ranks + self._before
        rows = np.stack([self._sequences[k] for k in range(first, first + self._size)])
        return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])

    def fingerprint(self, num_steps: int) -> str:
        """SHA-256 over the sequences of all ranks in the first `num_steps` steps, in order."""
        digest = hashlib.sha256()
        for k in range(num_steps * self.global_batch_size):
            digest.update(self._sequences[k].astype("<i8").tobytes())
        return digest.hexdigest()


class _RandomIds:
    """Sequence k: seq_len + 1 uniform ids drawn from (seed, k)."""

    def __init__(self, vocab_size: int, seq_len: int, seed: int) -> None:
        self._vocab_size = vocab_size
        self._length = seq_len + 1
        self._seed = seed

    def __getitem__(self, k: int) -> Ids:
        return np.random.default_rng((self._seed, k)).integers(self._vocab_size, size=self._length)


class _Windows:
    """Sequence k: a window of the files' tokens, as if they were one, in a seeded order."""

    def __init__(self, parts: list[NDArray[Any]], seq_len: int, seed: int) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.size for part in parts])
        self._seq_len = seq_len
        self._num_windows = (int(self._ends[-1]) - 1) // seq_len
        self._seed = seed
        self._epoch = -1
        self._stride = self._offset = 0

    def __getitem__(self, k: int) -> Ids:
        epoch, position = divmod(k, self._num_windows)
        if epoch != self._epoch:
            self._epoch, (self._stride, self._offset) = epoch, self._order(epoch)
        window = (position * self._stride + self._offset) % self._num_windows
        return self._read(window * self._seq_len)

    def _order(self, epoch: int) -> tuple[int, int]:
        """(a, b): position i of an epoch is window (a i + b) mod n, a permutation as gcd(a, n) = 1.

        A drawn permutation of a large corpus would take longer to build than a step.
        """
        rng = np.random.default_rng((self._seed, epoch))
        while True:
            stride, offset = (int(x) for x in rng.integers(self._num_windows, size=2))
            if math.gcd(stride, self._num_windows) == 1:
                return stride, offset

    def _read(self, start: int) -> Ids:
        """Tokens start to start + seq_len, both included, across the files' borders."""
        stop = start + self._seq_len + 1
        index = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while start < stop:
            end = min(int(self._ends[index]), stop)
            base = int(self._ends[index]) - self._parts[index].size
            pieces.append(self._parts[index][start - base : end - base])
            start, index = end, index + 1
        return np.concatenate(pieces).astype(np.int64)


def _paths(data: Data) -> list[Path]:
    if data.source == "files":
        return [Path(name) for name in data.files]
    folder = Path(sysconfig.get_path("stdlib"))
    # The top-level modules alone: 5 MB of text, opened in milliseconds by every rank.
    paths = sorted(path for path in folder.glob("*.py") if path.is_file())
    if not paths:
        raise UserError(
            f"data.source: stdlib finds no .py files in {folder}; use data.source: files or random"
        )
    return paths


def _parts(data: Data) -> list[NDArray[Any]]:
    """The tokens of a source, in order."""
    if data.tokenizer is not None:
        return [tokenizer.tokens(_paths(data), Path(data.tokenizer))]
    return [_open(path) for path in _paths(data)]


def _open(path: Path) -> NDArray[Any]:
    """The file's tokens, memory-mapped: bytes, or the ids of a shard."""
    try:
        if path.is_dir():
            raise UserError(f"data.files: {path} is a folder; name the files in it")
        if path.exists() and not path.is_file():
            raise UserError(f"data.files: {path} is a pipe, a socket or a device; name a file")
        if path.suffix == ".npy":
            return _open_npy(path)
        size = path.stat().st_size
        if path.suffix == ".bin":
            if size % 2:
                raise UserError(
                    f"data.files: {path} has an odd number of bytes ({size}), but a .bin shard "
                    "holds 16-bit ids; convert it to .npy, or rename a text file to .txt"
                )
            return np.memmap(path, dtype="<u2", mode="r") if size else np.empty(0, np.uint16)
        return np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
    except (OSError, ValueError) as error:  # ValueError: a name no file system allows
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"data.files: {path} cannot be read ({why}); name a readable file"
        ) from error


def _open_npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"data.files: {path} is no array of numpy ({error}); save one with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(
            f"data.files: {path} is not one list of integer ids; save a 1-D integer array"
        )
    return array


def _chunks(part: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, part.size, _CHUNK):
        yield part[start : start + _CHUNK]


def _has_text(part: NDArray[Any]) -> bool:
    return any(chunk.tobytes().strip() for chunk in _chunks(part))


def _check_ids(path: Path, part: NDArray[Any], vocab_size: int) -> None:
    if path.suffix == ".bin" and vocab_size > 1 << 16:
        raise UserError(
            f"data.files: {path} holds 16-bit ids, as a .bin shard does, which end before "
            f"model.vocab_size {vocab_size}; convert it to .npy: longer ids would be read as pairs"
        )
    for chunk in _chunks(part):
        for value in (int(chunk.max()), int(chunk.min())):
            if not 0 <= value < vocab_size:
                raise UserError(
                    f"data.files: {path} holds the id {value}, outside 0..{vocab_size - 1}; "
                    "use shards made for this model's vocabulary, or raise model.vocab_size"
                )

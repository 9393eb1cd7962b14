"""Text as the tokens of a user's tokenizer.json, cut once and kept in a cache (no torch).

Files are cut in pieces of about a million characters that end with a line, without the special
tokens that a tokenizer puts around a text. The shard's name is the SHA-256 of the tokenizer and
of all files, so neither can change without a new shard; it appears whole, by a rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.errors import UserError

_PIECE = 1 << 20  # characters
_BATCH = 16  # pieces that threads cut at once
_FORMAT = b"andromeda_scale tokens 1"
_OTHERS = {
    ".model": "a SentencePiece model",
    ".tiktoken": "a tiktoken vocabulary",
    ".txt": "a vocabulary in text",
    ".bpe": "a list of merges",
}


def check(path: Path, vocab_size: int) -> None:
    """Raise UserError when the tokenizer cannot be read, or has ids that the model has not."""
    size = 1 + max(_load(path).get_vocab(with_added_tokens=True).values(), default=-1)
    if size > vocab_size:
        raise UserError(
            f"data.tokenizer: {path} has ids up to {size - 1}, outside 0..{vocab_size - 1}; raise "
            f"the model's vocab_size to {size} or more, or use its own tokenizer"
        )


def tokens(files: Sequence[Path], path: Path) -> NDArray[Any]:
    """The tokens of all files, in order, memory-mapped; whoever comes first makes the shard."""
    shard = _folder() / _key(files, path)
    if not shard.exists():
        try:
            with _alone(shard.with_suffix(".lock")):
                if not shard.exists():
                    _make(files, _load(path), shard)
        except OSError as error:
            raise UserError(
                f"data.tokenizer: {shard} cannot be written ({error.strerror}); make room, or set "
                "XDG_CACHE_HOME to a folder of yours"
            ) from error
    if not shard.stat().st_size:
        return np.empty(0, np.uint32)
    return np.memmap(shard, dtype="<u4", mode="r")


def _load(path: Path) -> Any:
    if path.suffix in _OTHERS:
        raise UserError(
            f"data.tokenizer: {path} is {_OTHERS[path.suffix]}; save it as tokenizer.json with "
            "Hugging Face's tokenizers"
        )
    if importlib.util.find_spec("tokenizers") is None:
        raise UserError(
            "data.tokenizer: needs the package tokenizers; "
            "pip install 'andromeda-scale[transformers]'"
        )
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"data.tokenizer: {path} cannot be read ({error.strerror}); name a tokenizer.json"
        ) from error
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"data.tokenizer: {path} is no tokenizer.json of Hugging Face ({error}); save one with "
            "Tokenizer.save"
        ) from error


def _make(files: Sequence[Path], tokenizer: Any, shard: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=shard.parent, prefix=shard.name, delete=False) as out:
        try:
            for batch in (batch for file in files for batch in _batches(file)):
                for found in tokenizer.encode_batch(batch, add_special_tokens=False):
                    out.write(np.array(found.ids, dtype="<u4").tobytes())
            out.flush()
            os.replace(out.name, shard)
        except BaseException:  # a shard in the making is no shard
            os.unlink(out.name)
            raise


def _batches(file: Path) -> Iterator[list[str]]:
    """The text of a file in batches of pieces."""
    try:
        with file.open(encoding="utf-8", newline="") as text:
            batch = []
            while piece := text.read(_PIECE):
                batch.append(piece + text.readline(_PIECE))
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
            yield batch
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.files: {file} is not UTF-8 text ({error.reason}), and a tokenizer cuts text; "
            "convert it, or remove data.tokenizer"
        ) from error


def _key(files: Sequence[Path], path: Path) -> str:
    digest = hashlib.sha256(_FORMAT)
    for one in (path, *files):
        try:
            with one.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"data: {one} cannot be read ({error.strerror}); name a readable file"
            ) from error
    return f"{digest.hexdigest()}.u32"


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "andromeda_scale" / "tokens"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.tokenizer: {folder} cannot be made ({error.strerror}); set XDG_CACHE_HOME to a "
            "folder of yours"
        ) from error
    return folder


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time, where the file system has locks."""
    with path.open("a") as lock:
        with contextlib.suppress(OSError):  # without locks the same shard is made more than once
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

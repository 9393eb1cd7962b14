"""torchtitan's training of Llama 3.1, timed as bare_loop.py is. It needs `pip install torchtitan`.

    torchrun --nproc-per-node 2 benchmarks/titan_loop.py llama-3.1-8b --set compile=true

FSDP2 with compiled blocks and loss, no checkpointing, fused AdamW, clipping at 1; torchtitan always
reduces gradients in float32. Its text is words drawn at random. The last line that rank 0 prints is
one of JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

FLAVORS = {"llama-3.1-8b": "8B", "llama-tiny": "debugmodel"}
WORDS = [f"w{index}" for index in range(2000)]

parser = argparse.ArgumentParser()
parser.add_argument("model", choices=FLAVORS)
parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", dest="sets")
parser.add_argument("--warmup", type=int, default=5)
parser.add_argument("--steps", type=int, default=20)
asked = parser.parse_args()
train = {key: json.loads(value) for key, _, value in (s.partition("=") for s in asked.sets)}
if train["precision"] != "bf16" or train.get("grad_accum", 1) != 1 or "mode" in train:
    raise ValueError("train: torchtitan is timed at whole steps in bf16, a micro-batch each")
last_step = asked.warmup + asked.steps
found: dict[str, Any] = {}


def write_text(folder: Path) -> None:
    """A tokenizer of words, and words."""
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<unk>")
    ids = {word: index for index, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": special[0], "eos_token": special[1], "unk_token": special[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    drawn = random.Random(0)
    texts = (" ".join(drawn.choices(WORDS, k=1000)) for _ in range(1000))
    (folder / "c4").mkdir()
    (folder / "c4" / "data.json").write_text("".join(f'{{"text": "{t}"}}\n' for t in texts))


def options(folder: str) -> list[str]:
    """torchtitan's command line."""
    return [
        *("--model.name=llama3", f"--model.flavor={FLAVORS[asked.model]}"),
        *(f"--model.hf_assets_path={folder}", f"--training.dataset_path={folder}/c4"),
        *("--training.dataset=c4_test", f"--training.steps={last_step}"),
        f"--training.local_batch_size={train['micro_batch_size']}",
        f"--training.seq_len={train['seq_len']}",
        *("--activation_checkpoint.mode=none", f"--job.dump_folder={folder}/out"),
        *(["--compile.enable"] if train["compile"] else []),
    ]


def run() -> None:
    """torchtitan's training; the steps behind the first `warmup` are timed as one window."""
    from torchtitan import train as titan  # it reads the command line when it is imported

    class Timed(titan.Trainer):  # type: ignore[misc]  # not there where types are checked
        def train_step(self, data: Any) -> None:
            if self.step == asked.warmup + 1:
                torch.cuda.synchronize()
                self._start = time.perf_counter()
            super().train_step(data)
            if self.step == last_step:
                torch.cuda.synchronize()
                found["step_s"] = (time.perf_counter() - self._start) / asked.steps
                found["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()

    titan.main(Timed)


with tempfile.TemporaryDirectory() as home:
    write_text(Path(home))
    sys.argv[1:] = options(home)
    run()
if os.environ["RANK"] == "0":
    found["torchtitan"] = importlib.metadata.version("torchtitan")
    print(json.dumps(found), flush=True)

"""What torch's attention kernels cannot do, whatever the model and the strategy. No torch."""

from __future__ import annotations

from andromeda_scale.suite.training import Train

MIN_FLEX_HEAD_DIM = 16  # of Triton's matrix product


def refusal(train: Train, device: str) -> str | None:
    """Why no strategy can take such a step on this kind of device; None if all can."""
    if train.attention == "flex" and device == "cpu" and train.mode != "forward":
        return (
            "train.attention: FlexAttention has no backward on a CPU; use another kernel, or "
            "train.mode: forward"
        )
    if device == "cpu" and train.attention_backend in ("cudnn", "efficient"):
        return (
            f"train.attention_backend: {train.attention_backend} is a backend of CUDA GPUs; "
            "use auto, flash or math"
        )
    if device == "cpu" and train.compiling and train.compiling.cuda_graphs:
        return (
            f"train.compile: mode: {train.compiling.mode} records CUDA graphs; use "
            "{whole: true} alone, or true, on a CPU"
        )
    return None

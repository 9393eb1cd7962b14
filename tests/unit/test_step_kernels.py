"""benchmarks/step_kernels.py: what a step's time goes into, by operator and kind."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from andromeda_scale.collectors.trace import Recording, read_timeline
from andromeda_scale.rank.train_step import marked

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import step_kernels


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_TNT", "products"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "update"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_red_fused__to_copy_add_mul_3", "compiled"),
        ("void at::native::_scatter_gather_elementwise_kernel<128, 4>", "other"),
        ("void at::native::elementwise_kernel<128, 4>", "other"),
    ],
)
def test_a_kernel_has_its_kind(name: str, kind: str) -> None:
    assert step_kernels.kind_of(name) == kind


def test_operators_are_counted_without_those_within_them() -> None:
    x = torch.ones(64, 64)
    recording = Recording(None)
    for _ in range(2):
        with marked("step"):
            torch.nn.functional.linear(x, x)  # aten::linear, aten::t, aten::matmul, aten::mm
    events, _ = recording.stop()
    timeline = read_timeline(events)
    spans = step_kernels.kernels(events)
    assert {"aten::linear", "aten::mm"} <= spans.keys()
    apart = np.concatenate(list(spans.values()))
    apart = apart[np.argsort(apart[:, 0])]
    assert (apart[1:, 0] >= apart[:-1, 1]).all()  # no nanosecond twice
    kinds = {
        line.split()[0]: line.split()[1:] for line in step_kernels.table(spans, timeline) if line
    }
    assert float(kinds["products"][0]) > 0
    parts = sum(float(kinds[kind][0]) for kind in ("products", "other", "idle"))
    assert parts == pytest.approx(float(kinds["step"][0]), abs=0.01)  # printed to a microsecond

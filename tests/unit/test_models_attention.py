"""Attention kernels: one function, four ways, and a record of what ran."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from model_shapes import SMALL, SMALL_ANDROMEDA, SMALL_LLAMA, materialised, shape_of
from torch.autograd.profiler import profile
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask

from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.models.positions import PositionTables
from andromeda_scale.rank.readback import _attention_op, attention_ops
from andromeda_scale.suite.training import Train

KERNELS = ("naive", "sdpa_causal", "sdpa_bias")
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL_LLAMA, "head_dim": 16},
    "llama without groups": {**SMALL_LLAMA, "head_dim": 16, "num_kv_heads": 6},
    "alibi on half": SMALL_ANDROMEDA,
    "alibi on none": {**SMALL_ANDROMEDA, "alibi_num_heads": 0},
    "alibi on all": {**SMALL_ANDROMEDA, "alibi_num_heads": 6},
    "alibi across a group": {**SMALL_ANDROMEDA, "alibi_num_heads": 2},
    "one key": {**SMALL_ANDROMEDA, "num_kv_heads": 1},
    "no groups": {**SMALL_ANDROMEDA, "num_kv_heads": 6},
}


@torch.no_grad()
def _sharp(model: dict[str, Any], **train: Any) -> Any:
    """A model whose softmax is far from flat, as it is with freshly drawn weights."""
    module = materialised(model, **train)
    for name, parameter in module.named_parameters():
        if "proj" in name:
            parameter.mul_(10)
    return module


def _loss_and_gradients(model: dict[str, Any], kernel: str) -> tuple[float, list[torch.Tensor]]:
    module = _sharp(model, attention=kernel)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(257, (2, 13), generator=generator)  # shorter than the tables
    loss, num_tokens = module(tokens, tokens)
    loss.backward()
    return loss.item() / num_tokens, [p.grad for p in module.parameters()]


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS)
def test_kernels_agree_in_loss_and_gradients(model: dict[str, Any]) -> None:
    expected, gradients = _loss_and_gradients(model, "naive")
    for kernel in ("sdpa_causal", "sdpa_bias"):
        loss, found = _loss_and_gradients(model, kernel)
        assert loss == pytest.approx(expected, rel=1e-6), kernel
        torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5)


def test_attention_is_the_written_formula() -> None:
    """softmax over j <= i of 10 q_i k_j - slope (i - j), unit q and k, heads in groups."""
    model = {**SMALL_ANDROMEDA, "num_layers": 1}
    attention = materialised(model, attention="naive").blocks[0].attention
    with torch.no_grad():
        attention.qk_norm.q_scale.uniform_(0.5, 1.5)
        attention.qk_norm.k_scale.uniform_(0.5, 1.5)
    tables = attention._tables[0]
    x = torch.randn(1, 5, 48)
    q = (x @ attention.q_proj.weight.T).view(5, 6, 40)
    k = (x @ attention.k_proj.weight.T).view(5, 2, 40)
    v = (x @ attention.v_proj.weight.T).view(5, 2, 40)
    slopes = [2.0**-4, 2.0**-8, 2.0**-2, 0, 0, 0]
    out = torch.zeros(5, 6, 40)
    for head in range(6):
        for i in range(5):
            logits = []
            for j in range(i + 1):
                query = _turned(q[i, head], attention.qk_norm.q_scale, tables.rotary_q[:, i])
                key = _turned(k[j, head // 3], attention.qk_norm.k_scale, tables.rotary_k[:, j])
                logits.append(10 * (query @ key).item() - slopes[head] * (i - j))
            weights = torch.tensor(logits).softmax(0)
            out[i, head] = sum(weights[j] * v[j, head // 3] for j in range(i + 1))
    expected = out.view(5, 240) @ attention.out_proj.weight.T
    torch.testing.assert_close(attention(x)[0], expected, rtol=1e-4, atol=1e-6)


def _turned(x: torch.Tensor, scale: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    x = x / x.norm() * scale
    turned = x.clone()
    for pair in range(16):
        a, b, (cos, sin) = x[pair], x[pair + 16], table[:, pair]
        turned[pair], turned[pair + 16] = a * cos - b * sin, b * cos + a * sin
    return turned


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama without groups", "alibi on half", "no groups"])
@torch.no_grad()
def test_flex_agrees_with_naive(name: str) -> None:
    """Its mathematics, uncompiled and without gradients, of which torch has none on a CPU."""
    model, seq_len = VARIANTS[name], 140  # a block of the mask, and a part of one
    tokens = torch.randint(257, (2, seq_len), generator=torch.Generator().manual_seed(1))
    naive, flex = (
        _sharp(model, attention=kernel, compile=True, seq_len=seq_len).logits(tokens)
        for kernel in ("naive", "flex")
    )
    torch.testing.assert_close(flex, naive, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no backward of flex on a CPU")
@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS)
def test_flex_agrees_with_naive_in_gradients_on_a_gpu(model: dict[str, Any]) -> None:
    found = []
    for kernel in ("naive", "flex"):
        module = _sharp(model, attention=kernel, compile=True, seq_len=260).cuda()
        for block in module.blocks:
            block.forward = torch.compile(block.forward)
        tokens = torch.randint(257, (2, 260), generator=torch.Generator().manual_seed(1)).cuda()
        module(tokens, tokens)[0].backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_flex_holds_no_bias_and_one_mask_for_all_blocks() -> None:
    """(T / 128)^2 entries instead of h T^2: what is left out is above the diagonal."""
    module = materialised(SMALL_ANDROMEDA, attention="flex", compile=True, seq_len=512)
    tables = module.tables
    assert tables.bias.numel() == 0
    assert tables.block_mask.kv_num_blocks[0, 0].tolist() == [1, 1, 1, 1]  # cut: the diagonal's
    assert tables.block_mask.full_kv_num_blocks[0, 0].tolist() == [0, 1, 2, 3]
    assert all(block.attention._tables[0] is tables for block in module.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("seq_len", [1, 128, 200, 1000])
def test_the_mask_of_flex_is_the_one_torch_finds_from_all_elements(seq_len: int) -> None:
    made = materialised(SMALL_ANDROMEDA, attention="flex", compile=True, seq_len=seq_len)
    ours = made.tables.block_mask
    expected = create_block_mask(
        lambda batch, head, query, key: query >= key, None, None, seq_len, seq_len, device="cpu"
    )
    assert ours.shape == expected.shape
    assert ours.BLOCK_SIZE == expected.BLOCK_SIZE
    for side in ("kv", "q"):  # rows of queries in forward, columns of keys in backward
        for name in (f"{side}_num_blocks", f"{side}_indices"):
            found, known = getattr(ours, name), getattr(expected, name)
            assert torch.equal(found, known), name
            assert (found.dtype, found.stride()) == (known.dtype, known.stride())
            whole, known = getattr(ours, f"full_{name}"), getattr(expected, f"full_{name}")
            if known is None:  # torch leaves out lists that are empty in every row
                assert not ours.full_kv_num_blocks.any()
            else:
                assert torch.equal(whole, known), name
            assert (whole.dtype, whole.stride()) == (found.dtype, found.stride())


@pytest.mark.slow
@torch.no_grad()
def test_the_mask_of_flex_survives_copies_casts_and_the_meta_device() -> None:
    tokens = torch.randint(257, (2, 16))
    module = materialised(SMALL_ANDROMEDA, attention="flex", compile=True)
    expected = module.logits(tokens)
    assert torch.equal(copy.deepcopy(module).logits(tokens), expected)
    rounded = copy.deepcopy(module).bfloat16().logits(tokens)
    torch.testing.assert_close(rounded.float(), expected, rtol=0.1, atol=0.05)
    assert (
        ModelFactory(SMALL_ANDROMEDA, Train(attention="flex", compile=True), 0)
        .build()
        .tables.block_mask
        is None
    )


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_ran_is_read_back(model: dict[str, Any], kernel: str) -> None:
    module = materialised(model, attention=kernel)
    assert module.describe_attention() == {"kernel": kernel}
    tokens = torch.randint(257, (2, 16))
    with attention_ops(torch.device("cpu")) as ran:
        module(tokens, tokens)[0].backward()
    if kernel == "naive":
        assert ran() == ["_softmax", "bmm"]
    else:
        assert ran() == ["_scaled_dot_product_flash_attention_for_cpu"]


def test_what_ran_is_read_back_of_any_model() -> None:
    q = torch.randn(1, 2, 8, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    with attention_ops(torch.device("cpu")) as ran, sdpa_kernel(SDPBackend.MATH):
        attend(q, q, q)
    assert "_scaled_dot_product_attention_math" in (ran() or ())
    with profile(), attention_ops(torch.device("cpu")) as ran:
        attend(q, q, q)
    assert ran() is None  # only one profiler can be at work


@pytest.mark.parametrize(
    ("name", "op"),
    [
        # Operators of torch's native_functions.yaml, kernels as Inductor puts their names together.
        ("aten::_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention"),
        ("aten::_scaled_dot_product_cudnn_attention", "_scaled_dot_product_cudnn_attention"),
        ("aten::_scaled_dot_product_efficient_attention_backward", None),
        ("aten::scaled_dot_product_attention", None),  # chooses one of those above
        ("ScaledDotProductFlashAttentionBackward0", None),
        ("triton_tem_fused_flex_attention_2", "triton_tem_fused_flex_attention_2"),
        ("triton_tem_fused_flex_attention_backward_5", None),
        ("triton_per_fused__softmax_add_mul_1", "triton_per_fused__softmax_add_mul_1"),
        ("triton_red_fused__log_softmax_3", None),
        ("flash_attn::_flash_attn_forward", "_flash_attn_forward"),
        ("aten::_log_softmax", None),
        ("aten::_softmax_backward_data", None),
        ("aten::mm", None),
    ],
)
def test_operators_and_kernels_of_attention_are_known_by_name(name: str, op: str | None) -> None:
    assert _attention_op(name) == op


@pytest.mark.parametrize(
    ("model", "kernel"), [(SMALL_ANDROMEDA, "sdpa_bias"), (SMALL_LLAMA, "sdpa_causal")]
)
def test_a_family_chooses_its_own_kernel(model: dict[str, Any], kernel: str) -> None:
    assert materialised(model).describe_attention()["kernel"] == kernel


@pytest.mark.parametrize("kernel", ["sdpa_causal", "sdpa_bias"])
def test_fused_kernels_keep_no_scores_per_sequence(kernel: str) -> None:
    batch, seq_len = 5, 64
    module = materialised(SMALL_ANDROMEDA, attention=kernel, seq_len=seq_len)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.untyped_storage().nbytes() // 4), t)[1], lambda t: t
    ):
        tokens = torch.randint(257, (batch, seq_len))
        module(tokens, tokens)
    # The largest are logits and one bias for all sequences, not scores of each.
    assert max(sizes) <= max(batch * seq_len * 257, 6 * seq_len * seq_len)
    assert max(sizes) < batch * 6 * seq_len * seq_len


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_bf16_stays_near_fp32(model: dict[str, Any], kernel: str) -> None:
    tokens = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for precision in ("fp32", "bf16"):
        module = materialised(model, attention=kernel, precision=precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = module(tokens, tokens)
        assert loss.dtype == torch.float32
        losses.append(loss.item() / 32)
    whole = materialised(model, attention=kernel, precision="bf16").bfloat16()
    losses.append(whole(tokens, tokens)[0].item() / 32)
    assert all(math.isfinite(x) for x in losses)
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=0.02)


@pytest.mark.parametrize(
    ("kernel", "precision", "longest"),
    [
        ("flex", "bf16", 70_254),
        ("flex", "fp16", 6_798),
        ("sdpa_causal", "bf16", 35_127),  # ALiBi's heads have a bias
        ("sdpa_bias", "fp16", 6_798),
        ("naive", "fp16", 3_399),
    ],
)
def test_lengths_at_which_xpos_overflows_are_refused(
    kernel: str, precision: str, longest: int
) -> None:
    config = ModelFactory(SMALL_ANDROMEDA, Train(seq_len=16), 0).config
    compiled = kernel == "flex"
    train = Train(attention=kernel, precision=precision, seq_len=longest, compile=compiled)
    assert config.refuses(train) is None
    reason = str(config.refuses(train.model_copy(update={"seq_len": longest + 1})))
    assert reason.startswith(f"train.seq_len: {longest + 1} is beyond what xPos")
    assert f"use at most {longest}, " in reason
    other = train.model_copy(update={"seq_len": 10 * longest})
    assert "attention flex, or" not in str(config.refuses(other))


@pytest.mark.parametrize(
    ("seq_len", "dtype", "finite"),
    [
        (70_254, torch.float32, True),
        (98_304, torch.float32, False),  # as it was found out: by losses that are NaN
        (6_798, torch.float16, True),
        (12_288, torch.float16, False),
    ],
)
def test_keys_of_xpos_are_finite_up_to_the_refused_length(
    seq_len: int, dtype: torch.dtype, finite: bool
) -> None:
    train = Train(attention="flex", compile=True, seq_len=seq_len)
    tables = PositionTables(shape_of(SMALL_ANDROMEDA), train, "flex", 1e4, xpos=True)
    assert bool((10 * tables.rotary_k).to(dtype).isfinite().all()) is finite

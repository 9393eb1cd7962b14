"""Models: sizes, configurations that are refused, weights, positions."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from model_shapes import SMALL, SMALL_ANDROMEDA, SMALL_LLAMA, materialised, shape_of, shipped
from pydantic import ValidationError

from andromeda_scale.cost.model import num_parameters
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.models.layers import Embedding
from andromeda_scale.models.positions import PositionTables, alibi_slopes, rotate
from andromeda_scale.registry import load
from andromeda_scale.suite import resources
from andromeda_scale.suite.training import Train

# Millions of parameters. Andromeda: counted from its published shapes by 2 d h dh + 2 d kv dh +
# 2 dh + 8 d^2 + 9 d per block, + 2 d + 2 V d + V. CS336: its assignment 2's table. Llama: model
# cards (8.03 B, 70.6 B, 1.24 B).
MILLIONS = {
    "andromeda-default": 2482,
    "andromeda-1b": 723,
    "andromeda-3b": 2387,
    "andromeda-7b": 5313,
    "andromeda-10b": 8152,
    "andromeda-15b": 14337,
    "andromeda-20b": 23099,
    "andromeda-150m": 155,
    "andromeda-410m": 361,
    "andromeda-800m": 819,
    "cs336-small": 128.63,
    "cs336-medium": 423.18,
    "cs336-large": 969.41,
    "cs336-xl": 1998.24,
    "cs336-2.7b": 3406.81,
    "cs336-2026-xl": 3406.81,
    "cs336-2026-10b": 12832.82,
    "llama-3.1-8b": 8030,
    "llama-3.1-70b": 70554,
    "llama-3.2-1b": 1236,
    "andromeda-tiny": 0.61,
    "llama-tiny": 0.66,
}


def test_every_shipped_model_has_a_golden_size() -> None:
    assert sorted(MILLIONS) == resources.names("models")


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_in_closed_form_and_built_equal_the_published_count(name: str) -> None:
    factory = ModelFactory(shipped(name), Train(), 0)
    built = sum(p.numel() for p in factory.build().parameters())
    decimals = len(str(MILLIONS[name]).partition(".")[2])
    assert num_parameters(factory.config.shape()) == built
    assert round(built / 1e6, decimals or None) == MILLIONS[name]


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_a_built_model_takes_no_memory(model: dict[str, object]) -> None:
    module = ModelFactory(model, Train(), 0).build()
    assert all(t.is_meta for t in [*module.parameters(), *module.buffers()])


@pytest.mark.parametrize(
    ("model", "change", "told"),
    [
        (SMALL_ANDROMEDA, {"num_kv_heads": 4}, "num_kv_heads: 4 does not divide num_heads 6"),
        (SMALL_ANDROMEDA, {"alibi_num_heads": 7}, "alibi_num_heads: 7 is more than num_heads 6"),
        (SMALL_ANDROMEDA, {"head_dim": 16}, "head_dim: 16 cannot hold its rotary part"),
        (SMALL_ANDROMEDA, {"dim_head": 128}, "dim_head"),
        (SMALL_ANDROMEDA, {"num_layers": 0}, "num_layers"),
        (SMALL_LLAMA, {"num_heads": 5, "num_kv_heads": 5}, "num_heads: 5 does not divide d_model"),
        (SMALL_LLAMA, {"num_kv_heads": 4}, "num_kv_heads: 4 does not divide num_heads 6"),
        (SMALL_LLAMA, {"head_dim": 7}, "head_dim: 7 is odd"),
        (SMALL_LLAMA, {"ffn_dim": 1}, "ffn_dim"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(
    model: dict[str, object], change: dict[str, object], told: str
) -> None:
    options = {**model, **change}
    config = load("model family", options.pop("family"))
    with pytest.raises(ValidationError, match=told):
        config(**options)


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_a_model_gives_the_summed_loss_of_its_tokens(model: dict[str, object]) -> None:
    module = materialised(model)
    tokens = torch.randint(257, (3, 16))
    labels = torch.randint(257, (3, 16))
    loss, num_tokens = module(tokens, labels)
    expected = torch.nn.functional.cross_entropy(
        module.logits(tokens).flatten(0, 1), labels.flatten()
    )
    assert (num_tokens, loss.dtype) == (48, torch.float32)
    assert loss.item() / 48 == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() / 48 == pytest.approx(5.55, abs=0.2)  # ln 257: small weights know nothing


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("deepnorm", [False, True])
def test_a_token_sees_no_later_token_and_every_earlier_one(
    model: dict[str, object], deepnorm: bool
) -> None:
    if deepnorm:
        model = {**SMALL_ANDROMEDA, "deepnorm": True}
    module = materialised(model)
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 7] += 1
    difference = (module.logits(tokens) - module.logits(changed)).abs().amax(dim=-1)[0]
    assert difference[:7].max() == 0
    assert difference[7:].min() > 0


def test_deepnorm_has_no_final_norm_and_scaled_residuals() -> None:
    model = {**SMALL_ANDROMEDA, "deepnorm": True}
    module = materialised(model)
    assert num_parameters(shape_of(model)) == num_parameters(shape_of(SMALL_ANDROMEDA)) - 2 * 48
    assert sum(p.numel() for p in module.parameters()) == num_parameters(shape_of(model))
    assert module.blocks[0].alpha == pytest.approx((2 * 2) ** 0.25)
    value, query = module.blocks[0].attention.v_proj, module.blocks[0].attention.q_proj
    beta = (8 * 2) ** -0.25
    assert value.init_std == pytest.approx(beta * (2 / (48 + 80)) ** 0.5)
    assert query.init_std == pytest.approx((2 / (48 + 240)) ** 0.5)


def test_weights_depend_on_the_seed_and_the_name_alone() -> None:
    one, again = materialised(SMALL_ANDROMEDA), materialised(SMALL_ANDROMEDA)
    deeper = materialised({**SMALL_ANDROMEDA, "num_layers": 3, "alibi_num_heads": 0})
    other = materialised(SMALL_ANDROMEDA, seed=1)
    for name, value in one.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
        if "out_proj" not in name and "down" not in name:  # their scale depends on the depth
            assert torch.equal(value, deeper.get_parameter(name)), name
    query = "blocks.0.attention.q_proj.weight"
    assert not torch.equal(one.get_parameter(query), other.get_parameter(query))
    assert not torch.equal(one.get_parameter(query), one.get_parameter(query.replace("0", "1")))


def test_weights_are_the_same_in_every_process_and_run() -> None:
    factory = ModelFactory(SMALL_ANDROMEDA, Train(), 3)
    value = factory.full_parameter("head.weight", (257, 48), "cpu").double()
    # What torch 2.13 drew when this was written: Python's own hash() differs by process.
    assert value.sum().item() == pytest.approx(3.71460, abs=1e-4)
    assert value[0, :3].tolist() == pytest.approx([-0.0093111, 0.0000608, 0.0094280], abs=1e-6)


def test_each_parameter_starts_by_its_rule() -> None:
    factory = ModelFactory(SMALL_ANDROMEDA, Train(), 0)
    names = {
        "blocks.0.attention_norm.weight": (1, 0),
        "blocks.0.attention_norm.bias": (0, 0),
        "blocks.0.attention.qk_norm.q_scale": (1, 0),
        "head.bias": (0, 0),
        "embedding.weight": (0, 0.02),
        "blocks.1.ffn.up.weight": (0, 0.02),
        "blocks.1.ffn.down.weight": (0, 0.02 / 2),  # sqrt(2 L) = 2
        "blocks.1.attention.out_proj.weight": (0, 0.02 / 2),
    }
    for name, (mean, std) in names.items():
        value = factory.full_parameter(name, (300, 300), "cpu")
        assert value.dtype == torch.float32
        assert value.mean().item() == pytest.approx(mean, abs=1e-3), name
        assert value.std().item() == pytest.approx(std, rel=0.05), name


def test_a_tied_head_is_the_input_table() -> None:
    module = materialised({**SMALL_LLAMA, "tied_head": True})
    assert module.head is None
    module(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))[0].backward()
    # Row 9 is never looked up: its gradient comes through the head.
    assert module.embedding.weight.grad[9].abs().sum() > 0


@pytest.mark.parametrize(
    ("num_heads", "slopes"),
    [
        (8, [2.0**-k for k in range(1, 9)]),
        (4, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]),
        # arXiv:2108.12409's code: 8 heads' slopes, then every second of 16 heads'.
        (12, [2.0**-k for k in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]),
        (1, [2.0**-8]),
    ],
)
def test_alibi_slopes_are_the_papers(num_heads: int, slopes: list[float]) -> None:
    assert alibi_slopes(num_heads) == pytest.approx(slopes)


def test_alibi_bias_falls_with_distance_on_the_first_heads_only() -> None:
    train = Train(seq_len=8)
    tables = PositionTables(shape_of(SMALL_ANDROMEDA), train, "sdpa_bias", 1e4, xpos=True)
    assert tables.bias.shape == (6, 8, 8)  # once for all sequences and layers
    slopes = [2.0**-4, 2.0**-8, 2.0**-2, 0, 0, 0]  # 3 heads: two, and one between 4
    for head, slope in enumerate(slopes):
        assert tables.bias[head, 6].tolist()[:7] == pytest.approx(
            [-slope * (6 - j) for j in range(7)]
        )
        assert tables.bias[head, 6, 7] == -torch.inf


def test_xpos_scores_depend_on_distance_alone_and_decay() -> None:
    shape = shape_of(SMALL_ANDROMEDA)
    tables = PositionTables(shape, Train(seq_len=64), "sdpa_causal", 1e4, xpos=True)
    # Of length 1, as the model's: angles of up to 64 in float32 then err by less than 1e-5.
    generator = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(40, generator=generator), dim=0) for _ in range(2))
    turned_q = rotate(q.expand(1, 1, 64, 40), tables.rotary_q)[0, 0].double()
    turned_k = rotate(k.expand(1, 1, 64, 40), tables.rotary_k)[0, 0].double()
    scores = turned_q @ turned_k.T
    for distance in (0, 5, 40):
        same = scores.diagonal(-distance)
        assert same.tolist() == pytest.approx([same[0].item()] * len(same), abs=1e-5)
        # xPos (arXiv:2212.10554): pair p, of 16, turned by distance * theta_p and scaled by
        # ((p / 16 + 0.4) / 1.4)^(distance / 512); the other 8 dimensions are left alone.
        expected = float(q[32:].double() @ k[32:].double())
        for p in range(16):
            a, b = complex(q[p], q[p + 16]), complex(k[p], k[p + 16])
            turn = torch.polar(
                torch.tensor(1.0).double(), torch.tensor(distance * 1e4 ** (-p / 16)).double()
            ).item()
            decay = ((p / 16 + 0.4) / 1.4) ** (distance / 512)
            expected += decay * (a * turn * b.conjugate()).real
        assert same[0].item() == pytest.approx(expected, abs=1e-5)


def test_tables_survive_a_cast_of_the_module_and_a_copy() -> None:
    module = materialised(SMALL_ANDROMEDA)
    rotary, bias = module.tables.rotary_q.clone(), module.tables.bias.clone()
    rounded = copy.deepcopy(module).bfloat16()
    assert rounded.head.weight.dtype == torch.bfloat16
    assert torch.equal(rounded.tables.rotary_q, rotary)
    assert torch.equal(rounded.tables.bias, bias)
    assert rounded.blocks[0].attention._tables[0] is rounded.tables
    assert "tables.rotary_q" not in module.state_dict()


def test_gradients_of_an_embedding_in_bfloat16_are_added_up_in_float32() -> None:
    """4,096 tokens of 4 kinds: bfloat16 would stop adding when a sum is 256 times an addend."""
    tokens = torch.arange(4096).view(2, 2048) % 4
    table = torch.randn(4, 8)
    grads = (torch.rand(2, 2048, 8) + 0.5).bfloat16()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        embedding = Embedding(4, 8, _weight=table.to(dtype).clone())
        embedding(tokens).backward(grads.to(dtype))
        assert embedding.weight.grad is not None
        found[dtype] = embedding.weight.grad.float()
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32], rtol=2**-7, atol=0)

"""The final projection and the next-token loss: logits whole, or in parts over the tokens.

In parts, each part's gradient is computed at once, in forward, and its logits are let go: backward
multiplies what was kept, of the size of the head's input and weight, by the gradient of the loss.
Nothing is computed twice, and no more than one part's logits are ever in memory.

Legend: N tokens, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.layers import Linear

_Derive = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_Scale = Callable[[Tensor, Tensor, torch.dtype], Tensor]


class NextTokenLoss:
    """Summed cross entropy in float32 of x W^T + b against the next tokens.

    `product_dtype` is what the last projection ran in, and `chunks` how many parts it took.
    """

    def __init__(self, asked: int, *, compiled: bool) -> None:
        self.chunks: int | None = None
        self.product_dtype: torch.dtype | None = None
        self._asked = asked
        self._whole: Callable[[Tensor, Tensor], Tensor] = cross_entropy
        self._derive: _Derive = loss_and_gradient
        self._scale: _Scale = _scaled
        if compiled:
            self._whole, self._derive = torch.compile(self._whole), torch.compile(self._derive)
            self._scale = torch.compile(self._scale)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        """x (B, T, d), weight (V, d), bias (V,), labels (B, T) int64 to a scalar."""
        x, labels = x.flatten(0, -2), labels.flatten()
        if self._asked == 1:
            return self.of_logits(F.linear(x, weight, bias), labels)
        self.chunks = self._asked
        low = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if low else x.dtype
        self.product_dtype = dtype
        if torch.is_grad_enabled():
            loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]  # of torch
                x, weight, bias, labels, self._asked, dtype, self._derive, self._scale
            )
            return loss
        parts = zip(x.tensor_split(self._asked), labels.tensor_split(self._asked), strict=True)
        losses = [self._whole(F.linear(part, weight, bias), ids) for part, ids in parts]
        return torch.stack(losses).sum()

    def of_logits(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits that are there already, (N, V), of labels (N,)."""
        self.chunks, self.product_dtype = 1, scores.dtype
        return self._whole(scores, labels)

    def describe(self) -> dict[str, Any]:
        """How many parts the last loss took; None before the first."""
        return {"chunks": self.chunks}


class Head(Linear):
    """The final projection, which gives the loss of its tokens."""

    def __init__(self, shape: Shape, loss: NextTokenLoss) -> None:
        super().__init__(shape.d_model, shape.vocab_size, bias=shape.head_bias)
        self.loss = loss

    # A head is a Linear to the wrappers that look for one, and is called with labels besides.
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self.loss(x, self.weight, self.bias, labels)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Summed in float32; scores (N, V), labels (N,)."""
    return F.cross_entropy(scores.float(), labels, reduction="sum")


def loss_and_gradient(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(summed cross entropy in float32, its gradient in the dtype of `scores`)."""
    wide = scores.float()
    log_sum = wide.logsumexp(-1, keepdim=True)
    loss = (log_sum - wide.gather(-1, labels[:, None])).sum()
    gradient = (wide - log_sum).exp_()
    classes = torch.arange(scores.shape[-1], device=scores.device)
    # Before it is rounded: of a token the model is sure of, p - 1 is what p's last bits say.
    gradient.add_(labels[:, None] == classes, alpha=-1)
    return loss, gradient.to(scores.dtype)


class _ChunkedLoss(torch.autograd.Function):
    """The loss of all parts; the weight's gradient is summed over them in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        chunks: int,
        dtype: torch.dtype,
        derive: _Derive,
        scaled: _Scale,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            low = weight.to(dtype)
            added = None if bias is None else bias.to(dtype)
            # Of a sum in place, torch 2.11's compiler takes the gradient to be nothing.
            losses: list[Tensor] = []
            of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
            of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
            for part, ids, of_part in zip(
                x.tensor_split(chunks), labels.tensor_split(chunks), of_x.tensor_split(chunks),
                strict=True,
            ):  # fmt: skip
                part = part.to(dtype)
                scores = part @ low.t() if added is None else torch.addmm(added, part, low.t())
                loss, gradient = derive(scores, ids)
                del scores
                losses.append(loss)
                of_part.copy_(gradient @ low)
                _add_product(of_weight, gradient.t(), part)
                if of_bias is not None:
                    of_bias += gradient.sum(0, dtype=torch.float32)
                del gradient
        ctx.save_for_backward(of_x, of_weight, of_bias)
        ctx.scaled = scaled
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *of_total: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight, of_bias = ctx.saved_tensors
        (scale,), (weight_dtype, bias_dtype) = of_total, ctx.dtypes
        return (
            of_x.mul_(scale),
            ctx.scaled(of_weight, scale, weight_dtype),
            None if of_bias is None else ctx.scaled(of_bias, scale, bias_dtype),
            *(None,) * 5,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, `total` in float32, in one kernel where there is one."""
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and not torch.compiler.is_compiling():  # for which it has no fake kernel
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right


def _scaled(total: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 sum times a scalar, rounded once to its parameter's dtype."""
    out = total if dtype == total.dtype else torch.empty_like(total, dtype=dtype)
    return torch.mul(total, scale, out=out)

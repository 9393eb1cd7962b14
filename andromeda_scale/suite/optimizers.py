"""The optimizers a suite may name, and what each keeps. No torch.

All are classes of torch.optim. Each runs the same kind of kernel under every strategy: the fused
one where torch has it for whole tensors and for DTensors (Adam, AdamW; not SGD or Adagrad, which
fuse whole tensors alone), unless the suite says otherwise, and else foreach, so that no comparison
of strategies is one of kernels.

Left out: LBFGS (calls the model several times a step), SparseAdam (sparse gradients alone), Muon
(matrices alone: a model also has vectors), Adafactor (its state is a row and a column of every
matrix, which flat shards do not have).
"""

from __future__ import annotations

from dataclasses import dataclass

OPTIONS = ("momentum", "nesterov", "betas", "eps")


@dataclass(frozen=True)
class Known:
    """One class of torch.optim."""

    torch_name: str
    states: int  # tensors of a parameter's shape it keeps, with its default options
    fused: bool = False  # torch has a fused kernel, on CPU and CUDA, for DTensors too
    options: frozenset[str] = frozenset()
    # Tensors of all gradients' size that a step of foreach kernels makes at once, without and with
    # weight decay, as they work on lists; fused ones make none. Measured, torch 2.13.
    temporaries: tuple[int, int] = (0, 0)
    eps: float = 1e-8  # torch's default, where it has the option


_ADAM = frozenset({"betas", "eps"})

OPTIMIZERS = {
    "adamw": Known("AdamW", 2, fused=True, options=_ADAM, temporaries=(1, 1)),
    "adam": Known("Adam", 2, fused=True, options=_ADAM, temporaries=(1, 1)),
    "sgd": Known("SGD", 0, options=frozenset({"momentum", "nesterov"}), temporaries=(0, 1)),
    "adagrad": Known("Adagrad", 1, options=frozenset({"eps"}), temporaries=(2, 2), eps=1e-10),
    "adadelta": Known("Adadelta", 2, options=frozenset({"eps"}), temporaries=(2, 3), eps=1e-6),
    "adamax": Known("Adamax", 2, options=_ADAM, temporaries=(1, 1)),
    "nadam": Known("NAdam", 2, options=_ADAM, temporaries=(1, 2)),
    "radam": Known("RAdam", 2, options=_ADAM, temporaries=(1, 1)),
    "rmsprop": Known("RMSprop", 1, options=frozenset({"momentum", "eps"}), temporaries=(1, 2)),
}


def state_bytes(name: str, momentum: float | None) -> int:
    """Bytes of optimizer state per parameter, in float32: Adam's two moments are 8."""
    return 4 * (OPTIMIZERS[name].states + (1 if momentum else 0))


def temporary_bytes(name: str, *, fused: bool, decays: bool) -> int:
    """Bytes of float32 temporaries that a step makes per parameter it updates at once."""
    return 0 if fused else 4 * OPTIMIZERS[name].temporaries[decays]

"""What users bring, good and bad; named as a ``_target_``."""

import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stepscale.models import Flow


class Masters(torch.optim.Optimizer):
    """Momentum on float32 masters of weights of any type, as mixed-precision training keeps them; and a count."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"master": p.float(), "moments": [torch.zeros_like(p, dtype=torch.float32)]}
                    state["count"] = torch.zeros((), dtype=torch.int64)
                state["count"] += 1
                state["moments"][0].mul_(0.9).add_(p.grad)
                state["master"].sub_(state["moments"][0] / state["count"], alpha=group["lr"])
                p.copy_(state["master"])


class Subnormal(torch.optim.SGD):
    """Raises what products of 1e-30 and 1e-10 are, in units of 1e-40, in this thread and in one of its own."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        found: list[float] = []

        def look() -> None:
            small = torch.full((10**5,), 1e-30)
            products = (small * 1e-10).double() * 1e40
            found.append(round(products.min().item()))
            found.append(round(products.max().item()))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        look()
        raise ValueError(f"the products are {sorted(set(map(float, found)))} in 2 threads")


class OnlyLoss(torch.nn.Linear):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return self(batch).square().mean()


class Convolution(torch.nn.Conv1d):
    """Much wider than its data, and no ``torch.mm`` in it."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, 64, 3)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return self(batch.unsqueeze(1)).square().mean()


@torch.library.custom_op("theirs::attention", mutates_args=())
def attention(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x @ x.T, 1) @ x


@torch.library.custom_op("theirs::attention_backward", mutates_args=())
def attention_backward(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    seen, of_seen = torch.softmax(x @ x.T, 1), gradient @ x.T
    of_scores = seen * (of_seen - (of_seen * seen).sum(1, keepdim=True))
    return seen.T @ gradient + (of_scores + of_scores.T) @ x


torch.library.register_autograd(
    "theirs::attention",
    lambda ctx, gradient: attention_backward(gradient.contiguous(), ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class OwnAttention(torch.nn.Module):
    """A kernel of another library, whose products nobody sees."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return attention(batch * self.scale).square().mean()


class NoProduct(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch * self.scale).square().mean()


class Broken(torch.nn.Linear):
    def __init__(self, dim: int, depth: int) -> None:
        raise ValueError("hidden must be even; set hidden=64")


class WithScale(Flow):
    """Its capture knows nothing of one of its parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.scale = nn.Parameter(torch.ones(3))


class Scalars(torch.nn.Module):
    """Has a parameter without any dimension, as a temperature is, and one of no size."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(dim, dim)
        self.scale, self.nothing = nn.Parameter(torch.ones([])), nn.Parameter(torch.ones(0))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.scale * self.layer(batch)).square().mean() + self.nothing.sum()


class ComplexWeight(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(dim, dim, dtype=torch.complex64))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch.to(torch.complex64) @ self.spectrum).abs().square().mean()


class SingularFlow(Flow):
    """A flow whose second weight is singular at the start."""

    def __init__(self, dim: int, depth: int, spoilt: str) -> None:
        super().__init__(dim, depth)
        with torch.no_grad():
            W = self.layers[1].weight
            if spoilt == "zero":
                W.zero_()
            else:
                W[3] = W[1]

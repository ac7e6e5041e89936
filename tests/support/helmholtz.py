"""Small Helmholtz machines, and their densities by definition, for the tests of models and of optimizers."""

import itertools

import torch
from torch import Tensor

from stepscale.models import Helmholtz


def machine(estimator: str = "rws", hidden: tuple[int, ...] = (2, 1), dim: int = 3, **words: int) -> Helmholtz:
    torch.manual_seed(0)
    model = Helmholtz(dim, len(hidden), hidden=hidden, estimator=estimator, **words).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def log_bernoulli(child: Tensor, logits: Tensor) -> Tensor:
    """By its definition, of rows."""
    q = 1 / (1 + torch.exp(-logits))
    return torch.where(child == 1, q, 1 - q).log().sum(1)


def log_p(model: Helmholtz, states: list[Tensor]) -> Tensor:
    parts = [
        log_bernoulli(x, h @ g.weight.T + g.bias)
        for x, h, g in zip(states[:-1], states[1:], model.generative, strict=True)
    ]
    return torch.stack([*parts, log_bernoulli(states[-1], model.prior.weight.T.expand(len(states[0]), -1))]).sum(0)


def log_q(model: Helmholtz, states: list[Tensor]) -> Tensor:
    parts = [
        log_bernoulli(h, x @ r.weight.T + r.bias)
        for x, h, r in zip(states[:-1], states[1:], model.recognition, strict=True)
    ]
    return torch.stack(parts).sum(0)


def every_state(model: Helmholtz) -> list[Tensor]:
    joint = torch.tensor(list(itertools.product([0.0, 1.0], repeat=sum(model.widths))), dtype=torch.float64)
    return list(joint.split(model.widths, 1))

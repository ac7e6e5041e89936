"""A Helmholtz machine of sigmoid belief nets: a generative model p and a recognition model q of binary units.

p draws the deepest layer h_L, and from each layer the one below, down to the visible x; q draws h_1 given x, and from
each layer the next. Every unit is Bernoulli given the layer that it sees:

    p(x, h) = p(h_L) Π p(h_k | h_{k+1}),  x = h_0;   q(h | x) = Π q(h_{k+1} | h_k),   logits W a + b.

``loss`` is that of p alone. What trains p and q is not its gradient but an estimate, of which there are three:

* ``ws``, wake-sleep (Hinton et al. 1995, "The wake-sleep algorithm for unsupervised neural networks"): p learns from
  h ~ q(h | x), q from dreams (x, h) ~ p;
* ``rws``, reweighted wake-sleep (Bornschein & Bengio 2015, arXiv 1406.2751): p learns from S draws of q a row, weighed
  by w ∝ p(x, h) / q(h | x), which sum to 1; q by half from the same draws, weighed by w − 1/S, by half from dreams;
* ``bihm``, bidirectional Helmholtz machines (Bornschein et al. 2016, arXiv 1506.03877): w ∝ (p(x, h) / q(h | x))^½, for
  p and q, and no dreams. That is the model p*(x) ∝ (Σ_h √(p(x, h) q(h | x) q(x)))², whose bound is tight at p = q.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from stepscale.models.batch import Batch
from stepscale.models.captured_layer import LayerIO
from stepscale.models.choices import one_of
from stepscale.models.objective import Objective

ENUMERABLE = 16  # binary units of two neighbouring layers, all of whose states are summed over
SEED = 0  # of the draws of a bound, the same at every look


class Estimator(StrEnum):
    """Of the gradient."""

    WS = "ws"
    RWS = "rws"
    BIHM = "bihm"


class Helmholtz(nn.Module):
    """Sigmoid belief nets p and q, trained by an estimate of their own; O(B S P), P parameters, S draws a row.

    Args:
        dim: visible units.
        depth: hidden layers.
        hidden: their widths, from the visible units up; None for dim/2, dim/4, …, at least 1.
        estimator: ``"ws"``, ``"rws"`` or ``"bihm"``.
        samples: S, draws of the hidden units a row; wake-sleep takes one whatever is said.
        looks: draws a row of the bound that ``loss`` is where the hidden states are too many to be summed over.
        bias: at the start, of every unit.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 2,
        *,
        hidden: Sequence[int] | None = None,
        estimator: str = "rws",
        samples: int = 10,
        looks: int = 100,
        bias: float = 0.1,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"a machine needs hidden layers: depth must be at least 1, got depth={depth}")
        widths = list(hidden) if hidden is not None else [max(1, dim >> k) for k in range(1, depth + 1)]
        if len(widths) != depth or min([dim, *widths], default=0) < 1:
            raise ValueError(f"a machine of depth={depth} needs that many hidden widths of at least 1, got {widths}")
        if samples < 1 or looks < 1:
            raise ValueError(f"samples and looks must be at least 1, got samples={samples}, looks={looks}")
        self.estimator = one_of("estimator", Estimator, estimator)
        self.samples, self.looks, self.checked = samples, looks, False
        self.widths = [dim, *widths]
        pairs = list(itertools.pairwise(self.widths))
        self.generative: Sequence[nn.Linear]
        self.recognition: Sequence[nn.Linear]
        self.generative = nn.ModuleList(nn.Linear(above, below) for below, above in pairs)  # type: ignore[assignment]
        self.prior = nn.Linear(1, self.widths[-1], bias=False)  # of the deepest layer, which sees a constant
        self.recognition = nn.ModuleList(nn.Linear(below, above) for below, above in pairs)  # type: ignore[assignment]
        for layer in (*self.generative, *self.recognition):
            nn.init.xavier_normal_(layer.weight)
            nn.init.constant_(layer.bias, bias)
        nn.init.constant_(self.prior.weight, bias)
        self.enumerable = max(map(sum, itertools.pairwise([*widths, 0]))) <= ENUMERABLE
        name = "log-likelihood" if self.enumerable else f"log-likelihood, a bound by {looks} draws a row"
        self.objective = Objective(name, exact=self.enumerable, discrete=True, differentiable=False)

    def loss(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of p in nats, or an upper bound of it.

        Exact by summing over the states of the hidden units, layer by layer, where no two neighbouring layers have more
        than ``ENUMERABLE`` units together: O(B 2ⁿ n), n units in the first hidden layer. Else −log of the mean of
        p(x, h) / q(h | x) over ``looks`` draws of q, always the same ones for as many rows (Burda et al. 2016, arXiv
        1509.00519): O(B looks P).
        """
        x = self._rows(batch)
        return -(self._summed(x) if self.enumerable else self._bound(x)).mean()

    @torch.no_grad()
    def capture(self, batch: Batch) -> list[LayerIO]:
        """O(B S P): the estimator's gradient as what the layers saw; those of p, its prior, then those of q.

        A layer of p sees each row of the batch S times, and one of q that learns from dreams 2 S times: S draws of q,
        then S dreams. What an estimator makes no use of has δ = 0.
        """
        x = self._rows(batch)
        S = self._draws()
        states = self.inferred(x.repeat_interleave(S, 0))
        up, down = self._logits_of_q(states), self._logits_of_p(states)
        weights = self._weights(states, down, up).unsqueeze(1)
        dreams = None if self.estimator is Estimator.BIHM else self.dreamt(len(states[0]))
        ios = []
        for layer, y, a, child in zip(self._layers_of_p(), down, self._parents(states), states, strict=True):
            ios.append(_seen(layer, a, y, (torch.sigmoid(y) - child) * weights, S))
        awake = {Estimator.WS: 0 * weights, Estimator.RWS: (weights - 1 / S) / 2, Estimator.BIHM: weights - 1 / S}
        asleep = 1.0 if self.estimator is Estimator.WS else 0.5 / S
        for k, layer in enumerate(self.recognition):
            a, y, delta = states[k], up[k], (torch.sigmoid(up[k]) - states[k + 1]) * awake[self.estimator]
            if dreams is not None:
                logits = layer(dreams[k])
                wrong = (torch.sigmoid(logits) - dreams[k + 1]) * asleep
                a, y, delta = (_beside(one, other, S) for one, other in ((a, dreams[k]), (y, logits), (delta, wrong)))
            ios.append(_seen(layer, a, y, delta, S if dreams is None else 2 * S))
        return ios

    @torch.no_grad()
    def capture_units(self, ios: list[LayerIO]) -> list[tuple[Tensor, Tensor]]:
        """O(B S P): inputs ``[rows, dim_in]`` and probabilities ``[rows, dim_out]`` of each captured layer's units.

        The rows are the model's own, as its Fisher matrix is of them: dreams for p, and for q the draws that
        ``capture`` made of it.
        """
        S, dreams = self._draws(), self.dreamt(len(ios[0].a))
        of_p = [(a, torch.sigmoid(y)) for a, y in zip(self._parents(dreams), self._logits_of_p(dreams), strict=True)]
        of_q = [tuple(_first(part, io.copies, S) for part in (io.a, io.y)) for io in ios[len(self.generative) + 1 :]]
        return of_p + [(a, torch.sigmoid(y)) for a, y in of_q]

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """List the products of the estimator: each layer's logits and, where something is learned, its gradient."""
        rows = batch * self._draws()
        dreaming, awake = self.estimator is not Estimator.BIHM, self.estimator is not Estimator.WS
        found = []
        for below, above in itertools.pairwise(self.widths):
            found += [((1 + dreaming) * rows, above, below), ((1 + dreaming) * rows, below, above)]
            found += [(below, rows, above), (above, (dreaming + awake) * rows, below)]
        return found

    @torch.no_grad()
    def inferred(self, x: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """O(B P): x, and the hidden layers drawn from q given it, ``[batch, width]`` each."""
        states = [x]
        for layer in self.recognition:
            states.append(_drawn(layer(states[-1]), generator))
        return states

    @torch.no_grad()
    def dreamt(self, rows: int) -> list[Tensor]:
        """O(rows P): visible and hidden layers drawn from p, ``[rows, width]`` each."""
        states = [_drawn(self.prior.weight.T.expand(rows, -1))]
        for layer in reversed(self.generative):
            states.insert(0, _drawn(layer(states[0])))
        return states

    def sample(self, n: int) -> Tensor:
        """O(n P): visible units drawn from p, ``[n, dim]``."""
        return self.dreamt(n)[0]

    def _rows(self, batch: Batch) -> Tensor:
        """Return the rows of a batch. The first is looked at.

        Raises:
            ValueError: they are not binary.
        """
        x = batch if isinstance(batch, Tensor) else batch[0]
        if not self.checked:
            if not bool(((x == 0) | (x == 1)).all()):
                raise ValueError("a Helmholtz machine needs rows of zeros and ones: use data=lines or binary_digits")
            self.checked = True
        return x

    def _draws(self) -> int:
        return 1 if self.estimator is Estimator.WS else self.samples

    def _layers_of_p(self) -> list[nn.Linear]:
        return [*self.generative, self.prior]

    def _parents(self, states: list[Tensor]) -> list[Tensor]:
        """What the layers of p see, ``[rows, width]`` each: the states above, and of the deepest the constant 1."""
        return [*states[1:], states[0].new_ones(len(states[0]), 1)]

    def _logits_of_p(self, states: list[Tensor]) -> list[Tensor]:
        return [layer(a) for layer, a in zip(self._layers_of_p(), self._parents(states), strict=True)]

    def _logits_of_q(self, states: list[Tensor]) -> list[Tensor]:
        return [layer(a) for layer, a in zip(self.recognition, states, strict=False)]

    def _weights(self, states: list[Tensor], down: list[Tensor], up: list[Tensor]) -> Tensor:
        """Weights of the draws, which sum to 1 over those of a row, ``[rows]``."""
        ratio = _log_prob(states, down) - _log_prob(states[1:], up)
        if self.estimator is Estimator.BIHM:
            ratio = ratio / 2
        return torch.softmax(ratio.view(-1, self._draws()), dim=1).flatten()

    def _summed(self, x: Tensor) -> Tensor:
        """Compute log p(x) of each row, ``[batch]``: from the deepest layer down, the layer above is summed over."""
        above = states_of(self.widths[-1], x)
        known = _table(above, self.prior.weight.T).squeeze(1)
        for layer, width in zip(reversed(self.generative[1:]), reversed(self.widths[1:-1]), strict=True):
            here = states_of(width, x)
            known, above = torch.logsumexp(_table(here, layer(above)) + known, dim=1), here
        return torch.logsumexp(_table(x, self.generative[0](above)) + known, dim=1)

    def _bound(self, x: Tensor) -> Tensor:
        """Compute the log of the mean of p(x, h) / q(h | x), ``[batch]``."""
        generator = torch.Generator(x.device).manual_seed(SEED)
        ratios = []
        for _ in range(self.looks):
            states = self.inferred(x, generator)
            up, down = self._logits_of_q(states), self._logits_of_p(states)
            ratios.append(_log_prob(states, down) - _log_prob(states[1:], up))
        return torch.logsumexp(torch.stack(ratios), dim=0) - math.log(self.looks)


def states_of(width: int, like: Tensor) -> Tensor:
    """All states of so many binary units, ``[2^width, width]``."""
    codes = torch.arange(2**width, device=like.device).unsqueeze(1)
    return (codes >> torch.arange(width, device=like.device) & 1).to(like.dtype)


def _table(children: Tensor, logits: Tensor) -> Tensor:
    """Compute log p of each child ``[n, width]`` under each row of logits ``[m, width]``, ``[n, m]``."""
    return children @ logsigmoid(logits).T + (1 - children) @ logsigmoid(-logits).T


def _log_prob(children: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Compute log p of the children under their logits, summed over units and layers, ``[rows]``."""
    pairs = zip(logits, children, strict=True)
    parts = [binary_cross_entropy_with_logits(y, child, reduction="none").sum(1) for y, child in pairs]
    return -torch.stack(parts).sum(0)


def _drawn(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw units of these logits, 0 or 1."""
    chance = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device, generator=generator)
    return (chance < torch.sigmoid(logits)).to(logits.dtype)


def _seen(layer: nn.Linear, a: Tensor, y: Tensor, delta: Tensor, copies: int) -> LayerIO:
    u = y if layer.bias is None else y - layer.bias
    return LayerIO(layer, a, u, y, delta, log_det=False, copies=copies)


def _beside(one: Tensor, other: Tensor, copies: int) -> Tensor:
    """Put the same number of copies of each sample from two batches one after the other."""
    parts = [part.view(-1, copies, part.shape[1]) for part in (one, other)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def _first(rows: Tensor, copies: int, kept: int) -> Tensor:
    """Keep the first copies of each sample."""
    return rows.view(-1, copies, rows.shape[1])[:, :kept].flatten(0, 1)

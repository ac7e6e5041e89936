"""A layered network with a likelihood of its targets given its inputs, trained by maximum likelihood.

``z_0 = x``, ``y_k = W_k z_{k-1} + b_k``, ``z_k = σ(y_k)``; the last ``y`` parametrises the targets' density: Bernoulli
by logits, Gaussian of variance 1 by means, categorical by logits. The loss is summed over the outputs of a row and
averaged over the batch; no determinant is in it.

Tensors are row batches, ``[batch, width]``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional

from stepscale.models.batch import Batch
from stepscale.models.captured_layer import LayerIO, Tangents, first_trained
from stepscale.models.choices import one_of
from stepscale.models.objective import Objective


class Activation(StrEnum):
    """Of every hidden layer that is not linear."""

    TANH = "tanh"
    RELU = "relu"


class Output(StrEnum):
    """Density of the targets."""

    BERNOULLI = "bernoulli"
    GAUSSIAN = "gaussian"
    CATEGORICAL = "categorical"


class Init(StrEnum):
    """Of the weights; biases begin at 0 unless said."""

    XAVIER = "xavier"  # normal, Glorot & Bengio 2010; times √2 in front of rectifiers
    SPARSE = "sparse"  # Martens 2010 and Sutskever et al. 2013, section 3.1
    NORMAL = "normal"  # of standard deviation 0.1, whatever the widths


CONNECTIONS = 15  # of a unit that begins sparse, each from N(0, 1)
SIGMOID = 0.25, 0.5  # a sparse tanh network begins as one of sigmoids: its weights times the one, its biases the other
NORMAL_STD = 0.1


class MLP(nn.Module):
    """Layers of any widths; base of the autoencoder and the classifier.

    Args:
        widths: of the input, of every hidden layer and of the output.
        activation: ``"tanh"`` or ``"relu"``.
        output: ``"bernoulli"``, ``"gaussian"`` or ``"categorical"``.
        linear: hidden layers without an activation, counted from 0.
        bias: whether the affine layers have one.
        init: ``"xavier"``, ``"sparse"`` or ``"normal"``.

    Raises:
        ValueError: an argument is out of its range.
    """

    objective = Objective(of_targets=True)

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: str,
        output: str,
        linear: Collection[int] = (),
        bias: bool = True,
        init: str = "xavier",
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"a network needs at least two widths, all of at least 1, got {list(widths)}")
        self.activation = one_of("activation", Activation, activation)
        self.output, self.checked = one_of("output", Output, output), False
        self.linear = {*linear, len(widths) - 2}
        self.layers: Sequence[nn.Linear]
        sizes = itertools.pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=bias) for n, m in sizes)  # type: ignore[assignment]
        chosen = one_of("init", Init, init)
        for k, layer in enumerate(self.layers):
            self._begin(k, layer, chosen)

    @torch.no_grad()
    def _begin(self, k: int, layer: nn.Linear, init: Init) -> None:
        """Draw a layer's weights, and set its biases."""
        shift = 0.0
        if init is Init.XAVIER:
            nn.init.xavier_normal_(layer.weight, gain=math.sqrt(2) if self.activation is Activation.RELU else 1.0)
        elif init is Init.NORMAL:
            nn.init.normal_(layer.weight, std=NORMAL_STD)
        else:
            n = layer.in_features  # torch leaves out a share of a column's entries, rounded up
            nn.init.sparse_(layer.weight.T, max(0.0, (n - CONNECTIONS - 0.5) / n), std=1.0)
            if self.activation is Activation.TANH and k not in self.linear:
                layer.weight *= SIGMOID[0]
                shift = SIGMOID[1]
        if layer.bias is not None:
            nn.init.constant_(layer.bias, shift)

    def forward(self, x: Tensor) -> Tensor:
        """O(B P), P the number of parameters: what parametrises the targets' density, ``[batch, outputs]``."""
        for k, layer in enumerate(self.layers):
            x = self._activated(k, layer(x))
        return x

    def log_prob(self, batch: Batch) -> Tensor:
        """O(B P): log-likelihood of each row's targets in nats, ``[batch]``."""
        x, targets = self._split(batch)
        return self._target_log_prob(self(x), targets)

    def loss(self, batch: Batch) -> Tensor:
        """O(B P): mean negative log-likelihood in nats."""
        return -self.log_prob(batch).mean()

    @torch.no_grad()
    def capture(self, batch: Batch) -> list[LayerIO]:
        """O(B P): 2L − 1 products, the backward pass written out, and no gradient of a weight formed."""
        z, targets = self._split(batch)
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        for k, layer in enumerate(self.layers):
            u = z @ layer.weight.T
            y = u if layer.bias is None else u + layer.bias
            seen.append((z, u, y))
            z = self._activated(k, y)
        return self._captured(seen, self._mean(y) - self._expanded(targets, y))

    @torch.no_grad()
    def capture_samples(self, ios: list[LayerIO]) -> list[LayerIO]:
        """O(B P): the same rows with targets drawn from the model, a backward pass only."""
        y = ios[-1].y
        if self.output is Output.GAUSSIAN:
            delta = torch.randn_like(y)
        elif self.output is Output.BERNOULLI:
            mean = torch.sigmoid(y)
            delta = mean - (torch.rand_like(mean) < mean).to(mean.dtype)
        else:
            delta = torch.softmax(y, dim=1) - self._expanded(drawn(y), y)
        return self._captured([(io.a, io.u, io.y) for io in ios], delta)

    @torch.no_grad()
    def with_expected_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """O(B P): the batch's inputs, with the expectation of their targets, ``[batch, outputs]``."""
        x, _ = self._split(batch)
        return x, self._mean(self(x))

    @torch.no_grad()
    def fisher_roots(self, ios: list[LayerIO], directions: Sequence[Tangents]) -> list[Tensor]:
        """O(B P) each: R J v of each row, ``[batch, outputs]``, RᵀR the outputs' Fisher matrix; nothing is drawn."""
        return [self._output_root(ios[-1].y, self._output_rates(ios, tangents)) for tangents in directions]

    @torch.no_grad()
    def fisher_times(self, samples: list[LayerIO], tangents: Tangents) -> list[LayerIO]:
        """O(B P): F v, exact at the captured inputs: the outputs' rates times their Fisher matrix, sent back."""
        rates = self._output_fisher(samples[-1].y, self._output_rates(samples, tangents))
        return self._captured([(io.a, io.u, io.y) for io in samples], rates)

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """List the products of backpropagation: L forward, L − 1 backward and L for the gradients of the weights.

        Of frozen weights there is no gradient, and none goes further back than to the first layer that is trained.
        """
        shapes = [(layer.in_features, layer.out_features) for layer in self.layers]
        forward = [(batch, n, m) for n, m in shapes]
        backward = [(batch, m, n) for n, m in shapes[first_trained(self.layers) + 1 :]]
        moving = [layer.weight.requires_grad for layer in self.layers]
        return forward + backward + [(m, batch, n) for (n, m), moves in zip(shapes, moving, strict=True) if moves]

    def _split(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs and targets; a batch without targets is its own. The numbers of the first are looked at.

        Raises:
            ValueError: the targets are none of this output's.
        """
        x, targets = (batch, batch) if isinstance(batch, Tensor) else batch
        classes = self.layers[-1].out_features
        if self.output is not Output.CATEGORICAL and targets.shape != (len(x), classes):
            raise ValueError(
                f"{self.output} outputs of {len(x)} rows need targets of shape {(len(x), classes)}, got "
                f"{tuple(targets.shape)}; make numbers [batch] a column by targets.unsqueeze(1)"
            )
        if not self.checked:
            if self.output is Output.CATEGORICAL and not are_chances(targets, classes):
                check_labels(targets, classes)
            if self.output is Output.BERNOULLI and not bool(((targets >= 0) & (targets <= 1)).all()):
                raise ValueError("Bernoulli outputs need targets in 0 … 1: use data=digits, curves, or output=gaussian")
            self.checked = True
        return x, targets

    def _captured(self, seen: list[tuple[Tensor, Tensor, Tensor]], delta: Tensor) -> list[LayerIO]:
        """Send δ of the outputs back through the layers."""
        deltas = [delta]
        for k in range(len(seen) - 2, -1, -1):
            delta = self._slope_times(k, seen[k][2], delta @ self.layers[k + 1].weight)
            deltas.append(delta)
        parts = zip(self.layers, seen, reversed(deltas), strict=True)
        return [LayerIO(layer, *io, delta, log_det=False) for layer, io, delta in parts]

    def _output_rates(self, ios: list[LayerIO], tangents: Tangents) -> Tensor:
        """J v by forward mode, written out: ``[batch, outputs]``."""
        rate = torch.zeros_like(ios[0].a)
        for k, (io, (dW, db)) in enumerate(zip(ios, tangents, strict=True)):
            before = rate @ io.layer.weight.T if dW is None else torch.addmm(io.a @ dW.T, rate, io.layer.weight.T)
            rate = self._slope_times(k, io.y, before if db is None else before + db)
        return rate

    def _output_root(self, y: Tensor, rate: Tensor) -> Tensor:
        mean = self._mean(y)
        if self.output is Output.BERNOULLI:
            return rate * (mean * (1 - mean)).sqrt()
        if self.output is Output.CATEGORICAL:
            return mean.sqrt() * (rate - (mean * rate).sum(1, keepdim=True))
        return rate

    def _output_fisher(self, y: Tensor, rate: Tensor) -> Tensor:
        mean = self._mean(y)
        if self.output is Output.BERNOULLI:
            return rate * mean * (1 - mean)
        if self.output is Output.CATEGORICAL:
            return mean * (rate - (mean * rate).sum(1, keepdim=True))
        return rate

    def _activated(self, k: int, y: Tensor) -> Tensor:
        if k in self.linear:
            return y
        return torch.tanh(y) if self.activation is Activation.TANH else torch.relu(y)

    def _slope_times(self, k: int, y: Tensor, rate: Tensor) -> Tensor:
        """σ′(y) times rates of change, forward or backward."""
        if k in self.linear:
            return rate
        if self.activation is Activation.RELU:
            return rate * (y > 0)
        z = torch.tanh(y)
        return torch.addcmul(rate, rate, z * z, value=-1)

    def _mean(self, y: Tensor) -> Tensor:
        """Return the targets' expectation."""
        if self.output is Output.GAUSSIAN:
            return y
        return torch.sigmoid(y) if self.output is Output.BERNOULLI else torch.softmax(y, dim=1)

    def _expanded(self, targets: Tensor, y: Tensor) -> Tensor:
        """Turn labels ``[batch]`` into indicators ``[batch, outputs]``; chances of each class are that already."""
        labels = self.output is Output.CATEGORICAL and not targets.is_floating_point()
        return functional.one_hot(targets, y.shape[1]).to(y.dtype) if labels else targets

    def _target_log_prob(self, y: Tensor, targets: Tensor) -> Tensor:
        if self.output is Output.BERNOULLI:
            return -functional.binary_cross_entropy_with_logits(y, targets, reduction="none").sum(1)
        if self.output is Output.CATEGORICAL:
            return -functional.cross_entropy(y, targets, reduction="none")
        return -0.5 * (y - targets).square().sum(1) - 0.5 * y.shape[1] * math.log(2 * math.pi)


@torch.no_grad()
def drawn(logits: Tensor) -> Tensor:
    """Draw a class of each row of logits, ``[rows, classes]``, by the generator of their device: ``[rows]``.

    The largest of logits and Gumbel noise is categorical; ``torch.multinomial`` stops at NaN, and the device.
    """
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(1)


def are_chances(targets: Tensor, classes: int) -> bool:
    """Whether targets are the chances of so many classes, ``[batch, classes]``."""
    if not targets.is_floating_point() or targets.shape[1:] != (classes,):
        return False
    sums = targets.sum(1)
    return bool((targets >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


def check_labels(targets: Tensor, classes: int) -> None:
    """Raise a ``ValueError`` where they are none of so many classes'."""
    if targets.ndim != 1 or targets.dtype != torch.int64:
        raise ValueError(
            f"a classifier needs int64 labels, got {targets.dtype} of shape {tuple(targets.shape)}; or "
            "chances of each class, of a Classifier, that sum to 1"
        )
    if len(targets) and (targets.min() < 0 or targets.max() >= classes):
        raise ValueError(f"labels must lie in 0 … {classes - 1}, got {int(targets.min())} … {int(targets.max())}")

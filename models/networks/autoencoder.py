"""The deep autoencoder on which K-FAC and its relatives were measured.

Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks", Science 313; on MNIST
784-1000-500-250-30-250-500-1000-784 in Martens & Grosse 2015, arXiv 1503.05671.
"""

from __future__ import annotations

from collections.abc import Sequence

from stepscale.models.networks.mlp import MLP, Output

CODE = 30


class Autoencoder(MLP):
    """Narrowing layers, a linear code, widening layers; its target is its input. A step O(B P), P parameters.

    Args:
        dim: width of the data.
        depth: number of affine layers, even.
        hidden: widths from the first hidden layer to the code, depth/2 of them; None for dim, dim/2, dim/4, … and a
            code of an eighth, 30 at most.
        activation: ``"tanh"`` or ``"relu"``.
        output: ``"bernoulli"``, for values in 0 … 1, or ``"gaussian"``, of variance 1.
        init: of the weights: ``"xavier"``, ``"sparse"`` or ``"normal"``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 8,
        *,
        hidden: Sequence[int] | None = None,
        activation: str = "tanh",
        output: str = "gaussian",
        init: str = "xavier",
    ) -> None:
        if depth < 2 or depth % 2:
            raise ValueError(f"an autoencoder's depth must be even and at least 2, got depth={depth}")
        if hidden is None:
            narrowing = [max(1, dim // 2**k) for k in range(depth // 2 - 1)]
            hidden = [*narrowing, max(1, min([CODE, dim // 8, *narrowing]))]
        if len(hidden) != depth // 2:
            raise ValueError(f"hidden must name depth/2 = {depth // 2} widths, the code's last, got {list(hidden)}")
        if output == Output.CATEGORICAL:
            raise ValueError("an autoencoder's output is bernoulli or gaussian, got 'categorical'")
        widths = [dim, *hidden, *reversed(hidden[:-1]), dim]
        super().__init__(widths, activation=activation, output=output, linear={depth // 2 - 1}, init=init)

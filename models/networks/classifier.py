"""A multilayer perceptron for classification: square layers, and cross-entropy."""

from __future__ import annotations

from stepscale.models.networks.mlp import MLP


class Classifier(MLP):
    """``depth`` affine layers, all but the last as wide as the data. A step O(B P), P parameters.

    Args:
        dim: width of the data and of every hidden layer.
        depth: number of affine layers.
        classes: number of labels.
        activation: ``"tanh"`` or ``"relu"``.
        init: of the weights: ``"xavier"``, ``"sparse"`` or ``"normal"``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, dim: int, depth: int = 4, *, classes: int = 10, activation: str = "tanh", init: str = "xavier"
    ) -> None:
        if depth < 1 or classes < 2:
            raise ValueError(f"depth must be at least 1 and classes at least 2, got depth={depth}, classes={classes}")
        super().__init__([dim] * depth + [classes], activation=activation, output="categorical", init=init)

"""A small convolutional classifier of images, of torch's own modules.

Tensors are row batches of images drawn row by row, ``[batch, height · width]``, and their labels, ``[batch]``.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from stepscale.models.batch import Batch
from stepscale.models.networks.mlp import check_labels, drawn
from stepscale.models.objective import Objective

FILTER = 3


class ConvNet(nn.Module):
    """``depth`` convolutions of ``dim`` channels, halved images between them, and a linear head. A step O(L B P d²).

    P is the number of pixels. Every convolution but the last is followed by a pooling, where the image can still be
    halved.

    Args:
        dim: channels d of every convolution.
        depth: number L of convolutions.
        pixels: of an image, a square number.
        classes: number of labels.

    Raises:
        ValueError: an argument is out of its range.
    """

    objective = Objective(of_targets=True)

    def __init__(self, dim: int, depth: int = 2, *, pixels: int = 64, classes: int = 10) -> None:
        super().__init__()
        if min(dim, depth) < 1 or classes < 2:
            raise ValueError(
                f"dim and depth must be at least 1, classes at least 2, got dim={dim}, depth={depth}, classes={classes}"
            )
        self.side, self.checked = math.isqrt(pixels), False
        if pixels < 1 or self.side**2 != pixels:
            raise ValueError(f"pixels must be a square number, got {pixels}: set data.dim=64")
        convolutions = [nn.Conv2d(dim if k else 1, dim, FILTER, padding=FILTER // 2) for k in range(depth)]
        parts: list[nn.Module] = []
        for k, convolution in enumerate(convolutions):
            parts += [convolution, nn.ReLU()]
            if k < depth - 1 and self.side >> k >= 2:
                parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """O(L B P d²): logits of the classes, ``[batch, classes]``, by the mean of each channel."""
        return self.head(self.features(x.view(-1, 1, self.side, self.side)).mean((2, 3)))

    def loss(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the labels in nats.

        Raises:
            ValueError: the labels are none of these classes'; the first batch's are looked at.
        """
        x, labels = (batch, batch) if isinstance(batch, Tensor) else batch
        if not self.checked:
            check_labels(labels, self.head.out_features)
            self.checked = True
        return functional.cross_entropy(self(x), labels)

    def sampled_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of labels drawn from the model's own prediction of the same images."""
        logits = self(batch[0])
        return functional.cross_entropy(logits, drawn(logits))

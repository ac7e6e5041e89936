"""A causal language model: L blocks of width d, trained to predict the symbol that follows each.

Vaswani et al. 2017, "Attention is all you need", arXiv 1706.03762; normalised before each part (Xiong et al. 2020,
arXiv 2002.04745).

Tensors are ``[rows, context, …]``; rows × context is the number of tokens T, which stands where the batch stands.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stepscale.models.batch import Batch
from stepscale.models.networks.mlp import drawn
from stepscale.models.objective import Objective

WIDEST_HEAD = 64


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): four d × d matrices, and two of d × 4d. O(T (d² + context d)).

    Queries, keys and values have a matrix each: what preconditions matrices then treats each by itself.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // head_width(dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.widen, self.narrow = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        before, between = self.norms
        x = x + self._attended(before(x))
        return x + self.narrow(functional.gelu(self.widen(between(x))))

    def _attended(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """A causal language model. A step O(T (L (d² + context d) + symbols d)), of T = rows × context tokens.

    The head is not tied to the embedding: its gradient is that of one affine layer, which directions that precondition
    a layer can take, and with 256 symbols tying would save little.

    Args:
        dim: width d.
        depth: number L of blocks.
        context: most tokens of a row.
        symbols: number of them.
        recompute: whether autograd keeps a block's input alone and computes the rest of it again in the backward pass
            (activation checkpointing). Hooks keep what they capture.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, dim: int, depth: int = 2, *, context: int = 64, symbols: int = 256, recompute: bool = False
    ) -> None:
        super().__init__()
        if min(dim, depth, context) < 1 or symbols < 2:
            raise ValueError(
                "dim, depth and context must be at least 1 and symbols at least 2, "
                f"got dim={dim}, depth={depth}, context={context}, symbols={symbols}"
            )
        self.recompute = recompute
        self.objective = Objective(unit=f"nats per {'byte' if symbols == 256 else 'token'}", of_targets=True)
        self.embedding, self.places = nn.Embedding(symbols, dim), nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, symbols, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # what the blocks add would grow with their number (Radford et al. 2019)
                added = name.endswith(("out.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if added else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """O(T (L (d² + context d) + symbols d)): logits of the symbol after each, ``[rows, context, symbols]``.

        Raises:
            ValueError: a row has more tokens than ``context``.
        """
        count, most = tokens.shape[1], self.places.num_embeddings
        if count > most:
            raise ValueError(f"rows of {count} tokens do not fit context={most}: set context={count}, or cut them")
        x = self.embedding(tokens) + self.places.weight[:count]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False) if self.recompute else block(x)
        return self.head(self.norm(x))

    def loss(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the targets, in nats per token; tokens and targets ``[rows, context]``.

        Raises:
            ValueError: the batch is no such pair.
        """
        tokens, targets = (batch, batch) if isinstance(batch, Tensor) else batch
        if tokens.is_floating_point() or targets is tokens:
            raise ValueError("a language model needs int64 tokens and the token after each: use data=bytes")
        return functional.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())

    def loss_terms(self, batch: tuple[Tensor, Tensor]) -> int:
        """How many terms the loss of a batch is the mean of: its tokens."""
        return batch[0].numel()

    def sampled_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of targets drawn from the model's own prediction, each given the same tokens."""
        logits = self(batch[0]).flatten(0, 1)
        return functional.cross_entropy(logits, drawn(logits))


def head_width(dim: int) -> int:
    """Return the greatest divisor of a width up to 64: 64 itself, the width where it is smaller."""
    return next(width for width in range(min(dim, WIDEST_HEAD), 0, -1) if dim % width == 0)

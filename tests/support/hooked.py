"""Small models with ``loss`` alone, in float64, and what their layers saw, recorded without the code under test."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SYMBOLS, CONTEXT, WIDTH = 5, 4, 6


class Attention(nn.Module):
    """A causal language model of one block; its loss is a mean over tokens, or over rows of their means."""

    def __init__(self, count_tokens: bool = True) -> None:
        super().__init__()
        self.count_tokens = count_tokens
        self.embedding = nn.Embedding(SYMBOLS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, SYMBOLS)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.head(x + self.narrow(functional.gelu(self.wide(self.norm(x)))))

    def loss(self, batch: Tensor) -> Tensor:
        return functional.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def sampled_loss(self, batch: Tensor) -> Tensor:
        logits = self(batch[:, :-1]).flatten(0, 1)
        return functional.cross_entropy(logits, torch.distributions.Categorical(logits=logits.detach()).sample())

    def loss_terms(self, batch: Tensor) -> int:
        return batch[:, 1:].numel() if self.count_tokens else len(batch)


class Convnet(nn.Module):
    """Convolutions of every kind that has a rule, one of them used twice, and activations that write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.same = nn.Conv2d(3, 3, (2, 3), padding="same", bias=False)
        self.last = nn.Conv2d(3, 4, 2, padding="valid")
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu_(self.first(x))
        x = torch.tanh(self.same(torch.tanh(self.same(x))))
        return self.head(functional.relu_(self.last(x)).mean((2, 3)))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])


class Tied(nn.Module):
    """One weight used by three layers, of which two have biases of their own and one none, over pairs of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.bare = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.other.weight = self.bare.weight = self.one.weight
        self.head = nn.Linear(4, 2)
        self.double()

    def loss(self, batch: Tensor) -> Tensor:
        x = torch.tanh(self.bare(torch.tanh(self.other(torch.tanh(self.one(batch))))))
        return self.head(torch.tanh(self.one(x))).square().sum((1, 2)).mean()


def example(name: str, rows: int = 6) -> tuple[Any, Any]:
    """Build a model and a batch for it."""
    torch.manual_seed(0)
    if name.startswith("attention"):
        return Attention(name == "attention"), torch.randint(0, SYMBOLS, (rows, CONTEXT + 1))
    if name == "convnet":
        return Convnet(), (torch.randn(rows, 2, 5, 4, dtype=torch.float64), torch.randint(0, 3, (rows,)))
    return Tied(), torch.randn(rows, 2, 4, dtype=torch.float64)


def unrolled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What each output of a convolution sees, ``[batch, positions, channels · kernel]``, by plain loops."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    if conv.padding == "same":
        h, w = dh * (kh - 1), dw * (kw - 1)
        x = functional.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
    elif conv.padding != "valid":
        ph, pw = conv.padding
        x = functional.pad(x, (pw, pw, ph, ph))
    found = []
    for top in range(0, x.shape[2] - dh * (kh - 1), sh):
        for left in range(0, x.shape[3] - dw * (kw - 1), sw):
            patch = x[:, :, top : top + dh * (kh - 1) + 1 : dh, left : left + dw * (kw - 1) + 1 : dw]
            found.append(patch.flatten(1))
    return torch.stack(found, dim=1)


def seen(model: Any, batch: Any, names: list[str]) -> tuple[Tensor, Tensor]:
    """Rows (x, g) of the calls of those modules, ``[batch, rows, …]``: inputs, and gradients of the mean loss."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
        calls.append((module, args[0].detach().clone(), y))
        return y + 0  # so that nothing writes over it

    handles = [model.get_submodule(name).register_forward_hook(record) for name in names]
    loss = model.loss(batch)
    for handle in handles:
        handle.remove()
    xs, gs = [], []
    for module, x, y in calls:
        (g,) = torch.autograd.grad(loss, y, retain_graph=True)
        if isinstance(module, nn.Conv2d):
            xs.append(unrolled(module, x))
            gs.append(g.flatten(2).transpose(1, 2))
        else:
            xs.append(x.reshape(len(x), -1, x.shape[-1]))
            gs.append(g.reshape(len(x), -1, y.shape[-1]))
    return torch.cat(xs, dim=1), torch.cat(gs, dim=1)

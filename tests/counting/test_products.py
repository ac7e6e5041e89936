"""Recorded products against torch's own counter of FLOPs, and replayed: the same operations on the same shapes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint, flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stepscale.bench.counting.products import products_of, record_products
from stepscale.bench.notes import Notes
from stepscale.bench.records.operations import Operand, ProductSpec
from stepscale.bench.timing.limit import limit_of
from stepscale.models import ConvNet as NetworkOfConvolutions
from stepscale.models import Flow

aten = torch.ops.aten
B = 12


class MaskedLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.ones(outputs, inputs).tril())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.mask * self.weight, self.bias)


class MaskedFlow(nn.Module):
    """Affine autoregressive transforms by masked networks much wider than the data."""

    def __init__(self) -> None:
        super().__init__()
        widths = (2, 64, 64, 4)
        self.nets = nn.ModuleList(
            nn.Sequential(*(part for n, m in pairwise(widths) for part in (MaskedLinear(n, m), nn.Tanh())))
            for _ in range(3)
        )

    def loss(self, batch: Tensor) -> Tensor:
        z, log_det = batch, torch.zeros(len(batch))
        for net in self.nets:
            shift, scale = net(z).chunk(2, dim=1)
            z, log_det = z.flip(1) * scale.exp() + shift, log_det + scale.sum(1)
        return (z.square().sum(1) / 2 - log_det).mean()


class ConvNet(nn.Module):
    """Strides, padding, dilation, and a transposed convolution; the first input needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(8, 6, 3, dilation=2, padding=2, bias=False)
        self.up = nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1)
        self.out = nn.Linear(5 * 8 * 8, 10)

    def loss(self, batch: Tensor) -> Tensor:
        x = self.up(self.wide(self.down(batch.view(-1, 3, 8, 8)).relu()).relu())
        return self.out(x.flatten(1)).square().mean()


class Transformer(nn.Module):
    """A block with the attention kernel, and batched products beside it."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.experts = nn.Parameter(torch.randn(4, 16, 16))

    def loss(self, batch: Tensor) -> Tensor:
        x = batch.view(-1, 4, 16)
        q, k, v = (part.view(-1, 4, 2, 8).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = self.out(seen.transpose(1, 2).flatten(2)) + x
        return torch.baddbmm(x.transpose(0, 1), x.transpose(0, 1), self.experts).square().mean()


class Checkpointed(nn.Linear):
    """Its forward pass is run again during the backward pass, where only ``backward`` sees it."""

    def __init__(self) -> None:
        super().__init__(8, 8)

    def loss(self, batch: Tensor) -> Tensor:
        x = batch.detach().requires_grad_()
        return checkpoint.checkpoint(super().forward, x, use_reentrant=True).square().mean()


MODELS = {
    "masked flow": (MaskedFlow, (B, 2)),
    "convolutions": (ConvNet, (B, 3 * 8 * 8)),
    "transformer": (Transformer, (B, 64)),
    "checkpointed": (Checkpointed, (B, 8)),
    "causal transformer": (lambda: Transformer(causal=True), (B, 64)),
}
EACH = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    return build(), torch.randn(shape)


def flops_of(model: Any, batch: Tensor) -> int:
    """By torch's own counter, which knows the attention of every device but this one, by the same formulas."""
    forward, backward = flop_counter.sdpa_flop_count, flop_counter.sdpa_backward_flop_count
    of_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: forward(*args[:3]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *args, **_: backward(*args[:4]),
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=of_cpu) as counter:
        model.loss(batch).backward()
    return counter.get_total_flops()


@EACH
def test_flops_are_those_that_torch_counts(name: str) -> None:
    model, batch = made(name)
    products = record_products(model, batch)
    assert sum(product.flops for product in products) == flops_of(model, batch) > 0


def test_convolutions_are_counted_as_the_products_of_their_unfolded_patches() -> None:
    """[B · places, 9 · inputs] × [9 · inputs, outputs]: forward, for the filters, and for what is no image."""
    model = NetworkOfConvolutions(5, 2, pixels=16)
    products = record_products(model, (torch.rand(B, 16), torch.randint(0, 10, (B,))))
    first, second, head = 2 * B * 16 * 9 * 5, 2 * B * 4 * 9 * 5 * 5, 2 * B * 5 * 10
    assert sum(product.flops for product in products) == 2 * first + 3 * second + 3 * head
    limit = limit_of(model, B, products)
    assert limit is not None and limit.flops == 2 * first + 3 * second + 3 * head
    limit.run(1)


class Seen(TorchDispatchMode):
    """Operations with the shapes, strides and types of what they take and return."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        first = {"addmm": 1, "baddbmm": 1}.get(func.overloadpacket.__name__, 0)
        operation = func.overloadpacket.__name__.removeprefix("add").removeprefix("badd")
        taken, returned = (
            tuple((tuple(t.shape), t.stride(), t.dtype) for t in tree_leaves(part) if isinstance(t, Tensor))
            for part in (args[first:], result)
        )
        if operation in ("mm", "bmm") or "convolution" in operation or "attention" in operation:
            self.calls[operation, taken, returned] += 1
        return result


@EACH
def test_what_is_run_again_is_what_the_pass_ran(name: str) -> None:
    model, batch = made(name)
    sent = msgspec.json.encode(record_products(model, batch))
    with Seen() as there:
        model.loss(batch).backward()
    limit = limit_of(made(name)[0], B, msgspec.json.decode(sent, type=list[ProductSpec]))
    with Seen() as here:
        limit.run(2)
    assert here.calls == Counter({call: 2 * times for call, times in there.calls.items()})
    assert limit.flops == flops_of(model, batch)


def test_weights_are_the_models_own_and_memory_is_shared_as_in_the_pass() -> None:
    model, batch = made("transformer")
    products = record_products(model, batch)
    before = [parameter.clone() for parameter in model.parameters()]
    limit = limit_of(model, B, products)
    limit.run(1)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    taken = {argument.data_ptr() for call in limit.calls for argument in call.args if isinstance(argument, Tensor)}
    assert {p.data_ptr() for p in model.parameters() if p.ndim > 1} <= taken
    assert not own & {call.keywords["out"].data_ptr() for call in limit.calls if "out" in call.keywords}
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    forward, backward = products[0].arguments[0], products[-1].arguments[1]
    assert isinstance(forward, Operand) and isinstance(backward, Operand)
    assert forward.memory == backward.memory, "the input, for the product and for the gradient of its weight"


def test_a_product_does_not_run_into_what_it_reads() -> None:
    class InPlace(nn.Linear):
        def loss(self, batch: Tensor) -> Tensor:
            both = torch.zeros(2, 6, 6)
            with torch.no_grad():
                both[0].addmm_(both[0], both[1])
            return self(batch).sum()

    model = InPlace(6, 1)
    limit = limit_of(model, B, record_products(model, torch.ones(B, 6)))
    limit.run(1)
    left, right, out = *limit.calls[0].args, limit.calls[0].keywords["out"]
    assert left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr() != out.untyped_storage().data_ptr()


def test_gradients_are_left_as_they_are() -> None:
    model, batch = made("masked flow")
    first, *others = model.parameters()
    first.grad = torch.ones_like(first)
    with torch.no_grad():
        record_products(model, batch)
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(parameter.grad is None for parameter in others)


def test_without_products_there_is_no_limit() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def loss(self, batch: Tensor) -> Tensor:
            return (batch * self.scale).square().mean()

    model = Scaled()
    assert record_products(model, torch.randn(B, 3)) == []
    assert limit_of(model, B, []) is None and limit_of(model, B, None) is None


def test_a_model_that_names_its_products_needs_none_recorded() -> None:
    model, batch = made("masked flow")
    notes = Notes()
    assert products_of(Flow(4), torch.randn(B, 4), notes) is None
    assert products_of(model, batch, notes) and not notes


def test_a_loss_that_cannot_be_recorded_is_noted() -> None:
    class Vector(nn.Linear):
        def loss(self, batch: Tensor) -> Tensor:
            return self(batch)

    notes = Notes()
    assert products_of(Vector(4, 4), torch.randn(B, 4), notes) is None
    assert "scalar" in notes["limit"]

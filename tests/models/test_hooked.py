"""Capturing by hooks against models' own captures, autograd and plain loops, in float64; and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stepscale.models import FlowDensity, Hooked, each, rows_of, slopes
from stepscale.optimizers import EKFAC, KBFGS, KFAC, TNT
from tests.conftest import batch_of
from tests.support.dense import NETWORKS, network
from tests.support.hooked import Attention, Convnet, example, unrolled

pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("ignore:Using padding=.same. with even")]

EXAMPLES = pytest.mark.parametrize("name", ["attention", "attention by rows", "convnet", "tied"])


def captured(model: Any, batch: Any, rest: str = "gradient") -> list:
    return Hooked(model, "KFAC", rest).capture(batch)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_captured_as_it_captures_itself(name: str) -> None:
    model, batch = network(name)
    for one, other in zip(captured(model, batch, "refuse"), model.capture(batch), strict=True):
        assert one.layer is other.layer and one[5:] == other[5:]
        for part, expected in zip(one[1:5], other[1:5], strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)


@EXAMPLES
def test_the_gradient_of_a_layer_is_the_sum_over_its_uses(name: str) -> None:
    model, batch = example(name)
    with torch.no_grad():
        ios = captured(model, batch)
    rest = {n: p.grad for n, p in model.named_parameters() if "embedding" in n or "norm" in n}
    found: dict[str, Any] = {}
    names = {p.data_ptr(): n for n, p in model.named_parameters()}
    for io in ios:
        torch.testing.assert_close(io.y, io.layer(io.a).detach())
        torch.testing.assert_close(io.u, io.a @ io.layer.weight.detach().T)
        for parameter, a in ((io.layer.weight, io.a), (io.layer.bias, torch.ones_like(io.a[:, :1]))):
            if parameter is not None:
                there = names[parameter.data_ptr()]
                found[there] = found.get(there, 0) + (io.delta.T @ a / io.samples).flatten()
    model.zero_grad()
    model.loss(batch).backward()
    for name, parameter in model.named_parameters():
        got = rest[name].flatten() if name in rest else found[name]
        torch.testing.assert_close(got, parameter.grad.flatten(), rtol=1e-10, atol=1e-14)


@EXAMPLES
def test_rows_of_a_sample_are_counted_and_stand_together(name: str) -> None:
    """Each sample's loss along a direction, by a batch of that sample alone."""
    model, batch = example(name)
    ios = captured(model, batch)
    tangents = [(torch.randn_like(io.layer.weight), None) for io in ios]
    whole = slopes(ios, tangents)
    tokens = 4 if name == "attention" else 1
    assert len(whole) == tokens * rows_of(batch)
    for k in range(rows_of(batch)):
        alone = batch[k : k + 1] if isinstance(batch, Tensor) else tuple(part[k : k + 1] for part in batch)
        torch.testing.assert_close(slopes(captured(model, alone), tangents), whole[k * tokens : (k + 1) * tokens])


def test_patches_of_a_convolution_are_those_of_plain_loops() -> None:
    model, batch = example("convnet")
    io = captured(model, batch)[0]
    torch.testing.assert_close(io.a, unrolled(model.first, batch[0]).flatten(0, 1))
    assert io.copies == model.first(batch[0])[0, 0].numel()


def test_a_users_hook_that_changes_an_output_is_no_part_of_the_layer() -> None:
    model, batch = example("attention")
    model.head.register_forward_hook(lambda module, args, y: 3 * y)
    io = captured(model, batch)[-1]
    torch.testing.assert_close(io.y, functional.linear(io.a, model.head.weight, model.head.bias).detach())
    model.loss(batch).backward()
    torch.testing.assert_close(io.delta.T @ io.a / io.samples, model.head.weight.grad)


@EXAMPLES
def test_no_hook_stays_and_the_callers_mode_is_kept(name: str) -> None:
    model, batch = example(name)
    hooked = Hooked(model, "KFAC", "gradient")
    for _ in range(2):
        with torch.no_grad():
            hooked.capture(batch)
            assert not torch.is_grad_enabled()
    model.loss = None
    with pytest.raises(TypeError):
        hooked.capture(batch)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


class Strange(nn.Module):
    """A module of each kind without a rule, and a head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.fine = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.double()

    def loss(self, batch: Tensor) -> Tensor:
        x = self.norm(self.embedding(batch)) * self.scale
        x = self.attention(x, x, x)[0].transpose(1, 2).unsqueeze(-1)
        x = self.circular(self.grouped(x)).squeeze(-1).transpose(1, 2)
        return functional.cross_entropy(self.head(self.weighted(self.fine(x))).flatten(0, 1), batch.flatten())


def test_modules_without_a_rule_are_named_all_of_them() -> None:
    model, batch = Strange(), torch.randint(0, 5, (6, 3))
    with pytest.raises(TypeError, match="set rest=gradient") as found:
        captured(model, batch, "refuse")
    for name in ("the model itself (Strange)", "embedding (Embedding)", "norm (LayerNorm)", "head (Linear)",
                 "attention (MultiheadAttention)", "attention.out_proj (NonDynamicallyQuantizableLinear)",
                 "grouped (Conv2d)", "circular (Conv2d)"):  # fmt: skip
        assert name in str(found.value)
    assert "weighted.parametrizations.weight" in str(found.value) and "fine" not in str(found.value)


def test_what_has_no_rule_gets_its_plain_gradient() -> None:
    model, batch = Strange(), torch.randint(0, 5, (6, 3))
    (io,) = captured(model, batch)
    assert io.layer is model.fine
    found = {name: p.grad for name, p in model.named_parameters() if not name.startswith("fine")}
    model.zero_grad()
    model.loss(batch).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad)


class Elsewhere(nn.Module):
    """A parameter that is used outside of its module."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layer = what, nn.Linear(5, 5).double()

    def loss(self, batch: Tensor) -> Tensor:
        y = self.layer(batch)
        more = {"weight": y @ self.layer.weight, "bias": y + self.layer.bias, "nothing": y}
        return more[self.what].square().sum(1).mean()


@pytest.mark.parametrize("model", [Elsewhere("weight"), Elsewhere("bias"), FlowDensity(5).double()])
def test_a_gradient_that_is_not_of_the_modules_calls_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"the gradient of (layer|layers.0) \(Linear\) is not of its calls alone"):
        captured(model, batch_of())
    Hooked(Elsewhere("nothing"), "KFAC").capture(batch_of())


def single(model: Any, batch: Any, autocast: bool) -> tuple[Any, Any]:
    """The model in float32, its loss in bfloat16 where autocast has it so."""
    plain = model.float().loss

    def loss(batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return plain(batch)

    model.loss = loss
    return model, each(batch, lambda part: part.float() if part.is_floating_point() else part)


@pytest.mark.parametrize("direction", [KFAC, EKFAC, TNT, KBFGS])
@pytest.mark.parametrize("name", ["attention", "convnet"])
def test_under_autocast_a_direction_is_that_of_float32_to_the_digits_there_are(name: str, direction: Any) -> None:
    found, options = [], {} if direction is KBFGS else {"statistics": "data"}
    for autocast in (False, True):
        model, batch = single(*example(name), autocast)
        direction(model, frame="euclidean", rest="gradient", **options)(batch)
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 0.03 * one.norm()


def test_under_autocast_a_use_elsewhere_is_refused_as_ever() -> None:
    with pytest.raises(TypeError, match="not of its calls alone"):
        captured(*single(Elsewhere("weight"), batch_of(), True))


def test_rows_that_are_not_the_losss_terms_are_refused() -> None:
    class Sequences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5).double()

        def loss(self, batch: Tensor) -> Tensor:
            return self.layer(batch.transpose(0, 1)).square().sum((0, 2)).mean()

    with pytest.raises(TypeError, match=r"layer \(Linear\) sees rows of shape \(3, 7\), and the loss is a mean of 7"):
        captured(Sequences(), torch.randn(7, 3, 5, dtype=torch.float64))


def test_what_is_frozen_is_not_captured_and_loses_its_gradient() -> None:
    model, batch = example("convnet")
    frozen = [*model.same.parameters(), model.first.weight]
    for parameter in frozen:
        parameter.requires_grad_(False).grad = torch.ones_like(parameter)
    ios = captured(model, batch, "refuse")
    assert [tuple(io.layer.weight.shape) for io in ios] == [(3, 12), (4, 12), (3, 4)]
    assert all(parameter.grad is None for parameter in frozen)
    assert [io.layer.weight.requires_grad for io in ios] == [False, True, True]


def test_a_kernel_in_another_memory_format_is_written_all_the_same() -> None:
    model, batch = example("convnet")
    model.to(memory_format=torch.channels_last)
    for _ in range(2):
        for io in captured(model, batch):
            if io.layer.weight.grad is not None:
                io.layer.weight.grad.fill_(7)
    assert all((conv.weight.grad == 7).all() for conv in (model.first, model.same, model.last))


def test_drawn_targets_keep_the_inputs() -> None:
    model, batch = example("attention")
    hooked = Hooked(model, "KFAC", "gradient")
    ios = hooked.capture(batch)
    drawn = hooked.capture_samples(ios)
    for one, other in zip(ios, drawn, strict=True):
        assert torch.equal(one.a, other.a) and one.copies == other.copies and not torch.equal(one.delta, other.delta)


def test_the_classes_of_the_examples_offer_no_capture() -> None:
    assert not any(hasattr(kind, "capture") for kind in (Attention, Convnet))

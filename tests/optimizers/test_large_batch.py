"""Large batches: LARS and LAMB as their papers say, rates that follow the batch, and batches in parts."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.cells.build import build_step
from stepscale.bench.counting.operation_counts import Allocated
from stepscale.models import Autoencoder, Flow, Transformer
from stepscale.optimizers import KFAC, Accumulated, ExplicitInverse, Layerwise, Relative, pair
from tests.conftest import batch_of, generic_flow
from tests.support.compose import built, composed
from tests.support.libraries import need

STEPS = 6


def layers(scale: float = 1.0) -> tuple[nn.Module, list[list[Tensor]]]:
    """A weight and a bias that begins at zero, float64, and their gradients of some steps."""
    torch.manual_seed(3)
    module = nn.Linear(5, 4).double()
    nn.init.zeros_(module.bias)
    gradients = [[scale * torch.randn_like(p) for p in module.parameters()] for _ in range(STEPS)]
    return module, gradients


def moves(name: str, scale: float = 1.0, **settings: object) -> list[list[tuple[Tensor, Tensor]]]:
    """Each step's parameters before it, and by how much it moves them."""
    need(f"library/{name}")
    words = [f"++optimizer.update.{key}={value}" for key, value in settings.items()]
    module, gradients = layers(scale)
    update = built(composed(f"optimizer=library/{name}", "dim=8", *words)["optimizer"]["update"])(module.parameters())
    found = []
    for given in gradients:
        before = [p.detach().clone() for p in module.parameters()]
        for parameter, gradient in zip(module.parameters(), given, strict=True):
            parameter.grad = gradient.clone()
        update.step()
        found.append([(old, p.detach() - old) for old, p in zip(before, module.parameters(), strict=True)])
    return found


def test_lamb_moves_each_tensor_by_its_rate_times_its_norm() -> None:
    """‖ΔW‖ = lr φ(‖W‖), from the first step on; a bias of zero moves by lr m / √v, m / √v = 3.2 at first."""
    for k, step in enumerate(moves("lamb", lr=0.01, eps=1e-12)):
        for W, moved in step:
            norm = min(W.norm().item(), 10) or 0.1 / math.sqrt(0.001) * math.sqrt(W.numel())
            assert W.norm() > 0 or k == 0
            assert moved.norm().item() == pytest.approx(0.01 * norm, rel=1e-9), f"step {k}"


@pytest.mark.parametrize("decay", [0.0, 0.1, 3.0])
def test_lamb_is_the_papers_loop(decay: float) -> None:
    """r = m̂ / √v̂ + λ W, W ← W − lr φ(‖W‖) r / ‖r‖: the paper's decay is in the direction, ``weight_decouple=False``.

    The paper corrects moments for their zero start; the library does not, as the norm takes that out where there is no
    decay. With one its r is (1 − 0.9ᵗ) / √(1 − 0.999ᵗ) of the paper's beside λ W.
    """
    module, gradients = layers()
    expected = [p.detach().clone() for p in module.parameters()]
    m, v = ([torch.zeros_like(p) for p in expected] for _ in range(2))
    made = moves("lamb", lr=0.01, eps=1e-12, weight_decay=decay, weight_decouple=False)
    for given, found in zip(gradients, made, strict=True):
        for k, gradient in enumerate(given):
            m[k], v[k] = 0.9 * m[k] + 0.1 * gradient, 0.999 * v[k] + 0.001 * gradient**2
            r = m[k] / v[k].sqrt() + decay * expected[k]
            norm = expected[k].norm().item()
            if norm:
                wanted = -0.01 * min(norm, 10) / r.norm() * r
                torch.testing.assert_close(found[k][1], wanted, rtol=1e-8, atol=1e-12)
            expected[k] = found[k][0] + found[k][1]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_is_the_papers_loop(decay: float) -> None:
    """m ← μ m + ‖W‖ / (‖g‖ + λ ‖W‖) (g + λ W), W ← W − lr m; a bias has momentum alone, at the same lr."""
    module, gradients = layers()
    weights = [p.detach().clone() for p in module.parameters()]
    m = [torch.zeros_like(p) for p in weights]
    for given, found in zip(gradients, moves("lars", lr=0.02, weight_decay=decay), strict=True):
        for k, gradient in enumerate(given):
            W, local = weights[k], gradient
            if W.ndim > 1:
                local = W.norm() / (gradient.norm() + decay * W.norm()) * (gradient + decay * W)
            m[k] = 0.9 * m[k] + local
            torch.testing.assert_close(found[k][1], -0.02 * m[k], rtol=1e-12, atol=1e-14)
            weights[k] = W - 0.02 * m[k]


def test_lars_moves_matrices_by_their_norm_whatever_the_gradients_scale() -> None:
    """Without momentum ‖ΔW‖ = lr ‖W‖; with it, a thousand times the gradient is the same step; of a bias it is not."""
    for (W, moved), _ in moves("lars", lr=0.02, momentum=0):
        torch.testing.assert_close(moved.norm(), 0.02 * W.norm(), rtol=1e-12, atol=0)
    for one, other in zip(moves("lars"), moves("lars", scale=1e3), strict=True):
        torch.testing.assert_close(one[0][1], other[0][1], rtol=1e-10, atol=0)
        torch.testing.assert_close(1e3 * one[1][1], other[1][1], rtol=1e-10, atol=0)


def test_rates_follow_the_batch() -> None:
    """Four times the batch has four times the rate, or twice it, whatever batch the file had."""
    for resolver, factor in {"linear": 4, "root": 2}.items():
        words = "optimizer.update.lr='${" + resolver + ":0.1,${batch},100}'"
        found = [composed("optimizer=layerwise", f"batch={b}", words)["optimizer"]["update"]["lr"] for b in (100, 400)]
        assert found == pytest.approx([0.1, 0.1 * factor], rel=1e-15)


def test_a_rate_warms_up_and_is_restored_within() -> None:
    """torch's LinearLR, by words alone: from a third of the rate to all of it in four steps, and so after a restart."""
    words = (
        "+optimizer.scheduler._target_=torch.optim.lr_scheduler.LinearLR",
        "+optimizer.scheduler._partial_=true",
        "+optimizer.scheduler.total_iters=4",
    )
    config = composed("optimizer=layerwise", "optimizer.update.lr=0.3", "dim=5", *words)["optimizer"]
    flow, batch, rates = generic_flow(), batch_of(8), list[float]()
    step: Any = build_step(config, flow)
    for k in range(6):
        if k == 2:
            saved, step = step.state_dict(), build_step(config, flow)
            step.load_state_dict(saved)
        rates.append(step.update.param_groups[0]["lr"])
        step(batch)
    assert rates == pytest.approx([0.3 * min(1, 1 / 3 + k / 6) for k in range(6)], rel=1e-12)


def gradients(model: nn.Module, direction: Callable[[nn.Module], Any], batch: Any) -> list[Tensor]:
    """What a direction writes, after another batch whose gradients it is to forget; and the loss, where it tells it."""
    step = pair(model, direction, partial(torch.optim.SGD, lr=0))
    step(batch)
    loss = step.evaluate(batch, lambda phase: None)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]  # which others may write over
    return found if loss is None else [*found, loss.detach()]


DIRECTIONS = {"layerwise": Layerwise, "relative": Relative, "inverse": ExplicitInverse}


@pytest.mark.parametrize("rows", [24, 21])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_parts_write_what_the_whole_batch_writes(direction: Callable[[nn.Module], Any], rows: int) -> None:
    """Even parts and uneven ones, 1e-12 in float64; and 1e-6 in float32."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        flow, batch = generic_flow().to(dtype), batch_of(rows).to(dtype)
        wanted = gradients(flow, direction, batch)
        found = gradients(flow, partial(Accumulated, direction=direction, parts=8), batch)
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() <= tolerance * other.norm()


def test_parts_of_a_language_model_are_weighted_by_their_tokens() -> None:
    torch.manual_seed(0)
    model = Transformer(dim=8, depth=1, context=6, symbols=5).double()
    batch = (torch.randint(5, (7, 6)), torch.randint(5, (7, 6)))
    wanted = gradients(model, Layerwise, batch)
    found = gradients(model, partial(Accumulated, direction=Layerwise, parts=3), batch)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)


def peak(model: nn.Module, direction: Callable[[nn.Module], Any], batch: Any) -> int:
    """Bytes that a direction's tensors take at once, counted."""
    made = direction(model)
    made(batch)
    for parameter in model.parameters():
        parameter.grad = None
    with Allocated() as allocated:
        made(batch)
    return allocated.peak_bytes


@pytest.mark.parametrize("kind", [Flow, Autoencoder])
def test_eight_parts_take_a_third_of_the_memory_or_less(kind: type[nn.Module]) -> None:
    model, batch = kind(64), torch.randn(4096, 64)
    assert peak(model, Layerwise, batch) >= 3 * peak(model, partial(Accumulated, direction=Layerwise, parts=8), batch)


def test_parts_are_asked_for_by_words() -> None:
    """They time and train as any direction, and say of themselves what the one within says."""
    words = (
        "optimizer.direction._target_=stepscale.optimizers.Accumulated",
        "+optimizer.direction.parts=4",
        "+optimizer.direction.direction={_target_: stepscale.optimizers.Relative, _partial_: true}",
    )
    flow = generic_flow()
    step: Any = build_step(composed("optimizer=layerwise", *words)["optimizer"], flow)
    before = flow.layers[0].weight.detach().clone()
    step(batch_of(20))
    assert not torch.equal(before, flow.layers[0].weight) and step.facts == pair(flow, Relative, torch.optim.SGD).facts


def test_what_parts_would_change_is_refused() -> None:
    flow = generic_flow()
    with pytest.raises(TypeError, match="KFAC is no mean over rows"):
        Accumulated(flow, KFAC, 2)
    with pytest.raises(ValueError, match="ExplicitInverse repeats its work every 3 calls"):
        Accumulated(flow, partial(ExplicitInverse, interval=3), 2)
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        Accumulated(flow, Layerwise, 0)
    with pytest.raises(ValueError, match="a batch of 4 rows has no 5 parts"):
        Accumulated(flow, Layerwise, 5)(batch_of(4))
    with pytest.raises(ValueError, match="have a graph"):
        Accumulated(flow, partial(Layerwise, graph=True), 2)(batch_of(4))


MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[[], Any]]] = {
    "flow": (partial(Flow, 16, 8), lambda: torch.randn(256, 16)),
    "transformer": (
        partial(Transformer, 16, 8, context=16, symbols=7),
        lambda: (torch.randint(7, (16, 16)), torch.randint(7, (16, 16))),
    ),
}


def test_hooks_capture_what_is_computed_again_once() -> None:
    """Their forward passes come twice, and the second one counts as no use of a weight."""
    make, rows = MODELS["transformer"]
    torch.manual_seed(0)
    kept, again, batch = make(), make(recompute=True), rows()
    again.load_state_dict(kept.state_dict())
    kfac = partial(KFAC, frame="euclidean", statistics="data", rest="gradient")
    for one, other in zip(gradients(again, kfac, batch), gradients(kept, kfac, batch), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make, rows", MODELS.values(), ids=MODELS)
def test_what_is_computed_again_takes_less_memory_and_gives_the_same_bits(
    make: Callable[..., nn.Module], rows: Callable[[], Any]
) -> None:
    torch.manual_seed(0)
    kept, again = make(), make(recompute=True)
    again.load_state_dict(kept.state_dict())
    batch = rows()
    for one, other in zip(gradients(again, Layerwise, batch), gradients(kept, Layerwise, batch), strict=True):
        assert torch.equal(one, other)
    assert 2 * peak(again, Layerwise, batch) < peak(kept, Layerwise, batch)

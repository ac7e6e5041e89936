"""What calls itself exact is held to the exact gradient; a layer that is used twice is where it was not."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.errors import WrongGradientError
from stepscale.bench.notes import Notes
from stepscale.bench.timing.gradient_cosine import agreement
from stepscale.bench.timing.workload import Workload
from stepscale.models import Batch, Flow, LogDet
from stepscale.optimizers import Facts, Layerwise, Mark, Stateless, StochasticTrace, no_mark, pair
from tests.conftest import batch_of, generic_flow, gradients
from tests.support.compose import built, composed
from tests.support.jobs import job
from tests.support.workloads import OPTIMIZERS

pytestmark = pytest.mark.numerical

BY_AUTODIFF = {"adam", "layerwise", "lanczos_newton", "learned_rates", "mfac", "naive", "nesterov", "sgd_momentum"}


class TiedFlow(Flow):
    """A flow whose one layer is used at every place."""

    def __init__(self, dim: int, depth: int = 3) -> None:
        super().__init__(dim, depth)
        self.layers = nn.ModuleList([self.layers[0]] * depth)  # type: ignore[assignment]


def tied_and_untied() -> tuple[Flow, Flow]:
    """Return a float64 flow of one layer three times, and one of three layers of the same numbers."""
    untied = generic_flow()
    for layer in untied.layers[1:]:
        layer.load_state_dict(untied.layers[0].state_dict())
    tied = TiedFlow(5).double()
    tied.layers[0].load_state_dict(untied.layers[0].state_dict())
    return tied, untied


def test_a_tied_flow_is_captured_use_by_use() -> None:
    (tied, untied), x = tied_and_untied(), batch_of()
    for one, other in zip(tied.capture(x), untied.capture(x), strict=True):
        assert all(torch.equal(*parts) for parts in zip(one[1:5], other[1:5], strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_tied_layer_gets_the_gradient_of_all_its_uses_or_is_refused_by_name(name: str) -> None:
    (tied, untied), x = tied_and_untied(), batch_of()
    damped = ["optimizer.direction.damping=1e12"] if name == "lanczos_newton" else []  # which leaves g / damping
    step = built(composed(f"optimizer={name}", "dim=5", *damped)["optimizer"])(tied)
    if name not in BY_AUTODIFF:
        with pytest.raises(TypeError, match=r"captured layers 0 and 1 are tied: .* shape \(5, 5\).* use the layerwise"):
            step(x)
        return
    step(x)
    found = [gradient * (1e12 if damped else 1) for gradient in gradients(tied)]
    Layerwise(untied)(x)
    parts = gradients(untied)
    for got, uses in zip(found, (parts[::2], parts[1::2]), strict=True):
        torch.testing.assert_close(got, torch.stack(uses).sum(0), rtol=1e-9, atol=1e-9)


class LastUse(Stateless):
    """Writes the gradient of a layer's last use alone, and calls it exact."""

    facts = Facts(log_det=LogDet.EXACT, exact=True)

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        for io in self.model.capture(batch):
            io.layer.weight.grad = io.delta.T @ io.a / len(io.a) - torch.linalg.inv(io.layer.weight.detach()).T
            io.layer.bias.grad = io.delta.mean(0)


def test_what_calls_itself_exact_and_is_not_is_a_status_of_its_own(tmp_path: Path) -> None:
    last, only = "tests.timing.test_gradient_cosine.LastUse", "tests.timing.test_gradient_cosine.TiedFlow"
    found = measure_cell(job(tmp_path, f"model._target_={only}", f"optimizer.direction._target_={last}", "depth=3",
                             optimizer="layerwise"))  # fmt: skip
    assert found.status == "wrong_gradient"
    assert "declares that it writes the exact gradient" in found.reason and "exact=False" in found.reason
    found = measure_cell(job(tmp_path, f"optimizer.direction._target_={last}", optimizer="layerwise"))
    assert found.status == "ok" and found.direction.cosine == pytest.approx(1), "of layers that are used once it is"


def workload(model: Any, direction: Any = Layerwise, update: Any = torch.optim.SGD) -> Workload:
    dtype = next(model.parameters()).dtype
    return Workload(model, pair(model, direction, partial(update, lr=1e-3)), [torch.randn(20, 6).to(dtype)])


def test_the_cosine_is_that_of_the_two_gradients() -> None:
    model = TiedFlow(6)
    there = workload(model, LastUse)
    x, alone = there.batches[0], deepcopy(model)
    LastUse(alone)(x)
    written = torch.cat([g.double().flatten() for g in gradients(alone)])
    Layerwise(alone)(x)
    exact = torch.cat([g.double().flatten() for g in gradients(alone)])
    cosine = (written @ exact / written.norm() / exact.norm()).item()
    assert cosine < 0.99
    with pytest.raises(WrongGradientError, match=f"cosine to that is {cosine:.3f}, below 0.999"):
        agreement(there, 6, Notes())


@pytest.mark.parametrize("coarse", ["tf32", "bfloat16"])
def test_coarse_rounding_is_no_wrong_gradient(coarse: str) -> None:
    try:
        if coarse == "tf32":
            torch.set_float32_matmul_precision("high")
            found = agreement(workload(TiedFlow(6), LastUse), 6, Notes())
        else:
            found = agreement(workload(Noisy(6).bfloat16(), Scaled), 6, Notes())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.cosine is not None and found.cosine < 0.999


def test_what_does_not_call_itself_exact_may_be_anything() -> None:
    found = agreement(workload(Flow(6), partial(StochasticTrace, probes=1)), 6, Notes())
    assert found.cosine is not None and found.cosine < 0.999


class Noisy(nn.Linear):
    """Its loss is random, by torch's generator or by one of its own."""

    def __init__(self, dim: int, own: torch.Generator | None = None) -> None:
        super().__init__(dim, dim)
        self.own = own

    def loss(self, batch: Tensor) -> Tensor:
        noise = torch.randn(batch.shape, generator=self.own).to(batch.dtype)
        return (self(batch + noise) - batch).square().mean()


class Scaled(Layerwise):
    """Writes another gradient than the exact one."""

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        super().__call__(batch, mark)
        for parameter in self.model.parameters():  # type: ignore[attr-defined]
            parameter.grad.abs_()


class Signs(torch.optim.SGD):
    """Changes ``.grad`` itself, as many an update does."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.sign_()
        super().step()


@pytest.mark.parametrize("update", [torch.optim.SGD, Signs])
def test_a_random_loss_and_an_update_that_changes_gradients_are_no_wrong_gradient(update: Any) -> None:
    found = agreement(workload(Noisy(6), update=update), 6, Notes())
    assert found.cosine == pytest.approx(1)


def test_a_loss_of_a_generator_of_its_own_has_no_cosine() -> None:
    notes = Notes()
    assert agreement(workload(Noisy(6, torch.Generator())), 6, notes).cosine is None
    assert "the loss is random" in notes["cosine"]


def test_a_frozen_layer_has_no_part_in_the_cosine() -> None:
    model = Flow(6)
    model.layers[0].requires_grad_(False)
    assert agreement(workload(model), 6, Notes()).cosine == pytest.approx(1)

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from stepscale.models import Classifier, ConvNet
from stepscale.optimizers import (
    KFAC,
    KLDWRM,
    TNT,
    KLClipped,
    Layerwise,
    NearAll,
    QuadraticStep,
    Relative,
    RelativeSGD,
    Stateless,
    Step,
    TrustRegion,
    pair,
)
from tests.conftest import batch_of, generic_flow
from tests.support.theirs import WithScale
from tests.support.workloads import OPTIMIZERS, workload_of

pytestmark = pytest.mark.numerical
SGD = partial(torch.optim.SGD, lr=1e-3)


@pytest.mark.parametrize(
    "update",
    [
        partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
        partial(torch.optim.Adam, lr=1e-2),
        partial(torch.optim.AdamW, lr=1e-2),
    ],
    ids=lambda update: update.func.__name__,
)
def test_a_pair_is_the_ordinary_training_loop(update: partial) -> None:
    model, other = generic_flow(), generic_flow()
    other.load_state_dict(model.state_dict())
    step, optimizer = pair(model, Layerwise, update), update(other.parameters())
    for _ in range(5):
        x = batch_of()
        step(x)
        optimizer.zero_grad()
        other.loss(x).backward()
        optimizer.step()
    for got, want in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(got, want)


def test_state_goes_through_both_halves() -> None:
    model, x = generic_flow(), batch_of()
    step = pair(model, Layerwise, partial(torch.optim.Adam, lr=1e-2))
    step(x)
    again = pair(model, Layerwise, partial(torch.optim.Adam, lr=1e-2))
    again.load_state_dict(step.state_dict())
    first = next(model.parameters())
    torch.testing.assert_close(again.update.state[first]["exp_avg"], step.update.state[first]["exp_avg"])


def test_phases_are_marked_in_order() -> None:
    phases: list[str] = []
    pair(generic_flow(), Layerwise, partial(torch.optim.SGD, lr=1e-2))(batch_of(), phases.append)
    assert phases == ["gradient", "update"]


@pytest.mark.parametrize(
    "build",
    [
        lambda model: pair(model, Relative, SGD),
        lambda model: pair(model, KFAC, SGD),
        lambda model: KLClipped(model, KFAC, SGD),
        lambda model: QuadraticStep(model, KFAC),
        lambda model: RelativeSGD(model, lr=1e-3),
    ],
    ids=["relative", "kfac", "clipped", "quadratic", "fused"],
)
def test_a_parameter_that_would_never_be_trained_is_named(build: Callable[[nn.Module], Step]) -> None:
    with pytest.raises(TypeError, match=r"which left out parameters of shapes \(3,\): have them captured, freeze them"):
        build(WithScale(5).double())(batch_of())
    model = WithScale(5).double()
    model.scale.requires_grad_(False)
    before = model.layers[0].weight.detach().clone()
    build(model)(batch_of())
    assert not torch.equal(model.layers[0].weight, before)


@pytest.mark.parametrize(
    "build",
    [
        lambda: pair(Classifier(4), partial(TNT, frame="euclidean"), SGD),
        lambda: pair(ConvNet(2, pixels=4), partial(KFAC, frame="euclidean"), SGD),
        lambda: KLClipped(Classifier(4), partial(KFAC, frame="euclidean"), SGD),
        lambda: TrustRegion(Classifier(4), partial(TNT, frame="euclidean", momentum=0.9), SGD),
        lambda: QuadraticStep(Classifier(4), partial(KFAC, frame="euclidean")),
        lambda: NearAll(Classifier(4), partial(KLDWRM, order="q", frame="euclidean"), SGD),
    ],
    ids=["tnt", "kfac by hooks", "clipped", "trusted", "quadratic", "near all"],
)
def test_a_batch_without_rows_is_refused_by_what_captures(build: Callable[[], Step]) -> None:
    with pytest.raises(ValueError, match="the batch has no rows, and a mean over them is no number: leave it out"):
        build()((torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))


@pytest.mark.parametrize("build", [QuadraticStep, partial(KLClipped, update=partial(torch.optim.SGD, lr=0.1))])
def test_what_needs_factors_refuses_another_direction(build: Callable[..., Step]) -> None:
    with pytest.raises(TypeError, match="must be one of curvature in factors, as KFAC, got Relative"):
        build(generic_flow(), Relative)


def test_a_clipped_update_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(TypeError, match=r"LBFGS\.step needs a closure"):
        KLClipped(generic_flow(), KFAC, partial(torch.optim.LBFGS, lr=1.0))


def test_a_stateless_direction_takes_no_state() -> None:
    with pytest.raises(ValueError, match="has no state, got one with factors"):
        Stateless().load_state_dict({"factors": []})


def test_layerwise_serves_a_model_that_has_only_a_loss() -> None:
    class OnlyLoss(nn.Linear):
        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            return self(batch).square().mean()

    model = OnlyLoss(4, 4)
    before = model.weight.clone()
    pair(model, Layerwise, partial(torch.optim.SGD, lr=0.1))(torch.randn(3, 4))
    assert not torch.equal(before, model.weight)


OVERWRITING = sorted(name for name in OPTIMIZERS if workload_of(name).facts.writes_in_place)


@pytest.mark.parametrize("name", OVERWRITING)
@pytest.mark.parametrize("model", ["flow", "autoencoder"])
def test_gradients_are_written_over_in_place(name: str, model: str) -> None:
    """What stood there does not matter, and the memory is the same."""
    written = []
    for before in (1.0, math.nan):
        torch.manual_seed(0)
        workload = workload_of(name, f"model={model}")
        parameters = list(workload.model.parameters())
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, before)
        places = [parameter.grad.data_ptr() for parameter in parameters if parameter.grad is not None]
        try:
            workload.run(2)
        except TypeError as error:  # the pair does not apply
            assert "log|det W|" in str(error)
            return
        assert places == [parameter.grad.data_ptr() for parameter in parameters if parameter.grad is not None]
        written.append([parameter.grad for parameter in parameters if parameter.grad is not None])
    for one, other in zip(*written, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_most_directions_write_over() -> None:
    assert {"relative", "kfac", "kfac_clipped", "kfac_whole", "ekfac", "foof", "natural", "inverse"} <= set(OVERWRITING)
    assert not {"layerwise", "adam", "naive"} & set(OVERWRITING)


def test_a_direction_that_accumulates_finds_no_gradient() -> None:
    model, x = generic_flow(), batch_of()
    step = pair(model, Layerwise, partial(torch.optim.SGD, lr=0.0))
    step(x)
    once = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    step(x)
    for parameter, gradient in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)

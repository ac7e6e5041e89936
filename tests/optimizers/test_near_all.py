"""KLD-WRM by its divergences themselves, against autograd of what it minimises, in float64."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal, kl_divergence
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from stepscale.models import MLP, Batch, Classifier, Flow
from stepscale.optimizers import KFAC, KLDWRM, NearAll, Schedule, pair

pytestmark = pytest.mark.numerical

ETA, LAMBDA, RHO, STORED = 0.3, 0.2, 0.5, 2
SGD = partial(torch.optim.SGD, lr=ETA)
WAKE = partial(
    KLDWRM,
    order="q",
    frame="euclidean",
    damping=LAMBDA,
    statistics="data",
    schedule=Schedule(statistics=1, inverse=2, decay=RHO),
)
OUTPUTS = ("gaussian", "bernoulli", "categorical")


def network(output: str) -> MLP:
    torch.manual_seed(0)
    return MLP([3, 4, 2], activation="tanh", output=output).double()


def batches(output: str) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    targets = {"gaussian": torch.randn(4, 6, 2, dtype=torch.float64), "bernoulli": torch.rand(4, 6, 2).double()}
    labels = torch.randint(0, 2, (4, 6))
    return list(zip(torch.randn(4, 6, 3, dtype=torch.float64), targets.get(output, labels), strict=True))


def outputs_at(model: MLP, place: Tensor, x: Tensor) -> Distribution:
    """The density of the targets with these parameters."""
    names, parts, begun = [], list[Tensor](), 0
    for name, parameter in model.named_parameters():
        names.append(name)
        parts.append(place[begun : begun + parameter.numel()].view_as(parameter))
        begun += parameter.numel()
    y = functional_call(model, dict(zip(names, parts, strict=True)), (x,))
    if model.output == "gaussian":
        return Independent(Normal(y, torch.ones_like(y)), 1)
    return Independent(Bernoulli(logits=y), 1) if model.output == "bernoulli" else Categorical(logits=y)


class Rule:
    """What is minimised over a place, from the place a step begins at and those before it."""

    def __init__(self, model: MLP, batch: tuple[Tensor, Tensor], passed: list[Tensor], weights: list[float]) -> None:
        self.model, self.x, self.start = model, batch[0], passed[-1]
        self.passed, self.weights = passed[-STORED:], weights[-STORED:]
        self.F = torch.autograd.functional.hessian(lambda t: self.apart(self.start, t), self.start)
        with torch.enable_grad():
            loss = model.loss(batch)
        self.g = parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))

    def apart(self, i: Tensor, t: Tensor) -> Tensor:
        return kl_divergence(outputs_at(self.model, i, self.x), outputs_at(self.model, t, self.x)).mean()

    def __call__(self, t: Tensor) -> Tensor:
        s = t - self.start
        near = sum(w * self.apart(i, t) for w, i in zip(self.weights, self.passed, strict=True))
        return self.g @ s + 0.5 * s @ self.F @ s + (near + 0.5 * LAMBDA * s @ s) / ETA

    def slope(self, t: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(self, t)


@torch.no_grad()
def place_of(model: MLP) -> Tensor:
    return parameters_to_vector(model.parameters()).clone()


def weighted(count: int) -> list[float]:
    """Of so many iterates: those of an average that is a plain mean of its first two."""
    weights = list[float]()
    for k in range(count):
        rho = min(1 - 1 / (k + 1), RHO)
        weights = [*(rho * w for w in weights), 1 - rho]
    return weights


@pytest.mark.parametrize("output", OUTPUTS)
def test_iterations_descend_what_the_paper_minimises(output: str) -> None:
    """From where the step of order q leads, which another model takes from the same places."""
    model, other = network(output), network(output)
    step = NearAll(model, WAKE, SGD, iterations=3, rate=0.2, momentum=0.4, stored=STORED)
    first, passed = pair(other, WAKE, SGD), list[Tensor]()
    for batch in batches(output):
        passed.append(place_of(other))
        rule = Rule(other, batch, passed, weighted(len(passed)))
        first(batch)
        place, velocity = place_of(other), torch.zeros(len(passed[-1]), dtype=torch.float64)
        for _ in range(3):
            velocity = 0.4 * velocity + rule.slope(place)
            place = place - 0.2 * ETA * velocity
        vector_to_parameters(place, other.parameters())
        step(batch)
        torch.testing.assert_close(place_of(model), place, rtol=0, atol=1e-12)


@pytest.mark.parametrize("output", OUTPUTS)
def test_many_iterations_end_at_the_minimum(output: str) -> None:
    model, passed = network(output), list[Tensor]()
    step = NearAll(model, WAKE, SGD, iterations=2000, rate=0.2, stored=STORED)
    for batch in batches(output)[:3]:
        passed.append(place_of(model))
        rule = Rule(model, batch, passed, weighted(len(passed)))
        step(batch)
    found = place_of(model)
    assert rule.slope(found).abs().max() < 1e-10
    nearby = [found + 1e-3 * torch.randn_like(found) for _ in range(20)]
    assert all(rule(found) < rule(place) for place in nearby)


def test_a_restored_step_goes_on_as_it_would_have() -> None:
    model, (a, b, c, d) = network("bernoulli"), batches("bernoulli")
    step = NearAll(model, WAKE, SGD, stored=STORED)
    step(a), step(b)
    saved, place = deepcopy(step.state_dict()), place_of(model)
    step(c), step(d)
    end = place_of(model)
    again = network("bernoulli")
    resumed = NearAll(again, WAKE, SGD, stored=STORED)
    vector_to_parameters(place, again.parameters())
    resumed.load_state_dict(saved)
    resumed(c), resumed(d)
    assert torch.equal(place_of(again), end)


def test_at_a_rate_of_zero_nothing_moves() -> None:
    model, (a, b, c, d) = network("gaussian"), batches("gaussian")
    step = NearAll(model, WAKE, SGD, stored=STORED)
    step(a), step(b)
    for rate, batch in ((0.0, c), (ETA, d)):
        step.update.param_groups[0]["lr"], before = rate, place_of(model)
        step(batch)
        assert torch.equal(place_of(model), before) == (rate == 0)


def test_what_is_frozen_stays() -> None:
    model = network("gaussian")
    model.layers[0].weight.requires_grad_(False)
    before, moving = model.layers[0].weight.clone(), model.layers[1].weight.clone()
    step = NearAll(model, WAKE, SGD)
    for batch in batches("gaussian"):
        step(batch)
    assert torch.equal(model.layers[0].weight, before) and not torch.equal(model.layers[1].weight, moving)


def test_a_classifier_is_trained_by_chances_as_by_labels() -> None:
    model, labels = Classifier(4, 2, classes=3).double(), torch.tensor([0, 2, 1, 1])
    x, chances = torch.randn(4, 4, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[labels]
    assert model.loss((x, chances)).item() == pytest.approx(model.loss((x, labels)).item(), abs=1e-14)
    for one, other in zip(model.capture((x, chances)), model.capture((x, labels)), strict=True):
        torch.testing.assert_close(one.delta, other.delta, rtol=0, atol=1e-14)
    soft: Batch = (x, torch.softmax(torch.randn(4, 3, dtype=torch.float64), 1))
    model.loss(soft).backward()
    for io in model.capture(soft):
        torch.testing.assert_close(io.layer.weight.grad, io.delta.T @ io.a / 4, rtol=0, atol=1e-14)


@pytest.mark.parametrize("chances", [torch.ones(2, 3), torch.full((2, 4), 0.25), torch.tensor([[1.5, -0.5, 0.0]] * 2)])
def test_chances_that_are_none_are_refused(chances: Tensor) -> None:
    with pytest.raises(ValueError, match=r"a classifier needs int64 labels, got torch\.float32"):
        Classifier(4, 2, classes=3).loss((torch.randn(2, 4), chances))


@pytest.mark.parametrize(
    ("error", "options", "said"),
    [
        (ValueError, {"iterations": 0}, "iterations and stored must be at least 1"),
        (ValueError, {"rate": 0.0}, "rate positive"),
        (ValueError, {"momentum": 1.0}, "momentum=1.0"),
        (ValueError, {"direction": partial(KLDWRM, order="so")}, "set direction.order=q"),
        (TypeError, {"direction": KFAC}, "got KFAC"),
        (TypeError, {"model": Flow(4)}, "with_expected_targets"),
    ],
)
def test_refusals_name_the_value(error: type[Exception], options: dict[str, Any], said: str) -> None:
    given = {"model": network("gaussian"), "direction": WAKE, "update": SGD} | options
    with pytest.raises(error, match=said):
        NearAll(**given)

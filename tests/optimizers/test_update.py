"""Updates of every kind against the loops that their authors show, and against closed forms."""

import gc
import math
import pickle
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from stepscale.bench.counting.operation_counts import Allocated
from stepscale.optimizers import MFAC, Closure, Layerwise, MomentumSchedule, Relative, Split, pair, split
from tests.conftest import batch_of, generic_flow

pytestmark = pytest.mark.numerical

SGD = partial(torch.optim.SGD, lr=0.01)
ADAM = partial(torch.optim.Adam, lr=0.01)
BATCHES = [(torch.arange(35.0, dtype=torch.float64).reshape(7, 5) * k).sin() for k in range(1, 7)]


class Bowl(nn.Module):
    """½ Σ h w²: the Hessian matrix is the diagonal of h, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, 5, dtype=torch.float64))
        self.h = torch.linspace(0.5, 3, 5, dtype=torch.float64)

    def loss(self, batch: Tensor) -> Tensor:
        return 0.5 * (self.h * self.weight.square()).sum()


class Tower(nn.Module):
    """An embedding, a hidden layer and a head, all of which have matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def loss(self, batch: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(batch)).tanh()).square().mean()


class Twice(torch.optim.Optimizer):
    """Steps along the gradient at w + ∇, and does not say in its signature that it needs a closure."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is None:
            raise RuntimeError("Twice requires closure")
        (group,) = self.param_groups
        before = [p.clone() for p in group["params"]]
        for p in group["params"]:
            p.add_(p.grad)
        closure()
        for p, w in zip(group["params"], before, strict=True):
            p.copy_(w - group["lr"] * p.grad)


class OfModel(torch.optim.SGD):
    """Trains the weights of a model's linear layers, which it finds by itself."""

    def __init__(self, model: nn.Module, weights_alone: bool = False) -> None:
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        super().__init__([p for layer in layers for p in layer.parameters() if p.ndim == 2 or not weights_alone], 0.01)


def twins() -> tuple[nn.Module, nn.Module]:
    model = generic_flow()
    return model, deepcopy(model)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for got, want in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(got, want)


def test_split_is_two_optimizers_with_one_schedule() -> None:
    model, other = twins()
    step = pair(model, Layerwise, partial(split, matrices=SGD, rest=ADAM), scheduler=partial(ExponentialLR, gamma=0.5))
    two = [
        SGD([p for p in other.parameters() if p.ndim == 2]),
        ADAM([p for p in other.parameters() if p.ndim != 2]),
    ]
    schedules = [ExponentialLR(one, gamma=0.5) for one in two]
    for x in BATCHES:
        step(x)
        other.zero_grad()
        other.loss(x).backward()  # type: ignore[operator]
        for part in (*two, *schedules):
            part.step()
    assert_same(model, other)
    assert step.facts.period_known, "both are torch's own"
    assert [group["lr"] for group in step.update.param_groups] == [0.01 / 2**6] * 2


def test_matrices_are_kept_out_by_name() -> None:
    model = Tower()
    found = split(model, matrices=SGD, rest=ADAM, kept_out=["embedding*", "head.weight"])
    assert [len(part.param_groups[0]["params"]) for part in found.parts] == [1, 5]
    assert found.parts[0].param_groups[0]["params"][0] is model.hidden.weight
    model.hidden.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"kept_out has 'hidden\*', and no matrix is called so; there are embedding"):
        split(model, matrices=SGD, rest=ADAM, kept_out=["hidden*"])
    with pytest.raises(ValueError, match="Tower has no matrix to train but what kept_out names: use `rest` alone"):
        split(model, matrices=SGD, rest=ADAM, kept_out=["*"])


def test_split_leaves_out_an_update_of_nothing() -> None:
    assert len(split(nn.Linear(2, 2, bias=False), matrices=SGD, rest=ADAM).parts) == 1


@pytest.mark.parametrize(
    ("part", "message"),
    [(torch.optim.LBFGS, "LBFGS.step needs a closure, which split has not"), (OfModel, "the model")],
)
def test_split_refuses_what_wants_more_than_gradients(part: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        split(Tower(), matrices=part, rest=ADAM)


@pytest.mark.parametrize("direction", [Layerwise, Relative])
def test_an_update_evaluates_as_often_as_it_asks(direction: Any) -> None:
    """L-BFGS beside its documentation's loop, whose gradients are the same direction's."""
    model, other = twins()
    update = partial(torch.optim.LBFGS, lr=0.1, max_iter=3, history_size=4, line_search_fn="strong_wolfe")
    step, optimizer, counted, asked = pair(model, direction, update), update(other.parameters()), [0], 0
    directed = direction(other)

    def mark(phase: str) -> None:
        counted[0] += phase == "gradient"

    for x in BATCHES:
        step(x, mark)

        def closure(x: Tensor = x) -> Tensor:
            nonlocal asked
            asked += 1
            optimizer.zero_grad()
            directed(x)
            with torch.no_grad():
                return other.loss(x)  # type: ignore[operator]

        optimizer.step(closure)  # type: ignore[arg-type]
    assert_same(model, other)
    assert asked > 2 * len(BATCHES)
    assert counted[0] == asked * (1 if direction is Layerwise else 2), "the loss beside a direction that has none"
    assert not step.facts.period_known


def test_a_closure_may_evaluate_again() -> None:
    model = Bowl()
    step, w, h = pair(model, Layerwise, Twice, closure=Closure.AGAIN), model.weight.detach().clone(), model.h
    for _ in range(4):
        step(batch_of())
        w = w - 0.01 * h * (w + h * w)
    torch.testing.assert_close(model.weight.detach(), w, rtol=1e-14, atol=0)


def test_an_update_that_does_not_say_what_it_needs_is_told_how() -> None:
    with pytest.raises(TypeError, match=r"Twice\.step needs a closure: say optimizer\.closure=again"):
        pair(Bowl(), Layerwise, Twice)(batch_of())
    with pytest.raises(ValueError, match="closure must be one of first, again, got 'twice'"):
        pair(Bowl(), Layerwise, Twice, closure="twice")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ReduceLROnPlateau\.step needs a metric"):
        pair(Bowl(), Layerwise, SGD, scheduler=ReduceLROnPlateau)  # type: ignore[arg-type]


def test_another_fault_of_a_first_step_is_its_own() -> None:
    step = pair(Bowl(), Layerwise, SGD)
    step.update.step = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        step(batch_of())


def test_an_update_that_wants_the_model_is_given_it() -> None:
    model, other = twins()
    step, optimizer = pair(model, Layerwise, OfModel), SGD(other.parameters())
    for x in BATCHES:
        step(x)
        optimizer.zero_grad()
        other.loss(x).backward()  # type: ignore[operator]
        optimizer.step()
    assert_same(model, other)


def test_what_an_update_would_not_train_is_named() -> None:
    with pytest.raises(TypeError, match=r"OfModel would not train parameters of shapes \(4,\), \(4,\), \(2,\): freeze"):
        pair(Tower(), Layerwise, partial(OfModel, weights_alone=True))


@pytest.mark.parametrize("update", [SGD, partial(split, matrices=ADAM, rest=SGD)], ids=["one", "split"])
def test_a_schedule_goes_on_where_it_was(update: Any) -> None:
    def built(model: nn.Module) -> Any:
        return pair(model, Layerwise, update, scheduler=partial(StepLR, step_size=4))

    model, other = twins()
    whole, cut = built(model), built(other)
    for k, x in enumerate(BATCHES):
        whole(x)
        cut(x)
        if k == 2:
            state, other = deepcopy(cut.state_dict()), deepcopy(other)
            cut = built(other)
            cut.load_state_dict(state)
    assert_same(model, other)
    assert cut.update.param_groups[0]["lr"] == pytest.approx(0.001)


UPDATES = [
    partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    partial(MomentumSchedule, lr=0.01, interval=1),
    partial(MFAC, lr=0.01, window=3),
    partial(split, matrices=ADAM, rest=partial(MFAC, lr=0.01, window=3)),
]
every_update = pytest.mark.parametrize("update", UPDATES, ids=["sgd", "schedule", "mfac", "split"])


@every_update
@pytest.mark.parametrize("copied", [deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
def test_a_copy_of_model_and_step_goes_on_as_they_do(update: Any, copied: Any) -> None:
    model = generic_flow()
    step = pair(model, Layerwise, update)
    step(BATCHES[0])
    other, again = copied((model, step))
    for x in BATCHES[1:]:
        step(x)
        again(x)
    assert_same(model, other)


@every_update
def test_a_state_can_be_taken_up_again_after_training_from_it(update: Any) -> None:
    model = generic_flow()
    step = pair(model, Layerwise, update)
    step(BATCHES[0])
    saved, ends = deepcopy((model.state_dict(), step.state_dict())), []
    for _ in range(2):
        model.load_state_dict(saved[0])
        step.load_state_dict(saved[1])
        for x in BATCHES[1:]:
            step(x)
        ends.append(deepcopy(model))
    assert_same(*ends)


def test_a_schedule_free_part_of_a_split_is_trained_and_judged() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    step = pair(Tower(), Layerwise, partial(split, matrices=schedulefree.AdamWScheduleFree, rest=SGD))
    assert isinstance(step.update, Split)
    step(torch.randn(3, 5))
    modes = []
    for mode in (step.update.eval, step.update.train):
        mode()
        modes.append([group.get("train_mode") for group in step.update.param_groups])
    assert modes == [[False, None], [True, None]]


class Diagonal(torch.optim.Optimizer):
    """Keeps the Hessian matrix's diagonal, by one probe of ones, exact where the matrix is diagonal."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.01})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        parameters = self.param_groups[0]["params"]
        found = torch.autograd.grad([p.grad for p in parameters], parameters, [torch.ones_like(p) for p in parameters])
        for parameter, diagonal in zip(parameters, found, strict=True):
            self.state[parameter]["diagonal"] = diagonal
            with torch.no_grad():
                parameter -= self.param_groups[0]["lr"] * parameter.grad


def test_a_graph_behind_the_gradients() -> None:
    model = Bowl()
    step = pair(model, partial(Layerwise, graph=True), Diagonal)
    step(batch_of())
    torch.testing.assert_close(step.update.state[model.weight]["diagonal"], model.h, rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"Diagonal differentiates \.grad again: say optimizer\.direction\.graph=true"):
        pair(Bowl(), Layerwise, Diagonal)(batch_of())


def test_a_graph_writes_the_same_gradients() -> None:
    model, other = twins()
    Layerwise(model, graph=True)(BATCHES[0])
    Layerwise(other)(BATCHES[0])
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert one.grad is not None and one.grad.requires_grad and same.grad is not None
        torch.testing.assert_close(one.grad.detach(), same.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("build", [generic_flow, lambda: Tower().double()], ids=["flow", "tower"])
def test_graphs_do_not_pile_up(build: Callable[[], nn.Module]) -> None:
    step = pair(build(), partial(Layerwise, graph=True), Diagonal)
    gc.collect()
    gc.disable()
    try:
        held = []
        with Allocated() as memory:
            for x in BATCHES:
                step(x)
                held.append(memory.live_bytes)
    finally:
        gc.enable()
    assert held[-1] == held[1] and math.isfinite(held[0])

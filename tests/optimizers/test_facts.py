"""What directions, steps and models declare: kept by wrappers, asked for in words, not mixed up with other names."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.data.synthetic import toy
from stepscale.bench.notes import Notes
from stepscale.bench.records import store
from stepscale.bench.timing.workload import Workload
from stepscale.bench.training import samples
from stepscale.models import (
    MLP,
    Autoencoder,
    Batch,
    Captures,
    Classifier,
    Flow,
    LogDet,
    Objective,
    PLUFlow,
    objective_of,
    offers,
)
from stepscale.optimizers import KFAC, Direction, Facts, Mark, Relative, Schedule, StateDict, no_mark, pair
from stepscale.optimizers.core.frames import Frame
from stepscale.optimizers.relative.relative import Bias
from tests.conftest import batch_of, generic_flow
from tests.support.jobs import job
from tests.support.theirs import WithScale

MOMENTUM = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)
EVERY_SIX = partial(KFAC, log_det="stale", schedule=Schedule(statistics=2, inverse=3))


class Clipped:
    """A user's wrapper: another direction's gradient, no longer than ``norm``; it passes on the four members alone."""

    def __init__(self, inner: Direction, parameters: list[nn.Parameter], norm: float) -> None:
        self.inner, self.parameters, self.norm = inner, parameters, norm
        self.facts = inner.facts

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.inner(batch, mark)
        nn.utils.clip_grad_norm_(self.parameters, self.norm)

    def state_dict(self) -> StateDict:
        return self.inner.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.inner.load_state_dict(state)


def clipped(direction: Any, norm: float = 1e9) -> Any:
    return lambda model: Clipped(direction(model), list(model.parameters()), norm)


@pytest.mark.parametrize(
    ("direction", "facts"),
    [
        (Relative, Facts(period=1, log_det=LogDet.EXACT, writes_in_place=True)),
        (EVERY_SIX, Facts(period=6, log_det=LogDet.STALE, writes_in_place=True)),
    ],
    ids=["relative", "kfac"],
)
def test_a_wrapper_that_does_nothing_changes_nothing(direction: Any, facts: Facts) -> None:
    found = []
    for built in (direction, clipped(direction)):
        torch.manual_seed(0)
        model = generic_flow()
        workload = Workload(model, pair(model, built, MOMENTUM), [batch_of() for _ in range(3)])
        assert workload.facts == facts and workload.period == facts.period
        workload.run(1)
        places = [parameter.grad.data_ptr() for parameter in model.parameters()]  # type: ignore[union-attr]
        workload.run(8)
        assert places == [parameter.grad.data_ptr() for parameter in model.parameters()]  # type: ignore[union-attr]
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_wrapper_that_clips_clips() -> None:
    model = generic_flow()
    pair(model, clipped(Relative, norm=1e-3), MOMENTUM)(batch_of())
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()  # type: ignore[union-attr]
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_what_a_wrapped_direction_leaves_out_is_still_named() -> None:
    """Whether every gradient is looked for follows from writing in place."""
    model = WithScale(5).double()
    step = pair(model, lambda model: Clipped(Relative(model), list(model.layers.parameters()), 1.0), MOMENTUM)
    with pytest.raises(TypeError, match=r"Clipped serves .* left out parameters of shapes \(3,\)"):
        step(batch_of())


class Undeclared:
    """Written for a contract of other names."""

    period, log_det = 10, "exact"

    def __init__(self, model: nn.Module) -> None:
        pass

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        pass

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        pass


class OtherFacts(Undeclared):
    facts = {"period": 10}  # noqa: RUF012 - as a user may write it


@pytest.mark.parametrize("direction", [Undeclared, OtherFacts])
def test_what_declares_nothing_is_refused_in_words(direction: Any) -> None:
    remedy = rf"{direction.__name__} does not say .*: give it facts = Facts\(period=\.\.\.\)"
    model = generic_flow()
    with pytest.raises(TypeError, match=remedy):
        pair(model, direction, MOMENTUM)
    with pytest.raises(TypeError, match=remedy):
        Workload(model, direction(model), [batch_of()])


def test_facts_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="period must be at least 1 step, got 0"):
        Facts(period=0)
    with pytest.raises(
        ValueError, match="log_det must be one of exact, stale, stochastic, biased, restricted, got 'no'"
    ):
        Facts(log_det="no")  # type: ignore[arg-type]
    assert Facts(log_det="stale").log_det is LogDet.STALE  # type: ignore[arg-type]


class TheirFlow(nn.Linear):
    """A user's: what they call ``log_det`` and ``objective`` is theirs, and their ``sample`` wants more than n."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__(dim, dim)

    def log_det(self) -> Tensor:
        return torch.linalg.slogdet(self.weight).logabsdet

    def objective(self) -> str:
        return "maximum likelihood"

    def loss(self, batch: Tensor) -> Tensor:
        return 0.5 * self(batch).square().sum(1).mean() - self.log_det()

    def sample(self, n: int, temperature: float) -> Tensor:
        return temperature * torch.randn(n, self.in_features)


def test_a_model_with_a_method_called_log_det_is_timed(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "model._target_=tests.optimizers.test_facts.TheirFlow", optimizer="layerwise"))
    assert found.status == "ok", found.reason
    assert found.direction.log_det == "exact" and found.direction.cosine == pytest.approx(1)
    assert store.decode(store.encode(found)).direction.log_det == "exact"


def test_a_model_declares_its_objective_by_its_type() -> None:
    assert objective_of(nn.Linear(2, 2)) == objective_of(TheirFlow(2, 1)) == objective_of(Flow(2)) == Objective()
    assert objective_of(PLUFlow(2)).log_det is LogDet.RESTRICTED
    for network in (MLP([2, 2], activation="tanh", output="gaussian"), Autoencoder(4), Classifier(4)):
        assert objective_of(network).of_targets


def test_a_density_of_targets_is_not_drawn_over_rows() -> None:
    data = toy(2, 300, seed=0)
    assert set(samples.look(Flow(2), data, 4, Notes())) == {"data", "samples", "log_density", "extent"}
    assert set(samples.look(Autoencoder(2, 2), data, 4, Notes())) == {"data"}


def test_a_factored_flow_is_refused_by_what_captures() -> None:
    model = PLUFlow(4)
    assert not hasattr(model, "capture") and not hasattr(model, "capture_samples")
    with pytest.raises(TypeError) as caught:
        Relative(model)
    assert str(caught.value) == (
        "the relative direction needs PLUFlow.capture(), which it does not have; see stepscale.models.Model, "
        "or use the layerwise direction, which needs loss() alone"
    )


def test_flows_keep_the_names_of_their_parameters() -> None:
    assert list(Flow(3, 1).state_dict()) == ["layers.0.weight", "layers.0.bias"]
    factored = {f"layers.0.{name}" for name in ("lower", "upper", "bias", "permutation")}
    assert set(PLUFlow(3, 1).state_dict()) == factored


class Forwarding(nn.Module):
    """As ``torch.compile``'s wrapper: what it does not have it takes from the model inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)


def test_what_a_wrapped_model_passes_on_is_offered() -> None:
    assert offers(Forwarding(Flow(3)), Captures)
    assert not offers(Forwarding(PLUFlow(3)), Captures)
    assert not offers(nn.Linear(3, 3), Captures)


@pytest.mark.parametrize(("word", "member"), [("affine", Bias.AFFINE), (Bias.AFFINE, Bias.AFFINE)])
def test_options_are_words_or_members(word: str, member: Bias) -> None:
    assert Relative(Flow(3), bias=word).bias is member
    assert KFAC(Flow(3), frame=Frame.EUCLIDEAN).relative is KFAC(Flow(3), frame="euclidean").relative is False

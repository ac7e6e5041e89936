"""Every file found under conf/ must build what its group promises."""

import functools
import math
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch

from stepscale.bench.config import CONF, compose_cell, label_of
from stepscale.bench.data.photographs import photos
from stepscale.bench.records import tables
from stepscale.bench.timing.time_step import Settings
from stepscale.bench.training.loop import Settings as TrainingSettings
from tests.support.compose import built, composed, named

pytestmark = pytest.mark.numerical

PEERS = Path(__file__).parent / "peers"


@pytest.mark.parametrize("name", named("optimizer"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimizer_builds_steps_and_moves_every_parameter(name: str, dtype: torch.dtype) -> None:
    config = composed(f"optimizer={name}", "dim=8")
    model = built(config["model"]).to(dtype)
    step = built(config["optimizer"])(model)
    before = [parameter.clone() for parameter in model.parameters()]
    for _ in range(3):
        step(torch.randn(16, 8, dtype=dtype))
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)


ON_FLOWS_ALONE = {
    "naive", "relative", "relative_adam", "relative_fused", "relative_mfac", "relative_momentum",
    "inverse", "stale_inverse", "stochastic_trace", "self_normalizing",
}  # fmt: skip


@pytest.mark.parametrize("name", named("optimizer"))
@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_optimizer_moves_a_network_or_says_why_it_cannot(name: str, kind: str) -> None:
    config = composed(f"optimizer={name}", f"model={kind}", "dim=16")
    data = built(config["data"])(dim=16, rows=20, seed=0)
    model = built(config["model"])
    before = [parameter.clone() for parameter in model.parameters()]

    def train() -> None:
        step = built(config["optimizer"])(model)
        for _ in range(3):
            step(data.train)

    if name in ON_FLOWS_ALONE:
        with pytest.raises(TypeError, match="needs"):
            train()
        return
    train()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.isfinite(new).all() and not torch.equal(old, new)


OF_LOSS_ALONE = {"layerwise", "adam", "sgd_momentum", "nesterov", "lanczos_newton", "learned_rates"}


@pytest.mark.parametrize("name", named("optimizer"))
@pytest.mark.parametrize("kind", ["maf", "transformer", "convnet"])
def test_optimizer_moves_a_model_without_captured_layers_or_says_why_it_cannot(name: str, kind: str) -> None:
    config = composed(f"optimizer={name}", f"model={kind}", "dim=6")
    data = built(config["data"])(rows=20, seed=0)
    model = built(config["model"])
    before = [parameter.clone() for parameter in model.parameters()]
    try:
        step = built(config["optimizer"])(model)
        for _ in range(3):
            step(data.train)
    except TypeError as refusal:
        said = str(refusal)
        assert name not in OF_LOSS_ALONE and (f"needs {type(model).__name__}." in said or "has no rule for" in said)
        return
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.isfinite(new).all() and not torch.equal(old, new)


@pytest.mark.parametrize("name", named("optimizer"))
def test_no_hydra_object_runs_inside_a_step(name: str) -> None:
    """A ``_partial_`` object of Hydra costs 77 µs a call: as much as a small step."""
    config = composed(f"optimizer={name}", "dim=8")
    model = built(config["model"])
    step, entered, x = built(config["optimizer"])(model), set(), torch.randn(16, 8)
    step(x)

    def watch(frame: FrameType, event: str, argument: object) -> None:
        entered.add(frame.f_globals.get("__name__", "").split(".")[0])

    sys.setprofile(watch)
    try:
        step(x)
    finally:
        sys.setprofile(None)
    assert "torch" in entered and "stepscale" in entered
    assert not entered & {"hydra", "omegaconf"}
    assert not isinstance(step, functools.partial)


@pytest.mark.parametrize(
    "name", [name for name in named("data") if "???" not in (CONF / f"data/{name}.yaml").read_text()]
)
def test_data_loads(name: str) -> None:
    dim = {"toy": 2, "lines": 9}.get(name, 12)
    data = built(composed(f"data={name}")["data"])(dim=dim, rows=20, seed=0)
    rows = data.train if isinstance(data.train, torch.Tensor) else data.train[0]
    assert rows.shape == (20, dim)


@pytest.mark.parametrize("name", named("training"))
def test_training_is_whole(name: str) -> None:
    TrainingSettings(**composed(f"training={name}")["training"])


@pytest.mark.parametrize("name", named("optimizer"))
@pytest.mark.parametrize(("dim", "steps"), [(16, 200), (64, 60), (256, 20), (1024, 4)])
def test_default_learning_rates_hold_at_every_dim(name: str, dim: int, steps: int) -> None:
    """On photographs, whose first principal component has nine tenths of the variance: early steps are the hardest."""
    if name == "naive" and dim > 64:
        pytest.skip("takes too long, and is the same update as layerwise")
    config = composed(f"optimizer={name}", f"dim={dim}")
    assert float(tables.tuned(config["optimizer"]).popitem()[1]) > 0
    rows = photos(dim, 100 * min(steps, 20), seed=0)
    model = built(config["model"])
    step, start = built(config["optimizer"])(model), model.loss(rows.held_out[:200]).item()
    for k in range(steps):
        step(rows.train[100 * k % len(rows.train) :][:100])
    end = model.loss(rows.held_out[:200]).item()
    assert math.isfinite(end) and end < start


@pytest.mark.parametrize("name", named("timing"))
def test_timing_is_whole(name: str) -> None:
    Settings(**composed(f"timing={name}")["timing"])


def test_other_cells_are_no_other_seeds() -> None:
    """What an optimizer's file takes from the configuration's root is in its label, as are its own keys."""
    words = ["optimizer.direction.rank=4", "frame=euclidean", "+alpha=3", "dim=8", "timing.profile=true", "data=noise"]
    assert label_of("optimizer", "kfac", words) == "kfac[alpha=3,direction.rank=4,frame=euclidean]"
    assert label_of("optimizer", "kfac", ["dim=8", "seed=1", "training=quick", "model=flow"]) == "kfac"
    assert label_of("model", "flow", ["frame=euclidean", "model.depth=3"]) == "flow[depth=3]"
    for name, label in (("adam", "adam"), ("kfac", "kfac[natural_lr=0.1]")):
        assert compose_cell([f"optimizer={name}", "natural_lr=0.1"]).names["optimizer"] == label, "where it is taken"


def test_what_is_built_in_a_files_place_has_its_own_name() -> None:
    words = ["model._target_=own.flows.NSF", "~model.depth", "+model.hidden='${dim}'"]
    words += ["data.dim=8", "data._target_=a.waves", "optimizer.update._target_=own.Lion"]
    assert label_of("model", "flow", words) == "NSF[hidden=dim]"
    assert label_of("data", "photos", words) == "waves[dim=8]"
    assert label_of("optimizer", "adam", words) == "adam[update._target_=own.Lion]"
    assert label_of("model", "flow", ["~model.depth"]) == "flow[depth]"


def test_an_update_can_be_replaced_without_a_file() -> None:
    config = composed("optimizer=relative", "dim=8", "optimizer.update._target_=torch.optim.AdamW")
    assert type(built(config["optimizer"])(built(config["model"])).update) is torch.optim.AdamW

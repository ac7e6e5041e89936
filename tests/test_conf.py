"""Every file found under conf/ must build what its group promises."""

import functools
import math
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from stepscale.bench import config
from stepscale.bench.config import CONF, label_of
from stepscale.bench.data.photographs import photos
from stepscale.bench.errors import UsageError
from stepscale.bench.records import tables
from stepscale.bench.runs import plan
from stepscale.bench.timing.time_step import Settings
from stepscale.bench.training.loop import Settings as TrainingSettings

pytestmark = pytest.mark.numerical

PEERS = Path(__file__).parent / "peers"


def named(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize("name", named("optimizer"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimizer_builds_steps_and_moves_every_parameter(name: str, dtype: torch.dtype) -> None:
    cfg = composed(f"optimizer={name}", "dim=8")
    model = instantiate(cfg.model).to(dtype)
    step = instantiate(cfg.optimizer)(model)
    before = [parameter.clone() for parameter in model.parameters()]
    for _ in range(3):
        step(torch.randn(16, 8, dtype=dtype))
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)


ON_FLOWS_ALONE = {
    "naive", "relative", "relative_adam", "relative_fused", "relative_momentum",
    "inverse", "stale_inverse", "stochastic_trace", "self_normalizing",
}  # fmt: skip


@pytest.mark.parametrize("name", named("optimizer"))
@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_optimizer_moves_a_network_or_says_why_it_cannot(name: str, kind: str) -> None:
    cfg = composed(f"optimizer={name}", f"model={kind}", "dim=16")
    data = instantiate(cfg.data)(dim=16, rows=20, seed=0)
    model = instantiate(cfg.model)
    before = [parameter.clone() for parameter in model.parameters()]

    def train() -> None:
        step = instantiate(cfg.optimizer)(model)
        for _ in range(3):
            step(data.train)

    if name in ON_FLOWS_ALONE:
        with pytest.raises(TypeError, match="needs"):
            train()
        return
    train()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.isfinite(new).all() and not torch.equal(old, new)


@pytest.mark.parametrize("name", named("optimizer"))
def test_no_hydra_object_runs_inside_a_step(name: str) -> None:
    """A ``_partial_`` object of Hydra costs 77 µs a call: as much as a small step."""
    cfg = composed(f"optimizer={name}", "dim=8")
    model = instantiate(cfg.model)
    step, entered, x = instantiate(cfg.optimizer)(model), set(), torch.randn(16, 8)
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
    dim = 2 if name == "toy" else 12
    data = instantiate(composed(f"data={name}").data)(dim=dim, rows=20, seed=0)
    rows = data.train[0] if name == "labelled_digits" else data.train
    assert rows.shape == (20, dim)


@pytest.mark.parametrize("name", named("training"))
def test_training_is_whole(name: str) -> None:
    TrainingSettings(**composed(f"training={name}").training)


@pytest.mark.parametrize("name", named("optimizer"))
@pytest.mark.parametrize(("dim", "steps"), [(16, 200), (64, 60), (256, 20), (1024, 4)])
def test_default_learning_rates_hold_at_every_dim(name: str, dim: int, steps: int) -> None:
    """On photographs, whose first principal component has nine tenths of the variance: early steps are the hardest."""
    if name == "naive" and dim > 64:
        pytest.skip("takes too long, and is the same update as layerwise")
    cfg = composed(f"optimizer={name}", f"dim={dim}")
    assert float(tables.tuned(OmegaConf.to_container(cfg.optimizer, resolve=True)).popitem()[1]) > 0
    rows = photos(dim, 100 * min(steps, 20), seed=0)
    model = instantiate(cfg.model)
    step, start = instantiate(cfg.optimizer)(model), model.loss(rows.held_out[:200]).item()
    for k in range(steps):
        step(rows.train[100 * k % len(rows.train) :][:100])
    end = model.loss(rows.held_out[:200]).item()
    assert math.isfinite(end) and end < start


@pytest.mark.parametrize("name", named("timing"))
def test_timing_is_whole(name: str) -> None:
    Settings(**composed(f"timing={name}").timing)


@pytest.mark.parametrize("name", named("sweep"))
@pytest.mark.parametrize("cuda", [False, True])
def test_sweep_counts_its_cells_and_names_what_exists(name: str, cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    planned = plan.read_sweep(name, ["depth=3"])
    assert planned["cells"] > 10
    assert_names_what_exists(planned, named("optimizer"))


@pytest.mark.parametrize("path", sorted(PEERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_sweep_of_peers_names_what_exists(path: Path) -> None:
    there = named("optimizer") + [other.stem for other in (PEERS / "optimizer").glob("*.yaml")]
    assert_names_what_exists(plan.read_sweep(str(path), ["depth=3"]), there)


def test_a_sweep_on_the_cpu_of_a_gpu_machine_takes_the_cpus_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    here = plan.read_sweep("quick", [])["multiruns"]
    there = plan.read_sweep("quick", ["device=cpu"])["multiruns"]
    assert "dim=256,512,1024" in here[0]
    assert "dim=64,128,256" in there[0]


def test_a_sweep_for_a_gpu_is_planned_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a login node, of the very cells that the GPU's own machine would plan."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = plan.read_sweep("quick", ["device=cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan.read_sweep("quick", ["device=cuda"]) == there
    assert "dim=256,512,1024" in there["multiruns"][0]
    assert "dim=64,128,256" in plan.read_sweep("quick", ["device=auto"])["multiruns"][0]


def test_a_sweep_names_a_device_that_is_none() -> None:
    with pytest.raises(UsageError, match="device must be one of auto, cpu, cuda, got 'cpu,cuda'"):
        plan.read_sweep("quick", ["device=cpu,cuda"])


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]])
def test_a_sweep_may_search_a_folder_of_the_users(flag: list[str]) -> None:
    assert config.searchable([*flag, "dim=8"]) == [f"hydra.searchpath=['file://{Path('mine').resolve()}']", "dim=8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: time\nseeds: 2\ngrids: {cpu: [dim=8]}", "is no sweep, it lacks settings; "),
        ("task: time\nseeds: 2\nsettings: ''\ngrids: {cuda: [dim=8]}", "has no grids.cpu, only cuda; "),
        ("- dim=8", "is no sweep, it lacks task, settings"),
        ("task: [time", "is no YAML: "),
    ],
)
def test_a_file_that_is_no_sweep_says_what_it_lacks(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        plan.read_sweep(str(tmp_path / "mine.yaml"), [])


def test_a_sweep_of_a_glob_says_what_takes_one() -> None:
    with pytest.raises(UsageError, match=r"as optimizer=relative,kfac, and not optimizer=glob\(\*\); `stepscale -m`"):
        plan.read_sweep("quick", ["optimizer=glob(*)"])


def test_overrides_that_make_two_grids_the_same_count_once() -> None:
    planned = plan.read_sweep("quick", ["optimizer=relative,layerwise", "dim=32,64"])
    assert planned["cells"] == 8, "2 optimizers, 2 dims, 2 seeds"
    assert len(planned["multiruns"]) == 2


def test_other_cells_are_no_other_seeds() -> None:
    """What an optimizer's file takes from the configuration's root is in its label, as are its own keys."""
    words = ["optimizer.direction.rank=4", "frame=euclidean", "+alpha=3", "dim=8", "timing.profile=true", "data=noise"]
    assert label_of("optimizer", "kfac", words) == "kfac[alpha=3,direction.rank=4,frame=euclidean]"
    assert label_of("optimizer", "kfac", ["dim=8", "seed=1", "training=quick", "model=flow"]) == "kfac"
    assert label_of("model", "flow", ["frame=euclidean", "model.depth=3"]) == "flow[depth=3]"


def assert_names_what_exists(plan: dict[str, Any], there: list[str]) -> None:
    words = " ".join(word for multirun in plan["multiruns"] for word in multirun)
    assert "depth=3" in words
    for multirun in plan["multiruns"]:
        dims, optimizers = (
            [word.split("=", 1)[1] for word in multirun if word.startswith(key)] for key in ("dim", "opt")
        )
        values = [int(dim) for dim in dims[0].split(",")]
        assert values == sorted(values)
        assert set(optimizers[0].removeprefix("shuffle(").removesuffix(")").split(",")) <= set(there)


def test_cells_are_counted_as_hydra_expands_them() -> None:
    assert config.count_cells(["dim=1,2,3", "optimizer=shuffle(a,b)", "batch=10"]) == 6
    assert config.count_cells(["dim=range(1,5)", "seed=0"]) == 4


def test_an_update_can_be_replaced_without_a_file() -> None:
    cfg = composed("optimizer=relative", "dim=8", "optimizer.update._target_=torch.optim.AdamW")
    assert type(instantiate(cfg.optimizer)(instantiate(cfg.model)).update) is torch.optim.AdamW

"""Plans: what a sweep's file and a user's words come to, and by what name they are found again."""

import re
from pathlib import Path

import msgspec
import pytest
import torch

from stepscale.bench.config import CONF, searchable
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import code_version
from stepscale.bench.records import merging, store
from stepscale.bench.runs import plan
from stepscale.bench.runs.plan import Plan, plan_multirun, plan_sweep
from stepscale.bench.runs.run import folder_of

PEERS = Path(__file__).parent.parent / "peers"
FOLDER = CONF / "optimizer"
OPTIMIZERS = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")}


def values(cells: list[list[str]], key: str) -> list[str]:
    return [word.split("=", 1)[1] for words in cells for word in words if word.startswith(f"{key}=")]


def assert_names_what_exists(planned: Plan, there: set[str]) -> None:
    for cells in planned.parts:
        assert all("depth=3" in words for words in cells)
        dims = list(map(int, values(cells, "dim")))
        assert dims == sorted(dims), "the too-slow rule looks at smaller dims"
        assert set(values(cells, "optimizer")) <= there


@pytest.mark.parametrize("name", plan.names())
@pytest.mark.parametrize("cuda", [False, True])
def test_a_sweep_names_what_exists(name: str, cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    planned = plan_sweep(name, ["depth=3"])
    assert planned.cells > 1, "a sweep compares"
    assert_names_what_exists(planned, OPTIMIZERS)


@pytest.mark.parametrize("path", sorted(PEERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_of_peers_names_what_exists(path: Path) -> None:
    there = OPTIMIZERS | {other.stem for other in (PEERS / "optimizer").glob("*.yaml")}
    assert_names_what_exists(plan_sweep(str(path), ["depth=3"]), there)


def test_a_sweep_on_the_cpu_of_a_gpu_machine_takes_the_cpus_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert set(values(plan_sweep("quick", []).parts[1], "dim")) == {"256", "512", "1024"}
    assert set(values(plan_sweep("quick", ["device=cpu"]).parts[1], "dim")) == {"128", "256"}


def test_a_sweep_for_a_gpu_is_planned_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a login node, of the very cells that the GPU's own machine would plan."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = plan_sweep("quick", ["device=cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan_sweep("quick", ["device=cuda"]) == there


def test_a_sweep_names_a_device_that_is_none() -> None:
    with pytest.raises(UsageError, match="device must be one of auto, cpu, cuda, got 'tpu'"):
        plan_sweep("quick", ["device=tpu"])


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]])
def test_a_sweep_may_search_a_folder_of_the_users(
    flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no folder 'mine'"):
        searchable([*flag, "dim=8"])
    (tmp_path / "mine").mkdir()
    assert searchable([*flag, "dim=8"]) == [f"hydra.searchpath=['file://{Path('mine').resolve()}']", "dim=8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: time\nseeds: 2\ngrids: {cpu: [dim=8]}", "is no sweep, it lacks settings; "),
        ("task: time\nseeds: 2\nsettings: ''\ngrids: {cuda: [dim=8]}", "has no grids.cpu, only cuda; "),
        ("task: time\nseeds: 2\nsettings: ''\ngrids: {cpu: []}", "an empty list of grids.cpu: there is nothing to"),
        ("- dim=8", "is no sweep, it lacks task, settings"),
        ("task: [time", "is no YAML: "),
    ],
)
def test_a_file_that_is_no_sweep_says_what_it_lacks(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        plan_sweep(str(tmp_path / "mine.yaml"), [])


SLIPS = {
    "settings:": "settings must be a text of words for every cell, as timing=quick, or '', got None",
    "seeds: two": "seeds must be a whole number of at least 1, got 'two'",
    "further: -1": "further must be a whole number of at least 0, got -1",
    "task: tim": "task must be time or train, got 'tim'",
    "grids:": "grids must be a list of texts for each device, as cpu: ['dim=64,128 optimizer=adam'], got None",
    "grids: {cpu: dim=4}": "grids must be a list of texts for each device, as cpu: [",
    "grids: {cpu: [{dim: 4}]}": "got {'cpu': [{'dim': 4}]}",
    'grids: {cpu: ["data.path=\'a"]}': '"data.path=\'a" cannot be read as words: No closing quotation',
    "tuning:": "factors, grids of numbers above 0, as [{lr: [0.3, 1, 3]}], got None",
    "tuning: {settings: seed=0}": "tuning must be settings, a text, and factors",
    "tuning: {settings: seed=0, factors: [{lr: 3}]}": "got {'settings': 'seed=0', 'factors': [{'lr': 3}]}",
    "tunning: 3": "Object contains unknown field `tunning`",
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_a_users_sweep_is_named(slip: str, tmp_path: Path) -> None:
    path, key = tmp_path / "mine.yaml", slip.split(":")[0]
    whole = {"task": "task: time", "settings": "settings: ''", "seeds": "seeds: 2", "grids": "grids: {cpu: [dim=8]}"}
    path.write_text("\n".join((whole | {key: slip}).values()))
    with pytest.raises(UsageError, match=re.escape(SLIPS[slip])) as found:
        plan_sweep(str(path), [])
    assert str(found.value).startswith(str(path))


def test_overrides_that_make_two_grids_the_same_count_once() -> None:
    planned = plan_sweep("quick", ["optimizer=relative,layerwise", "dim=32,64"])
    assert planned.cells == 8, "2 optimizers, 2 dims, 2 seeds"
    assert len(planned.parts) == 2


def test_cells_are_those_that_hydra_expands() -> None:
    planned = plan_multirun(["dim=range(1,4)", "optimizer=glob(relative*)", "batch=10"])
    relatives = {name for name in OPTIMIZERS if name.startswith("relative")}
    assert planned.cells == 3 * len(relatives)
    assert set(values(planned.parts[0], "optimizer")) == relatives
    assert set(values(planned.parts[0], "dim")) == {"1", "2", "3"}


def test_a_plan_has_one_name_whenever_it_is_made_and_another_whatever_changes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shuffled alike, that is."""
    made = plan_sweep("quick", [])
    assert re.fullmatch(r"quick-[0-9a-f]{8}", made.folder)
    assert plan_sweep("quick", []).folder == made.folder
    orders = {tuple(values(part, "optimizer")) for part in plan_sweep("full", []).parts}
    assert len(orders) > 5, "each seed's order is its own"
    others = {plan_sweep("quick", ["batch=10"]).folder, plan_sweep("quick", ["seed=0"]).folder}
    others.add(msgspec.structs.replace(made, torch="other").folder)
    monkeypatch.setattr(code_version, "code_hash", lambda: "other")
    others.add(plan_sweep("quick", []).folder)
    assert len(others | {made.folder}) == 5


def test_a_plan_takes_nothing_from_what_a_folder_is_planned_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned() -> list[tuple[int, list[str]]]:
        return [(len(one["parts"][0]), one.get("identities", [])) for one in merging.plans_of(tmp_path)]

    two, three = plan_multirun(["dim=8,16"]), plan_multirun(["dim=1,2,3"])
    plan.save(two, tmp_path, ["b", "a"])
    plan.save(two, tmp_path)
    assert planned() == [(2, ["a", "b"])], "as a part of it does, that is measured again"
    plan.save(three, tmp_path)
    plan.save(three, tmp_path, ["c"])
    assert sorted(planned()) == [(2, ["a", "b"]), (3, ["c"])]
    found = store.read_plan(tmp_path)
    assert found is not None and found.cells == 5
    monkeypatch.setattr(code_version, "code_hash", lambda: "other")
    plan.save(plan_multirun(["dim=8,16"]), tmp_path)
    assert sorted(planned()) == [(2, []), (3, ["c"])]
    (tmp_path / store.PLAN).write_text("{")
    plan.save(two, tmp_path)
    assert planned() == [(2, [])]


def test_the_newest_folder_of_a_plan_goes_on_and_anew_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for anew in (False, False, True, False, True):
        path = folder_of("quick-12345678", anew=anew)
        path.mkdir(parents=True, exist_ok=True)
        found.append(path.name)
    assert found == ["quick-12345678", "quick-12345678", "quick-12345678-2", "quick-12345678-2", "quick-12345678-3"]

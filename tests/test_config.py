"""Composition: what is composed once and set on a copy must be what Hydra itself makes of the words."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from stepscale.bench import config
from stepscale.bench.config import CONF, compose_cell, expand
from stepscale.bench.errors import UsageError


def by_hydra(words: list[str]) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", words), resolve=True)


@pytest.mark.parametrize("model", ["flow", "classifier", "transformer", "convnet"])
@pytest.mark.parametrize(
    "words",
    [
        ["dim=64", "seed=3"],
        ["depth=4", "optimizer=kfac", "optimizer.direction.damping=1e-3", "frame=euclidean"],
        ["optimizer.update.lr=0.5", "batch=7", "dim=12", "optimizer=adam"],
        ["optimizer=adam", "optimizer.update.fused=false", "timing=quick", "timing.time_limit_s=0.25"],
        ["training.max_steps=null", "training=quick", "threads=1", "memory_gib=2.5", "task=train"],
        ["+model.alpha=0.1", "dim=10", "dim=11"],
        ["optimizer.update.lr='${divide:1,${dim}}'", "dim=5"],
        ["~optimizer.update", "optimizer=relative", "dim=-3", "dim=9"],
        ["optimizer.update.lr=0.5", "optimizer.update.lr='${divide:1,${dim}}'", "dim=10"],
        ["optimizer.update.lr=0.5", "optimizer.update={lr:0.25}"],
        ["optimizer.update={lr:0.25}", "optimizer.update.lr=0.5"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_cell_is_what_hydra_composes(model: str, words: list[str]) -> None:
    words = [f"model={model}", *words]
    assert compose_cell(words).config == by_hydra(words)
    assert compose_cell([*words, "seed=8"]).config == by_hydra([*words, "seed=8"]), "the copy left the first as it was"
    assert compose_cell(words).config == by_hydra(words)


@pytest.mark.parametrize(
    ("words", "widths"),
    [
        (["dim=64"], (64, 64, 56)),
        (["dim=64", "data.dim=8"], (64, 8, 8)),
        (["dim=64", "model=transformer"], (64, 64, 64)),
        (["dim=64", "data.dim=16", "model=transformer"], (64, 16, 16)),
        (["dim=32", "model=convnet"], (32, 64, 64)),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_the_width_of_the_data_is_dim_or_a_number_of_its_own(words: list[str], widths: tuple[int, int, int]) -> None:
    cell = compose_cell(words)
    assert (cell.config["dim"], cell.config["data"]["dim"], cell.at(56)["data"]["dim"]) == widths


def test_a_users_model_says_which_of_its_arguments_grows() -> None:
    own = ["model._target_=own.NSF", "~model.dim", "+model.features='${data.dim}'", "+model.hidden='${dim}'"]
    cell = compose_cell([*own, "data.dim=8", "dim=64"])
    expected = {"_target_": "own.NSF", "features": 8, "hidden": 64, "depth": 2}
    assert cell.config["model"] == expected and cell.at(72)["model"] == expected | {"hidden": 72}
    assert cell.names["model"] == "NSF[features=data.dim,hidden=dim]" and cell.names["data"] == "photos[dim=8]"


def test_a_thousand_cells_are_composed_once_for_each_choice_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        config, "compose", lambda *arguments, **options: calls.append(1) or compose(*arguments, **options)
    )
    config._composed.cache_clear()
    for optimizer in ("relative", "kfac"):
        for dim in range(1, 501):
            compose_cell([f"optimizer={optimizer}", f"dim={dim}", "seed=1", "optimizer.update.lr=0.25"])
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer=relativ"], "Could not find 'optimizer/relativ'; did you mean relative?"),
        (["optimizer=soap"], "Could not find 'optimizer/soap'; did you mean library/soap?"),
        (["optimizer=zzz"], "there are adam, ekfac"),
        (["optimizer.update.rate=1"], "no key 'optimizer.update.rate' to change; did you mean optimizer.update.lr?"),
        (["optimizer=kfac", "optimizer.direction.dampng=1"], "did you mean optimizer.direction.damping?"),
        (["+optimizer.update.lr=1"], "there is a key 'optimizer.update.lr' already; leave out the + before it"),
        (["colour=3"], "no key 'colour' to change; stepscale --cfg job shows the keys there are"),
        (["optimiser=adam"], "no key 'optimiser' to change; did you mean optimizer?"),
        (["+optimiser=adam"], "no key 'optimiser'; did you mean optimizer?"),
        (["lr=0.1"], "no key 'lr' to change; did you mean optimizer.update.lr?"),
        (["training.max_step=3"], "did you mean training.max_steps?"),
        (["+timing.blocks=3"], "no key 'timing.blocks'; did you mean timing.block_s?"),
        (["~timing"], "the configuration has no timing"),
        (["data=file"], "data.path has no value: set data.path=…"),
        (["optimizer=relative,adam"], "`stepscale -m optimizer=relative,adam` measures a grid"),
        (["model._target_=null"], "model=flow has no _target_"),
        (["dim=99999999999"], "dim must be at most 2147483647, got 99999999999"),
        ([f"label={'x' * 20_000}"], "a text of 20000 letters, 10000 are the most"),
        (["data.dim=1.5"], "data.dim must be a whole number of at least 1, got 1.5"),
        (["dim=0"], "dim must be a whole number of at least 1, got 0"),
        (["seed=1.5"], "seed must be a whole number of at least 0, got 1.5"),
        (["dim"], "missing EQUAL"),
        (["~data"], "the configuration has no data"),
        (["dim='${nowhere}'"], "nowhere"),
        (["dim=[1"], "no viable alternative"),
        (["timing=1"], "timing=1 names no file; there are default, full, quick"),
    ],
)
def test_words_that_make_no_cell_are_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as told:
        compose_cell(words)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_folder_of_the_users_may_be_named_as_it_likes(tmp_path: Path) -> None:
    """With a quote, what looks like an interpolation, a blank and an umlaut."""
    folder = tmp_path / "it's ${dim} ü"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer" / "my_own.yaml").write_text("_target_: mine\n")
    words = config.searchable(["--config-dir", str(folder), "optimizer=my_own", "dim=8"])
    assert compose_cell(words).config["optimizer"] == {"_target_": "mine"}


def test_a_shuffle_is_the_same_each_time_and_leaves_the_generator_alone() -> None:
    import random

    words = ["dim=1,2,3", "optimizer=shuffle(a,b,c,d,e,f)"]
    random.seed(5)
    first, drawn = expand(words), random.random()
    random.seed(5)
    assert (random.random(), expand(words)) == (drawn, first)
    assert expand(["seed=1", *words]) != [["seed=1", *point] for point in first]


def test_what_the_environment_of_a_cell_is_to_hold_is_kept_apart() -> None:
    assert compose_cell(["+hydra.job.env_set.WIDER='2'"]).variables == {"WIDER": "2"}


def test_a_glob_sees_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "zz_own.yaml").write_text("_target_: mine\n")
    words = config.searchable(["--config-dir", str(tmp_path), "optimizer=glob(zz*)"])
    assert [point[-1] for point in expand(words)] == ["optimizer=zz_own"]


def test_the_environment_of_a_cell_may_depend_on_it() -> None:
    assert compose_cell(["+hydra.job.env_set.D='${dim}'", "dim=8"]).variables == {"D": "8"}


def test_words_that_cannot_be_expanded_are_named() -> None:
    with pytest.raises(UsageError, match="no viable alternative"):
        expand(["dim=[1"])

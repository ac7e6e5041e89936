"""What a configuration cannot build is said in a sentence that names the key and the remedy."""

import sys

import pytest
import torch

from stepscale.bench.cells.build import build_step
from stepscale.bench.errors import UsageError
from tests.support.compose import built, composed
from tests.support.libraries import need

STEPS = "+optimizer.scheduler._target_=torch.optim.lr_scheduler."


def built_by(*words: str) -> torch.optim.Optimizer:
    config = composed("dim=4", *words)
    found = build_step(config["optimizer"], built(config["model"]))
    return found.update  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optimizer=adam", "optimizer.update._target_=torch.optim.NAdam"],
            r"^optimizer\.update\._target_=torch\.optim\.NAdam: .*'fused'; it was given lr=0\.075, fused=True; "
            r"drop what it does not know by ~optimizer\.update\.fused$",
        ),
        (
            ["optimizer=layerwise", f"{STEPS}StepLR"],
            r"optimizer\.scheduler lacks `_partial_: true`",
        ),
        (
            ["optimizer=layerwise", f"{STEPS}StepLR", "+optimizer.scheduler._partial_=true"],
            r"^optimizer\.scheduler\._target_=torch\.optim\.lr_scheduler\.StepLR: .*missing .* 'step_size'",
        ),
        (
            ["optimizer=layerwise", f"{STEPS}ReduceLROnPlateau", "+optimizer.scheduler._partial_=true"],
            r"ReduceLROnPlateau\.step needs a metric, and a step knows none: use a schedule by steps",
        ),
        (
            ["optimizer=layerwise", "+optimizer.closure=twice"],
            r"closure must be one of first, again, got 'twice'",
        ),
    ],
    ids=["fused", "partial", "scheduler", "plateau", "closure"],
)
def test_what_cannot_join_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built_by(*words)


def test_an_update_for_matrices_alone_is_told_of_split() -> None:
    need("library/muon")
    with pytest.raises(
        UsageError, match=r"Muon only supports 2D .*stepscale\.optimizers\.split gives it the matrices alone"
    ):
        built_by("optimizer=layerwise", "optimizer.update._target_=torch.optim.Muon")


@pytest.mark.parametrize("name", ["soap", "schedule_free", "singd"])
def test_a_package_that_is_missing_is_told_how_to_be_had(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"optimizer=library/{name}"
    package = composed(words)["optimizer"]["update"]["_target_"].split(".")[0]
    for module in [found for found in sys.modules if found.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"there is no module {package}; pip install 'stepscale\[optimizers\]'"):
        built_by(words)


def test_what_an_older_torch_lacks_is_told_with_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    said = r"^optimizer\.update\.matrices\._target_=torch\.optim\.Muon: there is no Muon in torch\.optim \(torch \d"
    with pytest.raises(UsageError, match=said):
        built_by("optimizer=library/muon")


def test_a_name_like_none_that_is_there_is_told_without_a_guess() -> None:
    with pytest.raises(UsageError, match=r"there is no Zzyzx in torch\.optim \(torch [^ )]+\)$"):
        built_by("optimizer=layerwise", "optimizer.update._target_=torch.optim.Zzyzx")


def test_a_schedule_and_a_word_that_is_new_are_built() -> None:
    words = ["+optimizer.scheduler._partial_=true", "+optimizer.scheduler.step_size=3"]
    assert built_by("optimizer=layerwise", f"{STEPS}StepLR", *words).param_groups[0]["initial_lr"] == 0.075

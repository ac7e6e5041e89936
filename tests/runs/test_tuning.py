"""What is tuned, by what budget, and what of it is trained on."""

from typing import Any

import pytest
from msgspec.structs import replace

import stepscale.bench.config  # noqa: F401 - registers what the configuration computes with
from stepscale.bench.config import compose_cell, expand
from stepscale.bench.errors import UsageError
from stepscale.bench.records.schema import Record, Status
from stepscale.bench.runs import tuning
from stepscale.bench.runs.plan import Plan, Point
from tests.support.training import train_record

FACTORS = [{"lr": [0.1, 1.0, 10.0, 100.0]}, {"lr": [0.5, 2.0], "damping": [0.1, 10.0]}]


def trial(lr: float, nats: float, trial: bool = True, **changes: Any) -> Record:
    status, axes = changes.pop("status", "ok"), {"dim": 64, **changes}
    made = train_record("relative", 0, trial=trial)
    assert made.training and made.training.final
    made.cell, made.status = replace(made.cell, **axes), Status(status)
    made.training.final.validation_nats = nats
    made.config["optimizer"]["update"]["lr"] = lr
    return made


def test_trials_span_the_grid_of_what_an_optimizer_has() -> None:
    words = tuning.trials(["dim=64", "optimizer=relative"], FACTORS)
    assert words is not None
    assert "optimizer.update.lr=0.00046875,0.0046875,0.046875,0.46875" in words  # 0.3 / dim, times each factor
    assert "training.trial=true" in words
    words = tuning.trials(["dim=64", "optimizer=kfac"], FACTORS)
    assert words is not None
    assert {"optimizer.direction.damping=0.1,10", "optimizer.update.lr=0.0078125,0.03125"} <= set(words)
    assert tuning.trials(["dim=64", "optimizer=kfac_whole"], FACTORS) is None, "it has no learning rate"


def test_unequal_budgets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"grids of \[2, 4\] points: the same number for every optimizer is fair"):
        tuning.trials(["dim=64", "optimizer=relative"], [{"lr": [1.0, 2.0]}, FACTORS[1]])


def test_what_the_best_trial_chose_is_trained_on_new_seeds() -> None:
    trials = [trial(0.1, -9.0), trial(0.2, -5.0), trial(0.3, -7.0), trial(0.4, 99.0, status="diverged")]
    words = tuning.finals(["dim=64", "optimizer=relative"], tuning.best(trials), seeds=3)
    assert "optimizer.update.lr=0.2" in words
    assert "seed=1,2,3" in words, "the trials had 0"
    assert "label='relative'" in words
    assert not [word for word in words if "trial" in word]


def test_without_a_trial_it_is_trained_as_its_file_says() -> None:
    assert tuning.best([]) is None
    assert tuning.finals(["dim=64", "optimizer=relative"], None, seeds=1) == [
        "dim=64", "optimizer=relative", "label='relative'", "seed=1",
    ]  # fmt: skip


def test_a_tuned_point_without_a_trial_that_ended_is_not_trained() -> None:
    """It would be trained as its file says, and pass for tuned."""
    planned = Plan(name="mine", parts=[], code="code", torch="2", seeds=2)
    with pytest.raises(UsageError, match="no trial of dim=64 optimizer=relative came to its end"):
        planned.finals(Point(["dim=64", "optimizer=relative"], trials=0), [trial(0.4, 9.0, status="diverged")])
    cells = planned.finals(Point(["dim=64", "optimizer=kfac_whole"], trials=None), [])
    assert [words[-1] for words in cells] == ["seed=1", "seed=2"]


@pytest.mark.parametrize("name", ["relative", "kfac[direction.frame='euclidean']", "a\\b"])
def test_a_label_is_what_it_was_whatever_it_holds(name: str) -> None:
    word = tuning._label(name)
    assert compose_cell([word]).names["optimizer"] == name
    assert expand([word, "seed=1,2"])[1] == [word, "seed=2"]

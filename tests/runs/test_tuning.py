"""What is tuned, by what budget, and what of it is trained on."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import stepscale.bench.config  # noqa: F401 - registers what the configuration computes with
from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.config import compose_cell, expand
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import description
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Record, Status
from stepscale.bench.runs import tuning
from stepscale.bench.runs.conduct import conduct
from stepscale.bench.runs.plan import Plan, plan_sweep
from stepscale.bench.runs.run import Run
from tests.support.training import END_S, train_record

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
    found = tuning.trials(["dim=64", "optimizer=relative"], FACTORS)
    assert found is not None
    rates = ("0.00046875", "0.0046875", "0.046875", "0.46875")  # 0.3 / dim, times each factor
    assert [rate in words for words, rate in zip(found, (f"optimizer.update.lr={rate}" for rate in rates), strict=True)]
    assert all("training.trial=true" in words for words in found)
    found = tuning.trials(["dim=64", "optimizer=kfac"], FACTORS)
    assert found is not None
    tried = {tuple(sorted(word for word in words if word.startswith("optimizer."))) for words in found}
    assert tried == {
        ("optimizer.direction.damping=" + damping, "optimizer.update.lr=" + rate)
        for damping in ("0.1", "10") for rate in ("0.0078125", "0.03125")
    }  # fmt: skip
    assert tuning.trials(["dim=64", "optimizer=kfac_whole"], FACTORS) is None, "it has no learning rate"


def test_rates_of_one_optimizer_share_a_factor_so_that_its_budget_is_the_others() -> None:
    found = tuning.trials(["dim=64", "optimizer=library/muon"], FACTORS)
    assert found is not None and len(found) == len(FACTORS[0]["lr"])
    tried = [compose_cell(words).config["optimizer"]["update"] for words in found]
    ratios = [update["matrices"]["lr"] / update["rest"]["lr"] for update in tried]
    assert ratios == pytest.approx([ratios[0]] * len(found), rel=1e-5)
    assert len({update["rest"]["lr"] for update in tried}) == len(found)


def test_unequal_budgets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"grids of \[2, 4\] points: the same number for every optimizer is fair"):
        tuning.trials(["dim=64", "optimizer=relative"], [{"lr": [1.0, 2.0]}, FACTORS[1]])


def test_what_the_best_trial_chose_is_trained_on_new_seeds() -> None:
    trials = [trial(0.1, -9.0), trial(0.2, -5.0), trial(0.3, -7.0), trial(0.4, 99.0, status="diverged")]
    words = tuning.finals(["dim=64", "optimizer=relative"], tuning.ranked(trials)[0], seeds=3)
    assert "optimizer.update.lr=0.2" in words
    assert "seed=1,2,3" in words, "the trials had 0"
    assert "label='relative'" in words
    assert not [word for word in words if "trial" in word]


def test_without_a_trial_it_is_trained_as_its_file_says() -> None:
    assert tuning.ranked([]) == []
    assert tuning.finals(["dim=64", "optimizer=relative"], None, seeds=1) == [
        "dim=64", "optimizer=relative", "label='relative'", "seed=1",
    ]  # fmt: skip


def test_a_tuned_point_without_a_trial_that_ended_is_not_trained() -> None:
    """It would be trained as its file says, and pass for tuned."""
    cells = list[list[str]]()

    def measure(asked: list[list[str]], *_: object) -> tuple[list[Record], list[str]]:
        cells.extend(asked)
        return [], []

    told = tuning.try_and_train(["dim=64", "optimizer=relative"], [trial(0.4, 9.0, status="diverged")], 2, measure)
    assert told == ["no trial of dim=64 optimizer=relative came to its end, so that nothing chose its settings"]
    assert cells == []
    assert tuning.try_and_train(["dim=64", "optimizer=kfac_whole"], [], 2, measure) == []
    assert [words[-1] for words in cells] == ["seed=1", "seed=2"]


HORIZON, SHORT = 60, 5
SWEEP = f"""
task: train
seeds: 2
settings: training.time_limit_s=null training.max_steps={HORIZON}
tuning: {{settings: training.max_steps={SHORT} seed=0, factors: [{{lr: [0.1, 0.3, 1, 3, 10, 30]}}]}}
grids: {{cpu: [dim=4 optimizer=layerwise optimizer.update.lr=RATE]}}
"""


def nats_after(rate: float, steps: int) -> float:
    """Descend a valley that narrows along its way, x - y² exp(x) / 2, from (0, 1); -inf where y is lost."""
    x, y = 0.0, 1.0
    for _ in range(steps):
        x, y = x + rate, y * (1 - rate * math.exp(x))
        if abs(y) > 1e30:
            return -math.inf
    return x - y * y / 2 * math.exp(x)


def descended(job: Job) -> Record:
    """Make the record of a training run down the valley."""
    made, steps = train_record("layerwise", job.cell.seed, trial=True), job.config["training"]["max_steps"]
    nats = nats_after(tables.tuned(job.config["optimizer"])["update.lr"], steps)
    assert made.training and made.training.final
    made.training.steps, made.training.final.validation_nats = steps, max(nats, -1e99)
    found = job.record(Status.DIVERGED, None, description.bare())
    found.data, found.training, found.status = made.data, made.training, Status.OK if nats > -math.inf else found.status
    return found


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many cells can be measured until an interrupt comes; they are descents of the valley."""
    left = [1_000]

    def run(jobs: list[Job], tell: Any, **_: Any) -> list[Record]:
        records = []
        for job in jobs:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            records.append(descended(job))
            store.save(records[-1], job.folder)
            tell(records[-1])
        return records

    monkeypatch.setattr(process, "run", run)
    return left


def planned(tmp_path: Path, rate: float) -> Plan:
    (tmp_path / "valley.yaml").write_text(SWEEP.replace("RATE", str(rate)))
    return plan_sweep(str(tmp_path / "valley.yaml"), [])


def rates(run: Run, *, trial: bool, steps: int) -> dict[float, Status]:
    """Return what became of each rate that was trained for that long."""
    return {
        tables.tuned(record.config["optimizer"])["update.lr"]: record.status
        for record in run.records.values()
        if record.config["training"]["trial"] is trial and record.config["training"]["max_steps"] == steps
    }


@pytest.mark.parametrize(("default", "tried"), [(0.005, 2), (0.05, 4)])
def test_a_rate_that_is_best_at_first_and_diverges_later_is_not_chosen(
    tmp_path: Path, left: list[int], default: float, tried: int
) -> None:
    grid = [float(f"{factor * default:.6g}") for factor in (0.1, 0.3, 1, 3, 10, 30)]
    plan, run = planned(tmp_path, default), Run(tmp_path / "run", 0, lambda line: None)
    run.planned = plan.cells
    assert conduct(plan, run, "test") == []
    at_first = max(grid, key=lambda rate: nats_after(rate, SHORT))
    assert nats_after(at_first, HORIZON) == -math.inf, "what short trials alone would choose"
    by_first = sorted(grid, key=lambda rate: nats_after(rate, SHORT), reverse=True)
    long = rates(run, trial=True, steps=HORIZON)
    assert set(long) == set(by_first[:tried])
    assert {rate: status == "ok" for rate, status in long.items()} == {
        rate: math.isfinite(nats_after(rate, HORIZON)) for rate in long
    }
    chosen = max(by_first[:tried], key=lambda rate: nats_after(rate, HORIZON))
    assert rates(run, trial=False, steps=HORIZON) == {chosen: Status.OK}
    assert run.seen == run.planned == 6 + tried + 2


def test_tuning_goes_on_where_it_stopped_and_chooses_the_same(tmp_path: Path, left: list[int]) -> None:
    plan = planned(tmp_path, 0.05)
    whole = Run(tmp_path / "whole", None, lambda line: None)
    conduct(plan, whole, "test")
    for _ in range(5):
        left[0] = 4
        with suppress(KeyboardInterrupt):
            conduct(plan, run := Run(tmp_path / "cut", None, lambda line: None), "test")
    assert run.records.keys() == whole.records.keys() and not run.measured
    final = [record.tuning for record in run.records.values() if not record.config["training"]["trial"]]
    assert final[0] == final[1] == tuning.Tuning(trials=10, ended=8, steps=6 * SHORT + 4 * HORIZON, seconds=10 * END_S)


def test_a_trial_as_long_as_a_final_run_is_tried_once(tmp_path: Path, left: list[int]) -> None:
    """A sweep whose batches have steps of their own sets no others for trials: its best are not measured again."""
    (tmp_path / "valley.yaml").write_text(SWEEP.replace("RATE", "0.05").replace(f"training.max_steps={SHORT} ", ""))
    run = Run(tmp_path / "run", None, lambda line: None)
    conduct(plan_sweep(str(tmp_path / "valley.yaml"), []), run, "test")
    assert left == [1_000 - 6 - 2]
    final = [record.tuning for record in run.records.values() if not record.config["training"]["trial"]]
    ended = sum(math.isfinite(nats_after(0.05 * factor, HORIZON)) for factor in (0.1, 0.3, 1, 3, 10, 30))
    assert final == 2 * [tuning.Tuning(trials=6, ended=ended, steps=6 * HORIZON, seconds=6 * END_S)]


@pytest.mark.parametrize("name", ["relative", "kfac[direction.frame='euclidean']", "a\\b"])
def test_a_label_is_what_it_was_whatever_it_holds(name: str) -> None:
    word = tuning._label(name)
    assert compose_cell([word]).names["optimizer"] == name
    assert expand([word, "seed=1,2"])[1] == [word, "seed=2"]

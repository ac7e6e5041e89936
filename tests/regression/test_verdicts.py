"""Verdicts on simulated rounds: a machine that drifts, rounds that are disturbed, sessions that differ."""

import numpy as np
import pandas as pd
import pytest

from stepscale.bench.regression import verdicts

ROUNDS = 60


def rounds(
    *factors: float, noise: float = 0.06, process: float = 0.0, seed: int = 0, contended: int = 0
) -> pd.DataFrame:
    """One benchmark for each factor head / base: drift common to a round, skewed noise, a constant a session."""
    random, rows = np.random.default_rng(seed), []
    for dim, factor in enumerate(factors, 1):
        drift = 0.3 * np.cumsum(random.normal(size=ROUNDS)) / np.sqrt(ROUNDS)
        for session in (*verdicts.BASE, *verdicts.HEAD):
            of_session = process * random.normal() + np.log(factor) * (session in verdicts.HEAD)
            disturbed = np.where(random.random(ROUNDS) < 0.15, random.exponential(0.4, ROUNDS), 0.0)
            step_s = 1e-3 * np.exp(drift + of_session + noise * random.normal(size=ROUNDS) + disturbed)
            for k in range(ROUNDS):
                row = {"optimizer": "o", "dim": dim, "session": session, "round": k, "step_s": step_s[k]}
                rows.append(row | {"limit_s": 5e-4, "contended": k < contended})
    return pd.DataFrame(rows)


def verdicts_of(*factors: float, **options: float) -> list[str]:
    return list(verdicts.compare(rounds(*factors, **options))["verdict"])  # type: ignore[arg-type]


def test_the_same_code_is_quiet() -> None:
    found = [verdict for seed in range(60) for verdict in verdicts_of(*[1.0] * 8, seed=seed)]
    assert found.count("regressed") + found.count("improved") <= 0.01 * len(found)
    assert found.count("unchanged") > 0.5 * len(found)


@pytest.mark.parametrize(
    ("factor", "verdict", "share"), [(1.1, "regressed", 0.95), (1.2, "regressed", 1.0), (0.9, "improved", 0.95)]
)
def test_a_change_is_found_among_benchmarks_without(factor: float, verdict: str, share: float) -> None:
    found = [verdicts_of(factor, 1.0, 1.0, 1.0, seed=seed) for seed in range(40)]
    assert sum(row[0] == verdict for row in found) >= share * len(found)
    assert sum(row[1:].count(verdict) for row in found) <= 1


def test_sessions_that_differ_by_themselves_raise_the_floor() -> None:
    """A tenth between two runs of the same code: then a tenth between versions proves nothing, at any benchmark."""
    found = [verdicts.compare(rounds(*[1.0] * 8, process=0.1, seed=seed)) for seed in range(40)]
    wrong = sum(table["verdict"].isin(["regressed", "improved"]).any() for table in found)
    assert wrong <= 0.15 * len(found), "comparisons, not benchmarks"
    student = 3.12  # 1 - 0.025 / 8 of 16 degrees of freedom
    assert np.median([table["floor"].iloc[0] for table in found]) == pytest.approx(np.expm1(0.1 * student), rel=0.2)
    assert all((table["resolution"] >= table["floor"]).all() for table in found)
    assert not any((table["verdict"] == "unchanged").any() for table in found)


def test_what_is_slower_by_all_that_matters_is_seldom_called_unchanged() -> None:
    found = [verdict for seed in range(60) for verdict in verdicts_of(*[1.04] * 8, process=0.002, seed=seed)]
    assert found.count("unchanged") <= 0.1 * len(found)


def test_the_ratio_is_unbiased_and_its_interval_covers_it() -> None:
    found = pd.concat([verdicts.compare(rounds(1.05, seed=seed)) for seed in range(150)])
    assert np.log(found["ratio"]).mean() == pytest.approx(np.log(1.05), abs=0.003)
    covered = ((found["low"] < 1.05) & (found["high"] > 1.05)).mean()
    assert 0.96 <= covered <= 1.0


def test_with_few_rounds_the_interval_still_covers() -> None:
    """A bootstrap over so few rounds is too narrow for a normal interval; Student's makes up for it."""
    for few in (6, 12):
        simulated = [rounds(1.0, seed=seed) for seed in range(300)]
        found = pd.concat([verdicts.compare(one[one["round"] < few]) for one in simulated])
        assert ((found["low"] < 1) & (found["high"] > 1)).mean() > 0.97


def test_contended_rounds_are_set_aside_and_too_few_left_are_undecided() -> None:
    table = verdicts.compare(rounds(1.0, contended=20))
    assert table.loc[0, "rounds"] == ROUNDS - 20
    assert table.loc[0, "contended"] == 20
    spoilt = rounds(1.0, contended=20)
    spoilt.loc[spoilt["contended"] & spoilt["session"].isin(verdicts.HEAD), "step_s"] *= 3
    assert verdicts.compare(spoilt).loc[0, "ratio"] == table.loc[0, "ratio"]
    few = verdicts.compare(rounds(1.5, contended=ROUNDS - 3))
    assert few.loc[0, "verdict"] == "undecided"
    assert verdicts.exit_status(few) == verdicts.NOTHING_MEASURED


def test_what_only_one_version_has_is_new_or_gone() -> None:
    both = rounds(1.0, 1.0, 1.0, noise=0.002)
    table = verdicts.compare(
        both[
            ~((both["dim"] == 2) & both["session"].isin(verdicts.BASE))
            & ~((both["dim"] == 3) & both["session"].isin(verdicts.HEAD))
        ]
    )
    assert list(table["verdict"]) == ["unchanged", "new", "gone"]
    assert verdicts.exit_status(table) == 0


def test_exit_status() -> None:
    def status(table: pd.DataFrame) -> int:
        return verdicts.exit_status(verdicts.compare(table))

    assert status(rounds(1.0, 0.8)) == 0
    assert status(rounds(1.0, 1.2)) == 1
    assert status(pd.DataFrame()) == 3
    assert status(rounds(1.0).query("session != 'A2'")) == 3

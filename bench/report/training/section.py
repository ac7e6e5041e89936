"""A run's training records -> the report's section on what a step buys. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stepscale.bench.analysis.training import learning_curves
from stepscale.bench.errors import BadRecordError
from stepscale.bench.records import store
from stepscale.bench.records.schema import NO_BOUND, Curvature, Number
from stepscale.bench.report import style
from stepscale.bench.report.page import Section, Shown, TableRow, machine_column, measured, varying
from stepscale.bench.report.style import Drawn, Where
from stepscale.bench.report.training import batch_rates, curvature, dampings, quadratic_rates
from stepscale.bench.report.training import figures as drawing
from stepscale.bench.report.training.figures import Arrays
from stepscale.bench.report.training.study import Study

TITLE = "What a step buys"
ASKED = (
    "Which optimizer reaches which held-out likelihood in the same time, and how soon is it where the baseline ends?"
)


def section(
    runs: pd.DataFrame,
    points: pd.DataFrame,
    pictures: Mapping[str, Path],
    where: Where,
    curvatures: Mapping[str, Curvature] | None = None,
) -> Section:
    """Say what training runs and the points of their curves tell.

    ``pictures`` are the folders of what they look like, by identity, ``curvatures`` their Hessians; ``where`` says of a
    machine's name what else its figures hang on, and when they were taken.
    """
    final = runs[~runs["trial"]]
    if not len(final):
        trials = {"Trials": trials_table(runs)}
        return Section(TITLE, ASKED, {}, ["No final run yet.", learning_curves.budget(runs)], [], {}, trials, {})
    results, reached = learning_curves.results(runs), learning_curves.reached(runs, points)
    joined = (
        learning_curves.to_target(runs, reached)
        if len(reached)
        else pd.DataFrame(columns=[*learning_curves.WORKLOAD, "target"])
    )
    profiles = learning_curves.profiles(joined) if len(reached) else pd.DataFrame()
    shown, studies = varying(likelihoods(results), final), studies_of(runs, points, curvatures or {}, where)
    seen, complaints = pictures_of(pictures, final)
    drawn = figures(final, points, learning_curves.targets(runs, points), seen, where)
    drawn += [figure for study in studies for figure in study.figures]
    drawn += profile_figures(profiles, final, len(learning_curves.targets(runs, points)))
    return Section(
        title=TITLE,
        asked=ASKED,
        headline={"Held-out likelihood": shown},
        findings=complaints + findings(runs, joined, results) + [line for study in studies for line in study.findings],
        figures=drawn,
        glossary={},
        tables={"Time to target": varying(joined, final)}
        | more_tables(runs, results)
        | united(study.tables for study in studies),
        files={
            "curves.csv": points[points["identity"].isin(final["identity"])],  # those of trials are in the records
            "training.csv": results,
            "targets.csv": joined,
        }
        | united(study.files for study in studies),
    )


def studies_of(
    runs: pd.DataFrame, points: pd.DataFrame, curvatures: Mapping[str, Curvature], where: Where
) -> list[Study]:
    """Return what runs tell that were made to tell it."""
    return [
        batch_rates.study(runs, points, where),
        dampings.study(runs, points, where),
        quadratic_rates.study(runs, points),
        curvature.study(runs, curvatures, where),
    ]


def united(parts: Iterable[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Return the tables of all parts, by their names."""
    return {name: table for part in parts for name, table in part.items()}


def profile_figures(profiles: pd.DataFrame, final: pd.DataFrame, count: int) -> list[Drawn]:
    """Draw performance profiles over so many targets, where there are any."""
    if not len(profiles):
        return []
    alt = f"Performance profile: share of {count} targets that each optimizer reaches within a factor of the fastest."
    return [Drawn(drawing.profile_figure(profiles, style.styles(final["optimizer"]), count), alt)]


def likelihoods(results: pd.DataFrame) -> pd.DataFrame:
    """One row a workload and optimizer for people; brackets hold the range over seeds."""
    nats = [
        Shown(measured(row["held_out_nats"], row["low"], row["high"]), row["held_out_nats"]) for row in _rows(results)
    ]
    seeds = [f"{row['ok']} of {row['seeds']}" for row in _rows(results)]
    table = results.assign(held_out_nats=pd.Series(nats, results.index), seeds=seeds).drop(
        columns=["ok", "low", "high"]
    )
    if set(table["unit"].dropna()) <= {Number().unit}:
        table = table.drop(columns="unit")
    units = {"held_out_nats": "held-out nats [seeds' range]", "held_out_bits": "bits a dim", "step_ms": "ms a step"}
    return table.dropna(axis=1, how="all").rename(
        columns=units | {"drift_nats": "drift, nats", "seconds": "s", "inner_iterations": "inner iterations"}
    )


def _rows(table: pd.DataFrame) -> list[TableRow]:
    return table.to_dict("records")


def more_tables(runs: pd.DataFrame, results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables that only some runs have: of several data, of trials, of what did not end."""
    titled, final = {}, runs[~runs["trial"]]
    if final["data"].nunique() > 1:
        titled["Held-out nats by data"] = by_data(results, final)
    if len(trials := trials_table(runs)):
        titled["Trials"] = trials
    failed = final[final["status"] != "ok"]
    if len(failed):
        titled["Runs that did not end"] = failed[
            [*machine_column(runs), "optimizer", "data", "dim", "seed", "status", "reason"]
        ]
    return titled


def findings(runs: pd.DataFrame, joined: pd.DataFrame, results: pd.DataFrame) -> list[str]:
    """Say how soon each optimizer is where the honest baseline ends, which is best, and what went wrong."""
    found, unbounded = [], results["caveat"].str.startswith(f"no {NO_BOUND}", na=False)
    void = set(results[unbounded][learning_curves.WORKLOAD].itertuples(index=False, name=None))
    for key, part in joined.groupby(learning_curves.WORKLOAD, sort=False) if len(joined) else ():
        place = _place(dict(zip(learning_curves.WORKLOAD, key, strict=True)), results)
        own = part[(part["target"] == learning_curves.BASELINE) & (key not in void)].sort_values("seconds")
        honest = own[own["of_baseline"] == 1]
        for row in own.to_dict("records") if len(honest) else ():
            if row["optimizer"] != honest["optimizer"].iloc[0]:
                found.append(_overtaking(row, honest["optimizer"].iloc[0], float(honest["seconds"].iloc[0]), place))
    for key, part in results.dropna(subset=["held_out_nats"]).groupby(learning_curves.WORKLOAD, sort=False):
        best = part.sort_values("held_out_nats").iloc[-1]
        place = _place(dict(zip(learning_curves.WORKLOAD, key, strict=True)), results)
        found += [f"Mind the figures{place}: {caveat}." for caveat in part["caveat"].dropna().unique()]
        if key in void:
            found.append(f"None is best{place}: such likelihoods only tell how fast each grows.")
            continue
        bits = f", {best['held_out_bits']:.3f} bits per dim" if np.isfinite(best["held_out_bits"]) else ""
        found.append(
            f"Best at the end{place}: `{best['optimizer']}`, {best['held_out_nats']:.2f} {best['unit']}"
            f" [{best['low']:.2f}, {best['high']:.2f}]{bits}."
        )
        if part["amari"].notna().any():
            closest = part.sort_values("amari").iloc[0]
            found.append(
                f"Sources told apart best{place}: `{closest['optimizer']}`, median Amari distance"
                f" {closest['amari']:.4f}, FastICA's on the same rows {closest['fast_ica_amari']:.4f}."
            )
    found.append(learning_curves.budget(runs))
    final = runs[~runs["trial"]]
    for status, part in final[final["status"] != "ok"].groupby("status"):
        found.append(f"{len(part)} of {len(final)} final runs: {status}.")
    if contended := int(final["contended"].sum()):
        found.append(f"{contended} of {len(final)} final runs shared the machine with others: mind their seconds.")
    return found


def _overtaking(row: TableRow, honest: str, honest_s: float, place: str) -> str:
    name = f"`{row['optimizer']}`"
    if not np.isfinite(row["seconds"]):
        return f"{name} does not reach the end of `{honest}` ({row['nats']:.2f} nats){place}."
    return (
        f"{name} is where `{honest}` ends ({row['nats']:.2f} nats) in **{row['of_baseline']:.3g}** of its time{place}:"
        f" {row['seconds']:.3g} s and {row['steps']:.4g} steps, against {honest_s:.3g} s."
    )


def _place(workload: Mapping[str, object], table: pd.DataFrame) -> str:
    """Name what varies between the workloads of a run."""
    names = [name for name in learning_curves.WORKLOAD if table[name].nunique() > 1]
    return "".join(f", {name} {workload[name]}" for name in names) if names else f" at dim {workload['dim']}"


def by_data(results: pd.DataFrame, final: pd.DataFrame) -> pd.DataFrame:
    """Median held-out nats, a column for each choice of data: centred or not, say."""
    index = [*(name for name in learning_curves.WORKLOAD if name != "data" and final[name].nunique() > 1), "optimizer"]
    return results.pivot_table(index=index, columns="data", values="held_out_nats", sort=False).reset_index()


def trials_table(runs: pd.DataFrame) -> pd.DataFrame:
    """What each trial of tuning came to on the validation split."""
    trials = runs[runs["trial"]]
    settings = trials["tuned"].map(lambda tuned: ", ".join(f"{key} {value:.3g}" for key, value in tuned.items()))
    place = [*machine_column(runs), "data", "dim", *["batch"] * bool(trials["batch"].nunique() > 1), "optimizer"]
    shown = trials.assign(settings=settings)[[*place, "settings", "budget", "status", "validation_nats", "steps"]]
    return shown.sort_values(place)


def figures(
    final: pd.DataFrame, points: pd.DataFrame, targets: pd.DataFrame, pictures: dict[str, Arrays], where: Where
) -> list[Drawn]:
    """Draw each workload: its curves, ``training…``, and what was learned, ``pictures…``, named by what varies."""
    look, drawn = style.styles(final["optimizer"]), []
    varied = [axis for axis in learning_curves.WORKLOAD if final[axis].nunique() > 1]
    for key, part in final.groupby(learning_curves.WORKLOAD):
        facts: dict[str, Any] = dict(zip(learning_curves.WORKLOAD, key, strict=True))
        what = "{model}, dim {dim}, depth {depth}, batch {batch}, {data}, {dtype}, {device}".format(**facts)
        what += f", {facts['machine']}" * ("machine" in varied)
        title = f"{what}\n{where(facts['machine'])}"
        own = points[points["identity"].isin(part["identity"])]
        if not len(own):
            continue
        aims = targets[(targets[learning_curves.WORKLOAD] == list(key)).all(axis=1)]
        varied_by = "".join(style.suffix(axis, facts[axis]) for axis in varied)
        names = ", ".join(sorted(part["optimizer"].unique()))
        curves = f"Held-out log-likelihood against steps and against seconds ({what}), a curve a run of {names}."
        unit = next(iter(part["unit"].dropna()), Number().unit)
        figure = drawing.curves_figure(own, aims, look, title, unit)
        drawn.append(Drawn(figure, curves, f"training{varied_by}"))
        left = part[part["identity"].isin(pictures)].sort_values("optimizer")
        shown = {row["optimizer"]: pictures[row["identity"]] for row in _rows(left)}
        seen = drawing.pictures_figure(shown, title)
        if seen is not None:
            learned = (
                f"The data, and what models trained by {names} make of it ({what}): samples, and filters or density."
            )
            drawn.append(Drawn(seen, learned, f"pictures{varied_by}"))
    return drawn


def pictures_of(folders: Mapping[str, Path], final: pd.DataFrame) -> tuple[dict[str, Arrays], list[str]]:
    """Load what the first seed of each optimizer and workload left, by identity; say what cannot be shown, and why."""
    found, complaints = dict[str, Arrays](), list[str]()
    first = final[final["status"] == "ok"].sort_values("seed").groupby([*learning_curves.WORKLOAD, "optimizer"]).head(1)
    for identity in first["identity"]:
        if identity not in folders or not (path := folders[identity] / f"{identity}.npz").exists():
            continue
        try:
            found[identity] = store.read_pictures(path)
        except BadRecordError as error:
            complaints.append(f"Left out: {error}.")
    return found, complaints

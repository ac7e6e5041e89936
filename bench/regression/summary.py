"""What the regression gate says: progress, the verdict in words, one table; for people and for machines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from stepscale.bench.machine import description
from stepscale.bench.machine.device import choose_device

FORMATS = {"base_ms": "{:.3f}", "head_ms": "{:.3f}", "ratio": "{:.3f}", "low": "{:.3f}", "high": "{:.3f}"}
SHOWN = ["optimizer", "dim", *FORMATS, "resolution", "rounds", "verdict"]
NAMED = ("regressed", "improved", "undecided", "failed", "new", "gone")
OUTPUTS = ("regress.json", "regress.md", "rounds.csv")
EXPLAINED = (
    "ratio: head / base, with its 99 % interval over rounds (low, high); resolution: the smallest difference that "
    "would have been called one."
)


@dataclass(frozen=True)
class Facts:
    """What a comparison is of, and how it went; written as it stands."""

    base: str  # labels of the two versions
    head: str
    status: int
    seconds: int  # that it took
    threads: int
    waited_s: float  # for other processes to leave the machine
    failed: dict[str, dict[str, str]]  # session -> test -> reason
    inapplicable: dict[str, str]  # test -> why its optimizer does not apply to the model, in either version
    code: dict[str, str]  # session -> hash of the package it imported, and of its configurations
    optimizers: list[str]  # that either version knows
    interrupted: bool


def report(table: pd.DataFrame, facts: Facts) -> str:
    """Return the verdict in words and the table, as Markdown."""
    lines = [f"### Steps of {facts.head} against {facts.base}", "", headline(table, facts), ""]
    if len(table):
        lines += [pretty(table).to_markdown(index=False, disable_numparse=True), "", EXPLAINED]
    if table["ratio"].notna().any():
        lines[-1] += f" The same code, started twice, came out up to {100 * table['floor'].iloc[0]:.1f} % apart."
    for reason in dict.fromkeys(facts.inapplicable.values()):
        alike = [test for test, why in facts.inapplicable.items() if why == reason]
        lines += ["", f"- not applicable: {', '.join(alike)}: {reason}"]
    for session, tests in facts.failed.items():
        lines += ["", *(f"- {session}: {test} failed: {reason}" for test, reason in tests.items())]
    return "\n".join(lines)


def pretty(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns for people, as text."""
    shown = {name: [pattern.format(x) if x == x else "–" for x in table[name]] for name, pattern in FORMATS.items()}
    shown["resolution"] = [f"{100 * x:.1f} %" if x == x else "–" for x in table["resolution"]]
    return table.assign(**shown)[SHOWN]


def headline(table: pd.DataFrame, facts: Facts) -> str:
    """Say the whole verdict in a few sentences."""
    if not len(table):
        return f"Nothing was measured. Optimizers there are: {', '.join(facts.optimizers)}."
    names = {v: [f"{o}-{d}" for o, d in part[["optimizer", "dim"]].to_numpy()] for v, part in table.groupby("verdict")}
    said = [] if table["ratio"].notna().any() else ["Nothing could be compared."]
    said += [f"{len(names[v])} {v}: {', '.join(names[v])}." for v in NAMED if v in names]
    said += [f"{len(names['unchanged'])} unchanged."] if "unchanged" in names else []
    tried = {*table["optimizer"]} | {test.rpartition("-")[0] for test in facts.inapplicable}
    if facts.inapplicable:
        said.append(f"{len(facts.inapplicable)} do not apply to the model: {', '.join(facts.inapplicable)}.")
    if left := len({*facts.optimizers} - tried):
        said.append(f"{left} other optimizers were not compared: `--optimizers=all` compares every one.")
    if len(set(facts.code.values())) == 1:
        said.append("Both versions hold the same code.")
    set_aside = int(table["contended"].sum())
    if set_aside or facts.waited_s:
        said.append(
            f"Other processes used the machine: {facts.waited_s:.0f} s were spent waiting for them, "
            f"{set_aside} rounds were set aside."
        )
    if facts.interrupted:
        said.append("Interrupted: benchmarks not listed were not run.")
    return " ".join(said)


def clear(out: Path) -> None:
    """Remove an earlier comparison, which would else pass for this one."""
    for name in OUTPUTS:
        (out / name).unlink(missing_ok=True)


def save(out: Path, table: pd.DataFrame, facts: Facts, summary: str, rounds: pd.DataFrame) -> None:
    """Write the comparison as JSON, Markdown, and its rounds as CSV."""
    out.mkdir(parents=True, exist_ok=True)
    where = description.both(choose_device("auto"))
    rows = json.loads(table.to_json(orient="records"))
    (out / "regress.json").write_text(json.dumps(asdict(facts) | {"rows": rows, "environment": where}, indent=1) + "\n")
    (out / "regress.md").write_text(summary + "\n", encoding="utf-8")
    rounds.to_csv(out / "rounds.csv", index=False)


def save_error(out: Path, reason: str, status: int) -> None:
    """Write why there is no verdict.

    Raises:
        OSError: it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "regress.json").write_text(json.dumps({"status": status, "reason": reason}, indent=1) + "\n")
    text = f"### Steps could not be compared\n\n```\n{reason}\n```\n"
    (out / "regress.md").write_text(text, encoding="utf-8")

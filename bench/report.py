"""A run folder -> CSV, Markdown, PNG, SVG and one self-contained HTML page. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from stepscale.bench import layout, records, scaling_report, training_report

SECTIONS = {"time": scaling_report.section, "train": training_report.section}


def write(folder: Path) -> str:
    """Write everything a run's records tell into its folder; return the summary to print.

    Raises:
        FileNotFoundError: the folder holds no record.
    """
    there, complaints = records.read_all(folder)
    tasks = {record["task"] for record in there}
    if not tasks:
        raise FileNotFoundError(" ".join([f"no records in {folder / 'records'}", *complaints]))
    where = provenance(there)
    sections = [section(folder, where) for task, section in SECTIONS.items() if task in tasks]
    sections[0].findings[:0] = [f"Left out: {complaint}." for complaint in complaints]
    (folder / "summary.md").write_text(layout.markdown(sections, where))
    (folder / "report.html").write_text(layout.page(sections, where))
    said = ["\n".join([part.overview, "", *(f"- {line}" for line in part.findings)]) for part in sections]
    return "\n\n".join([*said, f"report in {folder / 'report.html'}"])


def provenance(there: list[records.Record]) -> str:
    """Say which machines, versions and dates a run's figures are of."""
    measured = [record for record in there if "cpu" in record["environment"]]
    if not measured:
        return "no cell was measured"
    machines = dict.fromkeys(_machine(record["environment"]) for record in measured)
    dates = sorted(record["finished"][:10] for record in measured)
    return f"{'; and '.join(machines)}, {dates[0] if dates[0] == dates[-1] else f'{dates[0]} to {dates[-1]}'}"


def _machine(environment: dict[str, Any]) -> str:
    threads = "1 thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    parts = [environment["gpu"]] if "gpu" in environment else []
    parts += [f"{environment['cpu']}, {environment['cores']} cores, {threads}"]
    parts += [f"torch {environment['torch']}", f"Python {environment['python']}"]
    return ", ".join([*parts, f"stepscale {environment['stepscale']} ({environment['commit'] or environment['code']})"])


def main(words: list[str]) -> None:
    """``stepscale report FOLDER``: write a run's report anew from its records."""
    parser = argparse.ArgumentParser(prog="stepscale report", description="Write a run's report from its records.")
    parser.add_argument("folder", type=Path)
    show(parser.parse_args(words).folder)


def show(folder: Path) -> None:
    """Write a run's report and print its summary.

    Raises:
        SystemExit: it cannot be written; the message says how to have it all the same.
    """
    try:
        print(write(folder))
    except FileNotFoundError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"no report: {error}; the records are whole: once there is room, `stepscale report {folder}`")

"""A run folder -> CSV, Markdown, PNG, SVG and one self-contained HTML page. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Record, Task
from stepscale.bench.report import page, scaling_section, scaling_tables, style, training_section


def write(folder: Path) -> str:
    """Write everything a run's records tell into its folder; return the summary to print.

    Raises:
        FileNotFoundError: the folder holds no record.
    """
    return write_of(*store.read_all(folder), folder)


def write_of(records: Collection[Record], complaints: list[str], folder: Path) -> str:
    """Write what these records tell into a folder; return the summary to print.

    Raises:
        FileNotFoundError: there is no record.
    """
    if not records:
        empty = f"no records in {folder / 'records'}; name a folder that a sweep wrote, such as results/local/latest."
        raise FileNotFoundError(" ".join([empty, *complaints]))
    where = provenance(records)
    cells, runs = (tables.cells_of(records, task) for task in (Task.TIME, Task.TRAIN))
    sections = [scaling_section.section(scaling_tables.judge(cells), where)] if len(cells) else []
    if len(runs):
        sections.append(training_section.section(runs, tables.points_of(records), folder / "pictures", where))
    sections[0].findings[:0] = [f"Left out: {complaint}." for complaint in complaints] + older(records)
    for section in sections:
        for name, table in section.files.items():
            table.to_csv(folder / name, index=False)
    figures = [[style.written(figure, folder) for figure in section.figures] for section in sections]
    (folder / "summary.md").write_text(page.markdown(sections, where), encoding="utf-8")
    (folder / "report.html").write_text(page.page(sections, figures, where), encoding="utf-8")
    return "\n\n".join([*map(page.text, sections), f"report in {folder / 'report.html'}"])


def older(records: Collection[Record]) -> list[str]:
    """Say how many records count no more, since other code has measured the same cells later."""
    count = len(records) - len(tables.newest(records))
    what = "1 record" if count == 1 else f"{count} records"
    return (
        [f"Left out: {what} of cells that other code, data or optimizers have measured again since."] if count else []
    )


def provenance(records: Collection[Record]) -> str:
    """Say which machines, versions and dates a run's figures are of."""
    measured = [record for record in records if record.environment.python]
    if not measured:
        return "no cell was measured"
    machines = dict.fromkeys(map(_machine, measured))
    dates = sorted(record.finished[:10] for record in measured)
    return f"{'; and '.join(machines)}, {dates[0] if dates[0] == dates[-1] else f'{dates[0]} to {dates[-1]}'}"


def _machine(record: Record) -> str:
    machine, environment = record.machine, record.environment
    threads = "1 thread" if environment.threads == 1 else f"{environment.threads} threads"
    parts = [] if machine.gpu is None else [machine.gpu]
    parts += [f"{machine.cpu}, {machine.cores} cores, {threads}"]
    parts += [f"torch {environment.torch}", f"Python {environment.python}"]
    return ", ".join([*parts, f"stepscale {environment.stepscale} ({environment.commit or environment.code})"])

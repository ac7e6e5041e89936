"""A run folder -> CSV, Markdown, PNG, SVG and one self-contained HTML page. Imports no torch."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from stepscale.bench.errors import BadRecordError
from stepscale.bench.notes import clean, one_line
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Record, Task
from stepscale.bench.report import page, scaling_section, scaling_tables, style
from stepscale.bench.report.compared import machines, versions
from stepscale.bench.report.page import Section
from stepscale.bench.report.style import Where
from stepscale.bench.report.training import section as training_section

COMMANDS = 3  # that are named of a run
LIBRARIES = ("numpy", "scipy", "pandas", "hydra-core")  # beside torch, whose versions a record holds
FAILED = "This section cannot be written"


class Source(NamedTuple):
    """A run's folder, and the records in it."""

    folder: Path
    records: Collection[Record]


def write(folder: Path) -> str:
    """Write everything a run's records tell into its folder; return the summary to print.

    Raises:
        FileNotFoundError: the folder holds no record.
    """
    return write_of(*store.read_all(folder), folder)


def write_of(records: Collection[Record], complaints: list[str], folder: Path, sources: Sequence[Source] = ()) -> str:
    """Write what these records tell into a folder; return the summary to print.

    Where they are not of that folder alone, ``sources`` says of which. Every file is written beside its place first:
    where one cannot be, the earlier report stays as it was.

    Raises:
        FileNotFoundError: there is no record.
        OSError: a file cannot be written.
    """
    if not records:
        empty = f"no records in {folder / 'records'}; name a folder that a sweep wrote, such as results/local/latest."
        raise FileNotFoundError(" ".join([empty, *complaints]))
    sources = sources or [Source(folder, records)]
    beside = tempfile.TemporaryDirectory(dir=folder, prefix="report-", suffix=".partial", ignore_cleanup_errors=True)
    with beside as new:
        written = [found for make in makers(records, sources) if (found := _written(make, Path(new)))]
        sections, figures = [section for section, _ in written], [drawn for _, drawn in written]
        left_out = [f"Left out: {complaint}." for complaint in complaints]
        lacking = [line for source in sources for line in unfinished(source, of_several=len(sources) > 1)]
        sections[0].findings[:0] = left_out + tables.left_out(records) + lacking
        sections[-1].findings.extend(remarks(sources))
        origin = f"{provenance(records)}, {made_by(records)}"
        _save(Path(new) / "summary.md", page.markdown(sections, origin))
        _save(Path(new) / "report.html", page.page(sections, figures, origin))
        for file in sorted(Path(new).iterdir()):
            os.replace(file, folder / file.name)
    return "\n\n".join([*map(page.text, sections), f"report in {folder / 'report.html'}"])


def makers(records: Collection[Record], sources: Sequence[Source]) -> list[Callable[[], Section | None]]:
    """Return what makes each section of which there are records; None where it has nothing to say."""
    where = where_of(records)

    @cache
    def judged() -> scaling_tables.Judged:
        return scaling_tables.judge(tables.cells_of(records, Task.TIME))

    def upgrades() -> Section | None:
        return versions.section([(str(source.folder), source.records) for source in sources])

    def between_machines() -> Section | None:
        return machines.section(judged())

    def scaling() -> Section:
        return scaling_section.section(judged(), where)

    def trained() -> Section:
        runs, folders = tables.cells_of(records, Task.TRAIN), _folders(records, sources)
        curvatures = {
            one.identity: one.training.curvature for one in records if one.training and one.training.curvature
        }
        return training_section.section(runs, tables.points_of(records), folders, where, curvatures)

    of_task: dict[Task, list[Callable[[], Section | None]]] = {
        Task.TIME: [upgrades, between_machines, scaling],
        Task.TRAIN: [trained],
    }
    return [make for task, some in of_task.items() if any(record.task is task for record in records) for make in some]


def _folders(records: Collection[Record], sources: Sequence[Source]) -> dict[str, Path]:
    """Return by identity the folder of pictures beside the record that counts."""
    place = {id(record): source.folder / "pictures" for source in sources for record in source.records}
    return {record.identity: place[id(record)] for record in tables.newest(records)}


def where_of(records: Collection[Record]) -> Where:
    """Return what says of a machine's name which versions and dates its figures are of."""
    own: dict[str, list[Record]] = {}
    for record in records:
        own.setdefault(str(tables.axes_of(record)["machine"]), []).append(record)
    known = {machine: provenance(some) for machine, some in own.items()} if len(own) > 1 else {}
    return lambda machine: known.get(machine) or provenance(records)


def _written(make: Callable[[], Section | None], folder: Path) -> tuple[Section, list[str]] | None:
    """Make a section, and write its tables and figures; one that fails costs itself alone, and its place says why.

    None of one that has nothing to say.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        section = make()
        if section is None:
            return None
        figures = [style.written(figure, folder) for figure in section.figures]
    except OSError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{FAILED}: {one_line(error)} ({Path(last.filename).name}, line {last.lineno})."
        told += " Its files that lie beside are of an earlier report."
        return Section(make.__name__.replace("_", " ").capitalize(), "", {}, [told], [], {}, {}, {}), []
    for name, table in section.files.items():
        table.to_csv(folder / name, index=False, encoding="utf-8", errors="backslashreplace")
    return section, figures


def _save(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def unfinished(source: Source, *, of_several: bool) -> list[str]:
    """Say how many cells of a run's plan are not recorded."""
    with suppress(BadRecordError):
        plan = store.read_plan(source.folder)
        if plan is not None and (missing := plan.missing(source.records)):
            of = f" of {source.folder}" * of_several
            return [f"Not finished: {missing} of the {plan.cells} planned cells{of} are not recorded."]
    return []


def remarks(sources: Sequence[Source]) -> list[str]:
    """Return what whoever made the runs has to say of them, the paragraphs of their ``remarks.md``, as findings."""
    found = list[str]()
    for source in sources:
        path, of = source.folder / store.REMARKS, f"{source.folder}: " * (len(sources) > 1)
        if path.is_file():
            paragraphs = path.read_text(encoding="utf-8", errors="replace").split("\n\n")
            found += [of + line for paragraph in paragraphs if (line := " ".join(map(clean, paragraph.split())))]
    return found


def provenance(records: Collection[Record]) -> str:
    """Say which machines, versions and dates a run's figures are of."""
    measured = [record for record in records if record.environment.python]
    if not measured:
        return "no cell was measured"
    commits = {record.environment.code: record.environment.commit for record in measured if record.environment.commit}
    places = dict.fromkeys(_machine(record, commits) for record in measured)
    dates = sorted(record.finished[:10] for record in measured)
    return f"{'; and '.join(places)}, {dates[0] if dates[0] == dates[-1] else f'{dates[0]} to {dates[-1]}'}"


def made_by(records: Collection[Record]) -> str:
    """Say by which commands, and with which other libraries, a run was made."""
    commands = list(dict.fromkeys(record.command for record in records))
    more = "; …" if len(commands) > COMMANDS else ""
    found = {
        f"{name} {version}": None
        for record in records
        for name in LIBRARIES
        if (version := getattr(record.environment, name.replace("-", "_"))) is not None
    }
    return f"made by: {'; '.join(commands[:COMMANDS])}{more}" + f" (with {', '.join(found)})" * bool(found)


def _machine(record: Record, commits: dict[str, str]) -> str:
    """Name a machine and its versions; a code by its commit where one of ``commits`` is of that code."""
    machine, environment = record.machine, record.environment
    threads = "1 thread" if environment.threads == 1 else f"{environment.threads} threads"
    build = commits.get(environment.code) or environment.code
    parts = [] if machine.gpu is None else [machine.gpu]
    parts += [f"{machine.cpu}, {machine.cores} cores, {threads}"]
    parts += [f"torch {environment.torch}", f"Python {environment.python}"]
    return ", ".join([*parts, f"stepscale {environment.stepscale} ({build})"])

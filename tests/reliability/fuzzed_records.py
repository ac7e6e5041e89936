"""Damage the files of a small real run, one at a time; see what becomes of the table, the resume and the report.

``python -m tests.reliability.fuzzed_records --count 2000 --to results/reliability/fuzzed_records.csv``

Every mutant is one file of the run with one change. Then the run is loaded, its next cells are planned, its report is
written and it is published, in this process. ``named`` is a mutant that some line names by its file, ``used`` one that
was taken as good: a change may leave a good record. A ``traceback`` is what no mutant may end in.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pandas as pd

from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.errors import UsageError
from stepscale.bench.records import store, tables
from stepscale.bench.records.operations import StepLog
from stepscale.bench.report import write
from stepscale.bench.report.training import section as training_section
from stepscale.bench.runs import plan, publish
from stepscale.bench.runs.run import Run
from tests.support import jobs, training

DRAWN = 24  # of so many reports one is drawn whole, with figures: seconds each
DEEP, LONG = 5_000, 5_000
LAST_CASES = ("true", "null", "-1", "0", "1e-300", "1e300", "1e999", "NaN", "-Infinity", '"text"', '""', "[]", "{}")
RAW = (
    *LAST_CASES, "[" * DEEP + "]" * DEEP, '{"a":' * 200 + "1" + "}" * 200, "9" * LONG, '"' + "x" * 10**6 + '"',
    r'"\ud800"', r'"a\u0000b\u001b[2Jc\n| d |"', r'"cost $\\frac{a}{b$"', '"<script>alert(1)</script>"', '"[a](b)|c|"',
    '"=cmd|\' /C calc\'!A0"', '"../../../etc/passwd"', "123456789012345678901234567890", "0.5", "[1,2,3]", '{"a":null}',
)  # fmt: skip


class Mutant(NamedTuple):
    """One file with one change."""

    kind: str  # of the file: record, operations, run.json, picture
    change: str
    path: Path
    content: bytes


class Outcome(NamedTuple):
    """What became of a mutant."""

    kind: str
    change: str
    outcome: str  # named, used or traceback
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--to", type=Path, help="a CSV file, a line a kind of file, change and outcome")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(Path(folder), arguments.count, arguments.seed)
    table = pd.DataFrame(found)
    counted = table.groupby(["kind", "change", "outcome"]).agg(mutants=("said", "size"), one_of_them=("said", "first"))
    if arguments.to:
        arguments.to.parent.mkdir(parents=True, exist_ok=True)
        counted.to_csv(arguments.to)
    for said, count in Counter(one.said for one in found if one.outcome == "traceback").most_common():
        print(count, said)
    print(table.groupby(["kind", "outcome"]).size().to_string())
    sys.exit(bool((table["outcome"] == "traceback").any()))


def fuzz(folder: Path, count: int, seed: int, every: int = 1) -> list[Outcome]:
    """Try so many mutants of a small run made in a folder; of ``every`` so many one has its report written."""
    whole, made = folder / "whole", small_run(folder / "whole")
    rng, found = random.Random(seed), []
    files = [("record", list(whole.glob("records/*"))), ("operations", list(whole.glob("operations/*")))]
    files += [("run.json", [whole / "run.json"]), ("picture", list(whole.glob("pictures/*")))]
    for number in range(count):
        kind, paths = rng.choices(files, weights=(12, 3, 1, 2))[0]
        mutant = mutated(kind, rng.choice(sorted(paths)), rng)
        run = folder / "run"
        shutil.copytree(whole, run)
        (run / mutant.path.relative_to(whole)).write_bytes(mutant.content)
        report, draw = not number % every, kind == "picture" or not number % (every * DRAWN)
        found.append(tried(mutant, run, made, report=report, draw=draw))
        shutil.rmtree(run)
    return found


def small_run(folder: Path) -> list[Job]:
    """Make a run of eight timed cells and two trained ones, as a sweep leaves it."""
    timed = [
        jobs.job(folder, f"seed={seed}", optimizer=optimizer, dim=dim)
        for optimizer in ("relative", "layerwise")
        for dim in (4, 8)
        for seed in (0, 1)
    ]
    logged = [jobs.logged(job) for job in timed]
    trained = [training.job(folder, f"seed={seed}", "training.pictures=4", dim=16) for seed in (1, 2)]
    for job in logged:
        store.save_log(job.log, folder, job.log_name)
    for job in [*logged, *trained]:
        store.save(measure_cell(job), folder)
    whole = plan.Plan(name="small", parts=[[["dim=4"]]], code="code", torch="torch")
    plan.save(whole, folder, [job.identity for job in [*timed, *trained]])
    return [*timed, *trained]


def mutated(kind: str, path: Path, rng: random.Random) -> Mutant:
    """Change a file somewhere, somehow."""
    content = path.read_bytes()
    changes: dict[str, Callable[[bytes, random.Random], bytes]] = {**BYTES}
    if kind != "picture":
        changes |= TREES
    change = rng.choice(sorted(changes))
    return Mutant(kind, change, path, changes[change](content, rng))


def tried(mutant: Mutant, run: Path, made: list[Job], *, report: bool, draw: bool) -> Outcome:
    """Do with a run whatever is done with one; write its ``report``, and ``draw`` its figures, if that is asked for."""
    said: list[str] = []
    try:
        with planning_alone(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for task in ("time", "train"):
                tables.load(run, task)
            tables.curves(run)
            trained = tables.load(run, "train")
            said += training_section.pictures_of(dict.fromkeys(trained["identity"], run / "pictures"), trained)[1]
            opened = Run(run, len(made), said.append)
            for job in made:
                opened._there(job)
                opened._predicted_too_slow(job)
                opened._logged([job])
            opened.refresh()
            if report:
                said += written(run, draw=draw)
            said += publishing(run, run.with_name("published"))
        said += [str(warning.message) for warning in warned]
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{Path(last.filename).name}:{last.lineno} {type(error).__name__}: {error}"
        return Outcome(mutant.kind, mutant.change, "traceback", told[:200])
    naming = [line for line in said if mutant.path.name in line]
    where = naming[0].replace(str(run), "RUN")[:200] if naming else ""
    return Outcome(mutant.kind, mutant.change, "named" if naming else "used", where)


def written(run: Path, *, draw: bool) -> list[str]:
    """Write a run's report; the figures are drawn where it is asked for."""
    if draw:
        text = write.write(run)
        page = (run / "report.html").read_text(encoding="utf-8")
        assert "</html>" in page and "<script>alert" not in page
    else:
        sections = write.scaling_section, write.training_section
        with ExitStack() as stack:
            for section in sections:
                stack.enter_context(mock.patch.object(section, "figures", lambda *_: []))
            text = write.write(run)
    assert write.FAILED not in text, text
    return text.splitlines()


def publishing(run: Path, target: Path) -> list[str]:
    """Publish a run; return the refusal, if it is one."""
    try:
        with mock.patch.object(publish, "RESULTS", target):
            publish.publish(run, "name")
    except UsageError as error:
        return [str(error)]
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return []


@contextmanager
def planning_alone() -> Iterator[None]:
    """Measure nothing: what a damaged log makes necessary is answered at once."""
    with mock.patch.object(process, "log", lambda jobs: [StepLog(notes={"counts": "not logged here"}) for _ in jobs]):
        yield


def _flipped(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _inserted(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randint(1, 40)) + content[place:]


def _doubled(content: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:last] + content[first:last] + content[last:]


def _blanked(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + b"\0" * min(512, len(content) - place) + content[place + 512 :]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """List every container and key of plain data."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in [(tree, key), *_places(tree[key])]]


def _in_tree(change: Callable[[Any, Any, random.Random], str | None]) -> Callable[[bytes, random.Random], bytes]:
    """Change JSON at a random place; text that is returned is put there as it is."""

    def changed(content: bytes, rng: random.Random) -> bytes:
        tree = json.loads(content)
        raw = change(*rng.choice(_places(tree)), rng)
        return json.dumps(tree).replace('"@here@"', raw or "").encode()

    return changed


def _value(container: Any, key: Any, rng: random.Random) -> str:
    container[key] = "@here@"
    return rng.choice(RAW)


def _number(container: Any, key: Any, rng: random.Random) -> None:
    """Change a number, or what holds some, to an impossible one or a doubtful one."""
    if isinstance(container[key], list):
        container[key] = [-1.0] * len(container[key])
    else:
        container[key] = rng.choice([-1, 0, 10**9, 10**18, -1e-9, 1e-300, 1e300])


def _removed(container: Any, key: Any, rng: random.Random) -> None:
    del container[key]


def _repeated(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, list):
        container.insert(key, container[key])
    else:
        container[f"{key} again"] = container[key]


def _exchanged(container: Any, key: Any, rng: random.Random) -> None:
    other = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


BYTES = {
    "bit flipped": _flipped, "cut off": _cut, "bytes inserted": _inserted, "part doubled": _doubled,
    "zeros": _blanked, "empty": lambda content, rng: b"",
    "byte order mark": lambda content, rng: b"\xef\xbb\xbf" + content,
}  # fmt: skip
SCHEMAS = (b"0", b"1", b"3", b'"2"', b"[]", b"true")
TREES = {
    "value": _in_tree(_value), "value again": _in_tree(_value), "number": _in_tree(_number),
    "key removed": _in_tree(_removed), "key repeated": _in_tree(_repeated), "values exchanged": _in_tree(_exchanged),
    "utf-16": lambda content, rng: content.decode().encode("utf-16"),
    "another schema": lambda content, rng: content.replace(b'"schema":2', b'"schema":' + rng.choice(SCHEMAS)),
}  # fmt: skip

if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    main()

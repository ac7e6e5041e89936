"""The step benchmarks' options, and turns: sessions that run side by side measure one at a time.

Where ``STEPSCALE_TURNS`` names the descriptor of a connection, a session tells on it which round it is ready for, waits
for its turn, and tells what it found; ``sessions`` is the other end. Without it a session just runs.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import msgspec
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import stepscale.bench.config
import stepscale.models
import stepscale.optimizers
from stepscale.bench.config import CONF, searchable
from stepscale.bench.machine import code_version
from stepscale.optimizers import Step

from .messages import Collected, Failed, Found, Message, Plan, Ready, Timings, receive_answer, send
from .slow import slow_down

# one dim where the calls show, one where the products do
NAIVE_DIMS, USUAL_DIMS = ((64, 128), (512, 4096)) if torch.cuda.is_available() else ((32, 64), (96, 384))
DIMS = {"naive": NAIVE_DIMS}


class Turn(Protocol):
    """Waits for this session's turn; returns what all sessions agreed on for this test."""

    def __call__(self, round_: int, proposal: Plan | None = None) -> Plan | None: ...


class Turns:
    """This session's end; alone, it always has its turn, and its own proposals are agreed on."""

    def __init__(self, descriptor: str | None) -> None:
        self.connection = Connection(int(descriptor)) if descriptor else None

    def say(self, words: Message) -> None:
        """Tell one thing; the turn stays."""
        if self.connection:
            send(self.connection, words)

    def take(self, test: str, round_: int, proposal: Plan | None = None) -> Plan | None:
        """Give the turn back and wait for the next; return what all sessions agreed on for this test."""
        if not self.connection:
            return proposal
        self.say(Ready(test, round_, time.process_time(), proposal))
        try:
            return receive_answer(self.connection)
        except EOFError:
            pytest.exit("whoever grants the turns is gone", returncode=3)


TURNS = Turns(os.environ.pop("STEPSCALE_TURNS", None))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("steps")
    group.addoption("--optimizers", default="", help="only these, separated by commas")
    group.addoption("--config-dir", default="", help="a folder of a user's own YAML, whose optimizers are meant")
    group.addoption("--word", default=[], action="append", help="of Hydra, for every benchmark")
    group.addoption("--dims", default="", help="these dims instead of each optimizer's two")
    group.addoption("--slow", default="", help="slow every step down: PLACE=SHARE of its own time, as direction=0.05")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [name.strip() for name in metafunc.config.getoption("optimizers").split(",") if name.strip()]
    dims = [int(dim) for dim in metafunc.config.getoption("dims").split(",") if dim.strip()]
    conf = Path(metafunc.config.getoption("--config-dir") or CONF)
    optimizers = sorted(path.stem for path in (conf / "optimizer").glob("*.yaml"))
    cases = {
        f"{o}-{d}": (o, d) for o in optimizers if not chosen or o in chosen for d in dims or DIMS.get(o, USUAL_DIMS)
    }
    ids = sorted(cases)  # an order on which sessions with different optimizers agree
    metafunc.parametrize(("optimizer", "dim"), [cases[i] for i in ids], ids=ids)


def pytest_collection_finish(session: pytest.Session) -> None:
    # of an empty selection pytest makes one test without parameters, which it skips
    functions = [item for item in session.items if isinstance(item, pytest.Function)]
    tests = [item.callspec.id for item in functions if isinstance(item.callspec.params["dim"], int)]
    folder = session.config.getoption("--config-dir")
    parts = [path.read_bytes() for path in sorted(Path(folder or CONF).rglob("*.yaml"))]
    if folder:
        files = imported_by(Path(folder))
        parts += [source for file in files for source in sources(file)]
    else:
        ours = (stepscale.bench.config, stepscale.models, stepscale.optimizers)
        files = [Path(str(package.__file__)) for package in ours]
        parts.append(code_version.code_hash().encode())
    code = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    TURNS.say(Collected(tests, [str(file) for file in files], code))


def imported_by(folder: Path) -> list[Path]:
    """Import what a user's YAML names as ``_target_``; return the files of their modules that no installer has put."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.yaml"))]
    targets = {target.split(".")[0] for text in texts for target in re.findall(r"_target_:\s*([\w.]+)", text)}
    found = []
    for name in sorted(targets - {"stepscale", "torch"}):
        with suppress(ImportError):  # the benchmark says what is missing
            found += [Path(file) for file in [importlib.import_module(name).__file__] if file]
    return [file for file in found if "site-packages" not in file.parts]


def sources(file: Path) -> list[bytes]:
    """Return the source of a module, and of all others of its package."""
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return [path.read_bytes() for path in files]


@pytest.fixture(scope="session")
def words(pytestconfig: pytest.Config) -> list[str]:
    """Return the words of Hydra for every benchmark."""
    folder = pytestconfig.getoption("--config-dir")
    return [*searchable(["--config-dir", folder] if folder else []), *pytestconfig.getoption("--word")]


@pytest.fixture
def turn(request: pytest.FixtureRequest) -> Turn:
    """Return what waits for this session's turn."""
    return lambda round_, proposal=None: TURNS.take(request.node.callspec.id, round_, proposal)


@pytest.fixture(scope="session")
def slow(pytestconfig: pytest.Config) -> Callable[[Step], Step]:
    """Return what slows a step down as ``--slow`` asks."""
    return slow_down(pytestconfig.getoption("slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        reason = call.excinfo.exconly() if call.excinfo else str(report.longrepr)
        TURNS.say(Failed(item.callspec.id, reason))
    elif report.when == "call" and report.passed:
        found = item.funcargs["benchmark"]
        assert isinstance(found, BenchmarkFixture)
        TURNS.say(Found(item.callspec.id, msgspec.convert(found.extra_info, Timings)))
    return report

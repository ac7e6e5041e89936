"""The fork server: what it loads, what ends it. How long that takes is for benchmarks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepscale.bench.cells import fork_server
from tests.support.commands import group_lives, stepscale

HEAVY = ("scipy.stats", "sklearn", "pandas", "matplotlib")


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.strip()


def test_starting_it_waits_for_no_library() -> None:
    loaded = python("import sys, stepscale.bench.__main__; print(*(n for n in ('torch', 'numpy') if n in sys.modules))")
    assert loaded == ""


def test_it_loads_torch_and_nothing_that_only_tables_and_plots_need() -> None:
    imports = "; ".join(f"import {name}" for name in fork_server.PRELOAD)
    loaded = python(f"{imports}; import sys; print(*(name for name in {('torch', *HEAVY)} if name in sys.modules))")
    assert loaded == "torch"


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("dim=8", "False"),
        ("", "False"),
        ("sweep quick", "False"),
        ("report results/speed", "stepscale.bench.cli.report"),
        ("doctor", "stepscale.bench.cli.doctor"),
        ("regress main", "stepscale.bench.cli.regress"),
        ("dim=8 threads=1", "stepscale.bench.cli.cell"),
        ("sweep quick hydra/launcher=submitit_slurm", "stepscale.bench.cli.sweep"),
        ("--cfg job", "stepscale.bench.cli.cell"),
    ],
)
def test_a_command_starts_it_before_it_loads_torch_itself(words: str, first: str) -> None:
    code = (
        "import sys\nfrom stepscale.bench import __main__\nfrom stepscale.bench.cells import fork_server\n"
        "def start(threads):\n    print('torch' in sys.modules)\n    sys.exit()\n"
        "def load(name):\n    print(name)\n    sys.exit()\n"
        "fork_server.start, __main__.importlib.import_module = start, load\n"
        f"sys.argv = ['stepscale', *{words.split()}]\n"
        "__main__.main()"
    )
    assert python(code) == first


def test_it_is_ended_with_the_command_even_while_it_loads(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("import time\ntime.sleep(60)\n")
    code = "from stepscale.bench.cells import fork_server; fork_server.PRELOAD[:] = ['long']; fork_server.start(1)"
    began = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True)
    assert began.wait(timeout=100) == 0
    deadline = time.monotonic() + 20
    while group_lives(began.pid):
        assert time.monotonic() < deadline, "the server goes on loading"
        time.sleep(0.01)


def test_ctrl_c_while_it_loads_is_not_for_the_server() -> None:
    code = (
        "import os, signal, time\nfrom multiprocessing import forkserver\n"
        "from stepscale.bench.cells import fork_server\n"
        "fork_server.start(1)\nos.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)\ntime.sleep(1)\n"
        "print(os.waitpid(forkserver._forkserver._forkserver_pid, os.WNOHANG)[0])"
    )
    assert python(code) == "0"


def test_another_number_of_threads_gets_another_server_and_the_commands_environment_stays() -> None:
    """What a command starts elsewhere, as jobs of a scheduler, must not have this machine's threads."""
    code = (
        "import os\nfrom stepscale.bench.cells import fork_server\nfrom multiprocessing import forkserver\n"
        "before = dict(os.environ)\n"
        "def started(threads):\n    fork_server.start(threads)\n    return forkserver._forkserver._forkserver_pid\n"
        "def threads(server):\n    there = ''\n"
        "    while not there:  # it is empty while the process is between fork and exec\n"
        "        there = open(f'/proc/{server}/environ').read()\n"
        "    return [word for word in there.split('\\0') if word.startswith('OMP_NUM_THREADS')]\n"
        "one = started(1)\nprint(one == started(1), threads(one), end=' ')\n"
        "other = started(2)\nprint(one == other, threads(other), os.environ == before)"
    )
    assert python(code) == "True ['OMP_NUM_THREADS=1'] False ['OMP_NUM_THREADS=2'] True"


def test_the_users_thread_count_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from stepscale.bench.cells import fork_server; from stepscale.bench.machine import cores; "
        "fork_server.start(2); print(cores.threads_for(None, alone=False))"
    )
    assert python(code, OMP_NUM_THREADS="3") == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    done = stepscale(tmp_path, "dim=8")
    assert done.returncode == 1
    assert "OMP_NUM_THREADS must be a whole number of at least 1, got 'many'" in done.stderr

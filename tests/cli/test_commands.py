"""The command line as a user meets it: in a folder of their own, with their own files, and with mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stepscale.bench.__main__ import COMMANDS, require_system, route
from stepscale.bench.cli import cell
from stepscale.bench.errors import UsageError
from stepscale.bench.runs import plan
from tests.support.commands import Forking, group_lives, stepscale
from tests.support.jobs import BRIEF

ODD = "it's ${dim} größe d=3, cost$ back\\slash 100%"  # the name of a folder


def test_a_users_own_optimizer_model_and_file(tmp_path: Path) -> None:
    """All three beside each other, in a folder that holds modules named like ours and has a name for trouble."""
    tmp_path = tmp_path / ODD
    tmp_path.mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "optimizer").mkdir()
    (tmp_path / "mine" / "optimizer" / "my_own.yaml").write_text(
        "_target_: stepscale.optimizers.pair\n_partial_: true\n"
        "direction: {_target_: optimizers.Mine, _partial_: true}\n"
        "update: {_target_: torch.optim.SGD, _partial_: true, lr: 1e-3}\n"
    )
    (tmp_path / "optimizers.py").write_text("from stepscale.optimizers import Layerwise\nclass Mine(Layerwise): pass\n")
    (tmp_path / "models.py").write_text(
        "import os, torch\nclass Theirs(torch.nn.Linear):\n"
        "    def __init__(self, dim, depth):\n        super().__init__(dim, dim * int(os.environ['WIDER']))\n"
        "    def loss(self, x):\n        return self(x).square().mean()\n"
    )
    (tmp_path / "data.csv").write_text("\n".join(f"{k},{k * k % 7},{k % 3}" for k in range(60)))
    own = ["--config-dir", "mine", "optimizer=my_own", "model._target_=models.Theirs", "dim=3", "batch=10"]
    own += ["+hydra.job.env_set.WIDER='2'"]
    done = stepscale(tmp_path, "-m", *own, "data=file", "data.path=data.csv", "seed=0,1", *BRIEF)
    assert done.returncode == 0, done.stderr
    assert "report in" in done.stdout
    (run,) = (tmp_path / "results" / "local").glob("multirun-*")
    found = [json.loads(path.read_text()) for path in (run / "records").glob("*.json")]
    assert sorted(record["cell"]["seed"] for record in found) == [0, 1]
    assert {record["status"] for record in found} == {"ok"}
    assert {record["cell"]["model"] for record in found} == {"Theirs"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer=relativ"], "Could not find 'optimizer/relativ'"),
        (["dim=many"], "dim must be a whole number of at least 1, got 'many'"),
        (["batch=0"], "batch must be a whole number of at least 1, got 0"),
        (["threads=0"], "threads must be null, all or a whole number of at least 1, got 0"),
        (["dtype=half"], "dtype must be one of float32, float64, tf32, bfloat16, got 'half'"),
        (["dtype=tf32", "device=cpu"], "dtype=tf32 is a mode of CUDA devices, this cell's device is cpu"),
        (["timing.compile=fast"], "timing.compile must be null or one of default, reduce-overhead"),
        (["device=tpu"], "device must be one of auto, cpu, cuda, got 'tpu'"),
        (["data=file", "data.path=nowhere.npy"], "no data file at nowhere.npy; set data.path"),
        (["data=file"], "data.path"),
        (["optimizer.update.lr=fast"], "lr"),
        (["optimizer.direction.bias=none"], "bias must be one of plain, affine, official, got 'none'"),
        (["optimizer=adam", "optimizer.update._target_=torch.optim.NAdam"], "by ~optimizer.update.fused"),
        (["timing.block_s=0"], "timing.block_s must be a positive number, got 0"),
        (["timing.precision=high"], "timing.precision must be a positive number, got 'high'"),
        (["sweep", "quick", "device=cpu,cuda"], "device must be one of auto, cpu, cuda, got 'cpu,cuda'"),
        (["seed=-1"], "seed must be a whole number of at least 0, got -1"),
        (["memory_gib=much"], "memory_gib must be null or a positive number, got 'much'"),
        (["timeout_s=-1"], "timeout_s must be null or a positive number, got -1"),
        (["+model.alpha=2"], "alpha must lie in (0, 1], got 2"),
        (["optimizer.direction._partial_=false"], "update and scheduler each want `_partial_: true`"),
        (["hydra.run.dir=out"], "hydra.run.dir=out has no say here: into=FOLDER names where records go"),
        (["-m", "hydra/sweeper=optuna"], "hydra/sweeper=optuna has no say here"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib is of a grid: add -m"),
        (["-m", "hydra/launcher=nowhere"], "Could not find 'hydra/launcher/nowhere'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_named(forking: Forking, tmp_path: Path, arguments: list[str], message: str) -> None:
    status, said = forking(tmp_path, *arguments, "dim=8" if arguments[0][:3] != "dim" else "depth=2")
    assert status != 0
    assert message in said
    assert "Traceback" not in said


def test_a_sweep_reports_what_it_has_and_fails_where_nothing_is_ok(tmp_path: Path) -> None:
    done = stepscale(tmp_path, "-m", "dim=8,none", "depth=1", *BRIEF)
    assert done.returncode != 0
    assert "dim must be a whole number of at least 1, got 'none'" in done.stderr
    assert "report in" in done.stdout
    done = stepscale(tmp_path, "-m", "dim=8", "optimizer.update.lr=1e30", *BRIEF, "into=results/bad")
    assert done.returncode == 1
    assert "1 of 1 cells: diverged" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = stepscale(tmp_path, "device=cuda")
    assert done.returncode != 0
    assert "sees no CUDA device here; use device=cpu" in done.stderr


def test_an_unknown_sweep_and_a_missing_run_are_named(tmp_path: Path) -> None:
    done = stepscale(tmp_path, "sweep", "weekly")
    assert done.returncode != 0
    assert f"no sweep 'weekly'; there are {', '.join(plan.names())}, or name a .yaml file" in done.stderr
    done = stepscale(tmp_path, "report", "nowhere")
    assert done.returncode != 0
    assert "no records in nowhere" in done.stderr


def test_the_help_names_every_command(tmp_path: Path) -> None:
    done = stepscale(tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert [name for name in COMMANDS if f"stepscale {name} " not in done.stdout] == []


def started(cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stepscale.bench", "sweep", "quick", *BRIEF]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def recorded(cwd: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (cwd / "results/local").glob("quick-*/records/*.json")}


def wait_for(cwd: Path, cells: int, sweep: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while len(recorded(cwd)) < cells:
        assert sweep.poll() is None and time.monotonic() < deadline, "the sweep came to no records"
        time.sleep(0.05)


def test_a_sweep_killed_and_interrupted_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    sweep = started(tmp_path)
    wait_for(tmp_path, 4, sweep)
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    deadline = time.monotonic() + 20
    while group_lives(sweep.pid):
        assert time.monotonic() < deadline, "an orphan goes on measuring"
        time.sleep(0.1)
    sweep.communicate()
    killed = recorded(tmp_path)

    sweep = started(tmp_path)
    wait_for(tmp_path, len(killed) + 4, sweep)
    os.killpg(sweep.pid, signal.SIGINT)  # as Ctrl-C does
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 130, errors
    assert "goes on from there" in errors
    interrupted = recorded(tmp_path)

    sweep = started(tmp_path)
    output, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    whole = recorded(tmp_path)
    assert f"20 cells, {len(interrupted)} of them there already" in output
    assert len(whole) == 20
    assert killed.items() <= interrupted.items() <= whole.items(), "no cell was measured twice"
    assert len(list((tmp_path / "results/local").glob("quick-*"))) == 1
    assert "report in" in output
    run = tmp_path / "results/local/latest"
    assert json.loads((run / "run.json").read_text())["cells"] == 20
    assert not list(run.glob("records/*.partial"))


def test_whoever_reads_a_line_and_no_more_gets_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stepscale.bench", "-m", "dim=8", "seed=0,1", *BRIEF]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    began = subprocess.Popen(command, cwd=tmp_path, text=True, **pipes)  # type: ignore[call-overload]
    assert "2 cells" in began.stdout.readline()
    began.stdout.close()
    assert began.stderr.read() == ""
    assert began.wait() == 128 + signal.SIGPIPE
    began.stderr.close()


LEAVING = """
import os, signal, sys, time
from stepscale.bench import __main__
from stepscale.bench.cells import fork_server
def load(name):
    print("loads", flush=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except BaseException:
        print("swallowed", flush=True)
fork_server.start, fork_server.stop = lambda threads: None, lambda: print("stops the server", flush=True)
__main__.importlib.import_module = load
sys.argv = ["stepscale", *sys.argv[1:]]
__main__.main()
"""


@pytest.mark.parametrize("words", [["sweep", "quick"], ["dim=8"], ["regress", "main"]], ids=str)
def test_an_interrupt_while_torch_loads_ends_the_command_at_once(words: list[str]) -> None:
    """Nothing has begun: whatever loads is not told, so that it can neither swallow the signal nor abort by it."""
    done = subprocess.run([sys.executable, "-c", LEAVING, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")
    assert done.stdout.split("\n") == ["loads", *["stops the server"] * (words[0] != "regress"), ""]


BEGUN = """
import os, signal, sys, tempfile, time, types
from stepscale.bench import __main__
def begin(words):
    with tempfile.TemporaryDirectory(dir="."):
        os.kill(os.getpid(), int(words[0]))
        time.sleep(60)
__main__.importlib.import_module = lambda name: types.SimpleNamespace(main=begin)
sys.argv = ["stepscale", *sys.argv[1:]]
__main__.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["report", "merge", "publish", "doctor"])
def test_an_interrupted_command_leaves_no_folder(tmp_path: Path, command: str, number: int) -> None:
    done = subprocess.run([sys.executable, "-c", BEGUN, command, str(int(number))], cwd=tmp_path)
    assert done.returncode == 128 + number and list(tmp_path.iterdir()) == []


def test_a_second_interrupt_while_the_command_ends_is_not_heard() -> None:
    code = (
        "import atexit, os, signal, sys\nfrom stepscale.bench import __main__\n"
        "def interrupted(name):\n    raise KeyboardInterrupt\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), print('ended')))\n"
        "__main__.importlib.import_module = interrupted\nsys.argv = ['stepscale', 'list']\n__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "ended\n", "\ninterrupted\n")


def test_an_interrupt_that_a_library_swallows_is_not_lost() -> None:
    code = (
        "import os, signal\n"
        "from stepscale.bench import interrupt\n"
        "interrupt.remember()\n"
        "interrupt.check()\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n"
        "    print('swallowed')\n"
        "try:\n"
        "    interrupt.check()\n"
        "except KeyboardInterrupt:\n"
        "    print('raised')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["swallowed", "raised"]


@pytest.mark.parametrize(
    ("words", "module", "starts_server"),
    [
        (["sweep", "quick"], "stepscale.bench.cli.sweep", True),
        (["sweep", "quick", "threads=1"], "stepscale.bench.cli.sweep", False),
        (["sweep", "quick", "hydra/launcher=joblib"], "stepscale.bench.cli.sweep", False),
        (["-m", "dim=8,16", "+hydra.launcher.n_jobs=1"], "stepscale.bench.cli.cell", False),
        (["report", "results/speed"], "stepscale.bench.cli.report", False),
        (["dim=8"], "stepscale.bench.cli.cell", True),
        ([], "stepscale.bench.cli.cell", True),
        (["-m", "dim=8,16"], "stepscale.bench.cli.cell", True),
        (["~model.depth"], "stepscale.bench.cli.cell", True),
        (["--cfg", "job"], "stepscale.bench.cli.cell", False),
    ],
)
def test_words_lead_to_their_command(words: list[str], module: str, starts_server: bool) -> None:
    to = route(words)
    assert (to.module, to.starts_server) == (module, starts_server)
    assert to.words == (words[1:] if words and words[0] in COMMANDS else words)


@pytest.mark.parametrize(
    ("word", "meant"), [("swep", "did you mean sweep?"), ("regres", "did you mean regress?"), ("x", "there are sweep,")]
)
def test_a_word_that_is_no_command_is_named(word: str, meant: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"no command '{word}'; {meant}")):
        route([word, "default"])


@pytest.mark.parametrize(
    ("words", "answered"),
    [
        (["--cfg", "job"], True),
        (["--info", "searchpath"], True),
        (["-sc", "install=bash"], True),
        (["--help"], True),
        (["-m", "dim=8,16", "hydra/launcher=joblib"], False),
        (["-m", "dim=8,16", "--anew"], False),
        (["--config-dir", "mine", "optimizer=my_own"], False),
        (["--config-dir=mine", "optimizer=my_own"], False),
        (["dim=8", "into=out"], False),
    ],
)
def test_what_hydra_answers_itself_is_left_to_it(words: list[str], answered: bool) -> None:
    assert cell.hydras(words) is answered


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--cfg", "job", "dim=8"], "dim: 8"),
        (["--info", "searchpath"], "Config search path"),
        (["-sc", "install=bash"], "hydra_bash_completion"),
    ],
)
def test_hydra_answers(forking: Forking, tmp_path: Path, words: list[str], answer: str) -> None:
    status, said = forking(tmp_path, *words)
    assert status == 0 and answer in said


@pytest.mark.slow
def test_a_command_typed_again_says_how_old_its_records_are(tmp_path: Path) -> None:
    """In a folder whose name is for trouble, on an ASCII terminal."""
    folder = tmp_path / ODD
    folder.mkdir()
    ascii_alone = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for words in (["-m", "dim=8", "seed=0,1"], ["dim=8"]):
        first, again, anew = (
            stepscale(folder, *words, *BRIEF, *more, environment=ascii_alone) for more in ([], [], ["--anew"])
        )
        assert first.returncode == again.returncode == anew.returncode == 0, first.stderr + again.stderr + anew.stderr
        assert "--anew measures" not in first.stdout + anew.stdout
        assert "--anew measures" in again.stdout
    local = folder / "results" / "local"
    assert len(list(local.glob("multirun-*/records/*.json"))) == 4, "anew, into a folder of its own"
    assert (local / "latest").resolve().name.endswith("-2")
    assert (
        "±" in (local / "latest" / "summary.md").read_text(encoding="utf-8")
        or (local / "latest" / "report.html").exists()
    )


@pytest.mark.parametrize(
    "words",
    [["dim=8", "into=file/below"], ["-m", "dim=8", "into=file"], ["merge", "other", "file"], ["report", "file"]],
    ids=" ".join,
)
def test_a_file_where_a_folder_is_to_be_is_named(forking: Forking, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").write_text("")
    status, said = forking(tmp_path, *words)
    place = words[-1].removeprefix("into=")
    assert (status, said) == (1, f"{place} can be no folder, as file is a file: name another, or remove the file\n")


def test_a_current_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    code = f"import os\nos.rmdir({str(tmp_path)!r})\nfrom stepscale.bench import __main__\n__main__.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "the current folder is not there any more: go to one that is\n"


def test_a_refused_cell_makes_no_folder(tmp_path: Path) -> None:
    for words in (["dim=none"], ["-m", "dim=none"], ["sweep", "quick", "dtype=half"]):
        assert stepscale(tmp_path, *words).returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_anew_that_comes_to_nothing_leaves_the_earlier_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(
        "import os\nfrom stepscale.optimizers import Layerwise\nclass Mine(Layerwise):\n"
        "    def __init__(self, *rest):\n        os.environ['FINE']\n        super().__init__(*rest)\n"
    )
    words = ["optimizer.direction._target_=own.Mine", "~optimizer.direction.bias", "dim=8", "into=run", *BRIEF]
    assert stepscale(tmp_path, *words, environment={"FINE": "1"}).returncode == 0
    [path] = (tmp_path / "run/records").iterdir()
    before, finished = path.read_bytes(), json.loads(path.read_text())["finished"]
    failed = stepscale(tmp_path, *words, "--anew")
    assert failed.returncode == 1 and f"its record of {finished} stays" in failed.stdout, failed.stderr

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cell.Run, "measure", interrupted)
    monkeypatch.setattr(cell.interrupt, "remember", lambda: None)
    assert cell.measure_one([*words[:3], *BRIEF], tmp_path / "run", anew=True) == 130
    assert capsys.readouterr().err == f"\ninterrupted; its record of {finished} stays\n"
    assert path.read_bytes() == before


def test_a_system_that_cannot_fork_is_refused_in_a_sentence() -> None:
    require_system("linux")
    require_system("darwin")
    with pytest.raises(UsageError, match="which Windows cannot: run it in WSL"):
        require_system("win32")


def test_commands_typed_in_the_same_second_all_end_well(tmp_path: Path) -> None:
    """Two of the same plan share its cells, one of another has its own folder; each waits while others measure."""
    grids = [["seed=0,1"], ["seed=0,1"], ["seed=2"]]
    began = [
        subprocess.Popen(
            [sys.executable, "-m", "stepscale.bench", "-m", "dim=8", *grid, *BRIEF],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for grid in grids
    ]  # fmt: skip
    for process in began:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    folders = [path for path in (tmp_path / "results/local").glob("multirun-*") if path.is_dir()]
    assert sorted(len(list((folder / "records").glob("*.json"))) for folder in folders) == [1, 2]


def test_an_optimizer_edited_between_two_runs_into_one_folder_is_measured_again(tmp_path: Path) -> None:
    own = "from stepscale.optimizers import Layerwise\nclass Mine(Layerwise): pass\n"
    words = ["-m", "dim=8", "optimizer.direction._target_=own.Mine", "~optimizer.direction.bias", *BRIEF]
    for text, count in ((own, 1), (own, 1), (own + "# edited\n", 2)):
        (tmp_path / "own.py").write_text(text)
        done = stepscale(tmp_path, *words, "into=run")
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "run" / "records").glob("*.json"))) == count
    assert "Left out: 1 record of cells that other code, data or optimizers have measured again since." in done.stdout


SWEEP_OF_PARTS = """task: time
settings: timing=quick timing.time_limit_s=0.02 timing.warmup_s=0.01 timing.block_s=0.002 batch=5
seeds: 2
grids: {cpu: ["dim=4,6 optimizer=relative", "dim=5 optimizer=layerwise"]}
"""


def test_parts_of_a_sweep_measured_one_by_one_make_one_run(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SWEEP_OF_PARTS)
    done = stepscale(tmp_path, "sweep", "mine.yaml", "part=3,0")
    assert done.returncode == 0, done.stderr
    assert "6 cells, 3 of them in part 0, 3, 0 of them there already" in done.stdout
    (run,) = (tmp_path / "results" / "local").glob("mine-*")
    measured = [json.loads(path.read_text())["cell"] for path in (run / "records").glob("*.json")]
    assert sorted((cell["seed"], cell["dim"]) for cell in measured) == [(0, 4), (0, 6), (1, 5)]
    assert "3 cells are recorded; `stepscale report results/local/mine-" in done.stdout
    shown = stepscale(tmp_path, "report", "results/local/latest")
    assert "Not finished: 3 of the 6 planned cells are not recorded." in shown.stdout
    again = stepscale(tmp_path, "sweep", "mine.yaml")
    assert "6 cells, 3 of them there already" in again.stdout and "Not finished" not in again.stdout
    assert len(list((run / "records").glob("*.json"))) == 6


def test_parts_are_listed_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SWEEP_OF_PARTS)
    done = stepscale(tmp_path, "sweep", "mine.yaml", "part=list")
    assert (done.returncode, done.stderr) == (0, "") and not (tmp_path / "results").exists()
    assert done.stdout.splitlines() == [
        f"  {number}: seed {seed}, {cells}"
        for seed in (0, 1)
        for number, cells in ((2 * seed, "dim 4 … 6, relative: 2 cells"), (2 * seed + 1, "dim 5, layerwise: 1 cell"))
    ]


@pytest.mark.parametrize("part", ["4", "²", "", "0,", "-1", "0 1"])
def test_a_part_that_is_none_is_answered_with_those_there_are(tmp_path: Path, part: str) -> None:
    (tmp_path / "mine.yaml").write_text(SWEEP_OF_PARTS)
    done = stepscale(tmp_path, "sweep", "mine.yaml", f"part={part}")
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert said[0] == f"part must be a number of these, or several as 0,1; got {part!r}"
    assert said[1:3] == ["  0: seed 0, dim 4 … 6, relative: 2 cells", "  1: seed 0, dim 5, layerwise: 1 cell"]
    assert not (tmp_path / "results").exists()

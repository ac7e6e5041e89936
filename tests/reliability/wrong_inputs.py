"""Sixty wrong inputs of the command line, each in a folder of its own; what is said, and what is left behind.

``python -m tests.reliability.wrong_inputs --to results/reliability/wrong_inputs.csv``

Each must be answered by a sentence that names the value and the remedy, by an exit status that is not 0, by no
traceback, and by no new file. A cell that fails in the user's own code keeps its record, which holds the traceback.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from stepscale.bench.config import CONF
from tests.support.commands import stepscale

LONGEST, LINES = 700, 6  # letters and lines of an answer; argparse's usage is some of them
BRIEF = ["dim=8", "depth=1", "timing=quick", "timing.time_limit_s=0.05", "timing.warmup_s=0.01"]
SWEEP = "task: time\nsettings: dim=8\nseeds: 1\n"
FILES = {
    "tabs.yaml": "task: time\n\tgrids: 1\n",
    "empty.yaml": "",
    "list.yaml": "- 1\n- 2\n",
    "lacking.yaml": "task: time\nseeds: 1\n",
    "no_grids.yaml": SWEEP + "grids: {cpu: [], cuda: []}\n",
    "no_device.yaml": SWEEP + "grids: {tpu: ['optimizer=relative']}\n",
    "bad_word.yaml": SWEEP + "grids: {cpu: ['optimiser=relative'], cuda: ['optimiser=relative']}\n",
    "mine/optimizer/no_target.yaml": "lr: 1\n",
    "mine/optimizer/not_partial.yaml": "_target_: stepscale.optimizers.pair\n",
    "mine/optimizer/tabs.yaml": "_target_: a\n\tb: 1\n",
    "mine/optimizer/words.yaml": "just words\n",
    "rows.csv": "a,b\n1,2\n3,x\n",
    "narrow.csv": "\n".join(f"{k},{k * k % 7}" for k in range(60)),
    "text.npy": "no array",
    "unfinished/run.json": '{"name": "a", "cells": 2, "parts": []}',
    "unfinished/records/abc.json": "{",
    "no_json/run.json": "{",
    "file": "",
    "theirs.py": (
        "import torch\n"
        "class Model(torch.nn.Linear):\n"
        "    def __init__(self, dim, depth): super().__init__(dim, dim)\n"
        "class Vector(Model):\n    def loss(self, x): return self(x).square().mean(1)\n"
        "class Number(Model):\n    def loss(self, x): return 1.0\n"
        "class Detached(Model):\n    def loss(self, x): return self(x).square().mean().detach()\n"
        "class Lossless(Model): pass\n"
        "class Raising(Model):\n    def __init__(self, dim, depth): raise ValueError('no luck')\n"
    ),
}


class Wrong(NamedTuple):
    """A wrong input, and words of its answer."""

    words: list[str]
    answer: str
    leaves: str = ""  # what is left: the record of a cell that failed in the user's code, or did not fit


def cell(word: str, answer: str, leaves: str = "") -> Wrong:
    """A cell of a few milliseconds, of which one word is wrong."""
    changed = {word.lstrip("+~").split("=")[0]}
    return Wrong([word, *(usual for usual in BRIEF if usual.split("=")[0] not in changed)], answer, leaves)


RECORD = "results/local/single"
INPUTS = [
    cell("optimizer=relativ", "did you mean relative?"),
    cell("optimiser=relative", "no key 'optimiser' to change; did you mean optimizer?"),
    cell("+optimiser=relative", "no key 'optimiser'; did you mean optimizer?"),
    cell("++optimiser=relative", "no key 'optimiser'; did you mean optimizer?"),
    cell("optimizer=flow", "Could not find 'optimizer/flow'"),
    cell("model=adam", "Could not find 'model/adam'"),
    cell("data=relative", "Could not find 'data/relative'"),
    cell("timing=slow", "Could not find 'timing/slow'"),
    cell("timing=1", "timing=1 names no file; there are default, full, quick"),
    cell("optimizer=", "optimizer= names no file; there are adam, ekfac"),
    cell("lr=abc", "no key 'lr' to change; did you mean optimizer.update.lr?"),
    cell("optimizer.update.lr=abc", "optimizer.update._target_=torch.optim.SGD: TypeError"),
    cell("optimizer.update.lr=", "it was given lr=''"),
    cell("optimizer.update.lr=-1", "Invalid learning rate: -1"),
    cell("optimizer.update.rate=1", "did you mean optimizer.update.lr?"),
    cell("+optimizer.lr=3", "pair() got an unexpected keyword argument 'lr'; it was given lr=3"),
    cell("+optimizer.update.rate=3", "unexpected keyword argument 'rate'"),
    cell("optimizer.update._target_=torch.optim.Addam", "there is no Addam in torch.optim; did you mean Adam?"),
    cell("optimizer.update._target_=torchh.optim.Adam", "there is no module torchh; your own must be importable"),
    cell("model._target_=theirs.Modell", "there is no Modell in theirs; did you mean Model?"),
    cell("model._target_=theirs", "model._target_=theirs"),
    cell("optimizer.update._target_=torch.optim.Muon", "stepscale.optimizers.split gives it the matrices alone"),
    cell("optimizer.direction._partial_=false", "`_partial_: true`"),
    cell("optimizer.direction.bias=none", "bias must be one of plain, affine, official, got 'none'"),
    cell("training.max_step=3", "did you mean training.max_steps?"),
    cell("+training.max_step=3", "did you mean training.max_steps?"),
    cell("timing.block_s=0", "timing.block_s must be a positive number, got 0"),
    cell("timing.precision=high", "timing.precision must be a positive number, got 'high'"),
    cell("timing.compile=fast", "timing.compile must be null or one of"),
    cell("dim=many", "dim must be a whole number of at least 1, got 'many'"),
    cell("dim=0", "dim must be a whole number of at least 1, got 0"),
    cell("dim=-3", "dim must be a whole number of at least 1, got -3"),
    cell("dim=1e9", "dim must be a whole number"),
    cell("dim=99999999999", "dim must be at most 2147483647"),
    cell("dim=100000000", "out_of_memory", RECORD),
    cell("dim=8,16", "`stepscale -m dim=8,16` measures a grid"),
    cell("dim=[8", "'dim=[8' cannot be read"),
    cell("batch=0", "batch must be a whole number of at least 1, got 0"),
    cell("depth=1.5", "depth must be a whole number of at least 1, got 1.5"),
    cell("seed=-1", "seed must be a whole number of at least 0, got -1"),
    cell("seed=99999999999999999999", "seed must be at most"),
    cell("threads=0", "threads must be null, all or a whole number of at least 1, got 0"),
    cell("device=tpu", "device must be one of auto, cpu, cuda, got 'tpu'"),
    cell("dtype=half", "dtype must be one of float32, float64, tf32, bfloat16, got 'half'"),
    cell("task=measure", "task must be one of time, train, got 'measure'"),
    cell("memory_gib=much", "memory_gib must be null or a positive number, got 'much'"),
    cell("timeout_s=-1", "timeout_s must be null or a positive number, got -1"),
    Wrong(["~timing", "dim=8"], "the configuration has no timing"),
    cell("~data", "the configuration has no data"),
    cell("into=file/below", "file/below"),
    cell("into=/proc/none", "/proc/none"),
    cell("data=file", "data.path has no value: set data.path=…"),
    Wrong(["data=file", "data.path=nowhere.npy", *BRIEF], "nowhere.npy"),
    Wrong(["data=file", "data.path=rows.csv", *BRIEF], "rows.csv"),
    Wrong(["data=file", "data.path=narrow.csv", *BRIEF], "narrow.csv"),
    Wrong(["data=file", "data.path=text.npy", *BRIEF], "text.npy"),
    Wrong(["dtype=bfloat16", "optimizer=layerwise", "device=cpu", *BRIEF], "use dtype=float32", RECORD),
    Wrong(["dtype=bfloat16", "optimizer=kfac", "device=cpu", *BRIEF], "use dtype=float32", RECORD),
    Wrong(["model._target_=theirs.Vector", "optimizer=layerwise", *BRIEF], "got a tensor of shape (100,)", RECORD),
    Wrong(["model._target_=theirs.Number", "optimizer=layerwise", *BRIEF], "got a float", RECORD),
    Wrong(["model._target_=theirs.Detached", "optimizer=layerwise", *BRIEF], "depends on no parameter", RECORD),
    Wrong(["model._target_=theirs.Lossless", "optimizer=layerwise", *BRIEF], "loss"),
    Wrong(["model._target_=theirs.Raising", *BRIEF], "model._target_=theirs.Raising: ValueError: no luck", RECORD),
    Wrong(["--config-dir", "mine", "optimizer=no_target", *BRIEF], "optimizer=no_target has no _target_"),
    Wrong(["--config-dir", "mine", "optimizer=not_partial", *BRIEF], "optimizer lacks `_partial_: true`"),
    Wrong(["--config-dir", "mine", "optimizer=tabs", *BRIEF], "tabs.yaml"),
    Wrong(["--config-dir", "mine", "optimizer=words", *BRIEF], "words"),
    Wrong(["--config-dir", "nowhere", "optimizer=x", *BRIEF], "there is no folder 'nowhere'"),
    Wrong(["swep", "default"], "no command 'swep'; did you mean sweep?"),
    Wrong(["frobnicate"], "no command 'frobnicate'; there are sweep"),
    Wrong(["sweep"], "the following arguments are required: name"),
    Wrong(["sweep", "weekly"], "no sweep 'weekly'; there are autoencoder"),
    Wrong(["sweep", "tabs.yaml"], "tabs.yaml is no YAML"),
    Wrong(["sweep", "empty.yaml"], "empty.yaml is no sweep, it lacks task"),
    Wrong(["sweep", "list.yaml"], "list.yaml is no sweep"),
    Wrong(["sweep", "lacking.yaml"], "it lacks settings, grids"),
    Wrong(["sweep", "no_grids.yaml"], "has an empty list of grids"),
    Wrong(["sweep", "no_device.yaml"], "only tpu"),
    Wrong(["sweep", "bad_word.yaml"], "did you mean optimizer?"),
    Wrong(["sweep", "nowhere.yaml"], "no sweep 'nowhere.yaml'"),
    Wrong(["sweep", "quick", "dtype=foo"], "dtype must be one of"),
    Wrong(["-m", "dim=none,zero"], "dim must be a whole number of at least 1, got 'none'"),
    Wrong(["report"], "the following arguments are required: folder"),
    Wrong(["report", "nowhere"], "no records in nowhere"),
    Wrong(["report", "file"], "no records in file"),
    Wrong(["publish", "nowhere", "x"], "nowhere holds no sweep's run"),
    Wrong(["publish", "unfinished", "x"], "unfinished is not finished: 2 of its 2 planned cells are not recorded"),
    Wrong(["publish", "no_json", "x"], "no_json/run.json is damaged"),
    Wrong(["publish", "unfinished", "../x"], "NAME must be of letters"),
    Wrong(["regress", "no-such-ref", "--out", "out"], "no commit 'no-such-ref' here", "out"),
    Wrong(["regress", "--dims=many"], "dims must be whole numbers separated by commas, got 'many'"),
    Wrong(["doctor", "--cells=1"], "a spread needs at least 3 cells, got 1"),
    Wrong(["list", "models"], "there is no group 'models'"),
]


class Answer(NamedTuple):
    """What became of a wrong input."""

    command: str
    exit: int
    printed: str
    complaint: str  # what is wrong with the answer; empty where nothing is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=Path, help="a CSV file: command, exit, what was printed")
    arguments = parser.parse_args()
    found = list(answers(INPUTS, lambda cwd, *words: _whole(cwd, *words)))
    if arguments.to:
        arguments.to.parent.mkdir(parents=True, exist_ok=True)
        with arguments.to.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("command", "exit", "printed"), *(answer[:3] for answer in found)])
    wrong = [answer for answer in found if answer.complaint]
    for answer in wrong:
        print(f"{answer.command}: {answer.complaint}\n{answer.printed}\n")
    print(f"{len(found)} wrong inputs, {len(wrong)} answered badly")
    sys.exit(bool(wrong))


def _whole(cwd: Path, *words: str) -> tuple[int, str]:
    done = stepscale(cwd, *words)
    return done.returncode, done.stdout + done.stderr


def answers(inputs: list[Wrong], run: Callable[..., tuple[int, str]]) -> Iterator[Answer]:
    """Give each input to the command line; yield what it answers."""
    for wrong in inputs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_files(folder)
            before = listing(folder)
            status, said = run(folder, *wrong.words)
            left = [path for path in sorted(listing(folder) - before) if path != "said"]
        said = said.replace(name, "FOLDER").replace(str(CONF), "conf").strip()
        yield Answer(" ".join(["stepscale", *wrong.words]), status, said, complaint(wrong, status, said, left))


def write_files(folder: Path) -> None:
    """Write the files that the inputs name."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def listing(folder: Path) -> set[str]:
    """Return what is in a folder, but for what Python compiles."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def complaint(wrong: Wrong, status: int, said: str, left: list[str]) -> str:
    """Say what is wrong with an answer."""
    found = []
    if status == 0:
        found.append("exit status 0")
    if "Traceback" in said:
        found.append("a traceback")
    if wrong.answer not in said:
        found.append(f"it lacks {wrong.answer!r}")
    if len(said) > LONGEST or len(said.splitlines()) > LINES:
        found.append(f"{len(said)} letters in {len(said.splitlines())} lines")
    allowed = (wrong.leaves, *map(str, Path(wrong.leaves).parents))
    if stray := [path for path in left if path not in allowed and not path.startswith(f"{wrong.leaves or '?'}/")]:
        found.append(f"it leaves {', '.join(stray)}")
    return "; ".join(found)


if __name__ == "__main__":
    main()

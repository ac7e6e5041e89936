"""A job -> a record: a step timed, or a model trained, in this process."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from torch import nn
from tqdm import tqdm

from stepscale.bench import environment, pictures, records, separation, training
from stepscale.bench.agreement import agreement
from stepscale.bench.checkpoint import Checkpoint
from stepscale.bench.clock import clock_of
from stepscale.bench.contention import OtherCpu, idle_cores
from stepscale.bench.data import Dataset
from stepscale.bench.job import Job, build, load_data, number_type
from stepscale.bench.limit import limit_of
from stepscale.bench.timing import DivergedError, Settings, TooSlowError, measure
from stepscale.bench.training import Stream, Training
from stepscale.bench.workload import Workload
from stepscale.models import Batch, each, objective_of, rows_of

BATCHES = 3  # rotated, so that no step finds its batch in the cache
WARM_UP_S = 1.0  # of training: one step is enough of a slow optimizer
SPLITS = ("train", "validation", "held_out")
OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
)


def measure_cell(job: Job) -> records.Record:
    """Measure a cell in this process; whatever goes wrong is the record's status and reason."""
    described = {"code": environment.code_hash(), "torch": torch.__version__}
    try:
        device = torch.device(job.cell["device"])
        number_type(job.cell["dtype"])  # sets how products round, which the environment's description says
        described = environment.describe(device)
        if torch.get_num_threads() != job.cell["threads"]:
            raise RuntimeError(
                f"torch has {torch.get_num_threads()} threads, {job.cell['threads']} were asked for; MKL gives no more "
                "than the machine has real cores: set threads (or OMP_NUM_THREADS) to those"
            )
        if os.environ.get("MKL_DYNAMIC", "").lower() in ("false", "0"):
            raise RuntimeError("MKL_DYNAMIC=FALSE makes torch's batched LU on CPU silently wrong: unset it")
        environment.limit_memory(job.config["memory_gib"], device)
        torch.manual_seed(job.cell["seed"])
        found = TASKS[job.config["task"]](job, device)
    except Exception as error:
        status, reason = classify(error)
        details = {"traceback": traceback.format_exc()} if status == "failed" else {}
        return job.record(status, reason, environment=described, **details)
    return job.record(**{"status": "ok", "reason": None, "environment": described} | found)


def time_cell(job: Job, device: torch.device) -> dict[str, Any]:
    """Time a step: the record's ``timing``, ``counts`` and ``memory``."""
    dtype = number_type(job.cell["dtype"])
    data = load_data(job, BATCHES * job.cell["batch"])
    rows, size = moved(data.train, device, dtype), job.cell["batch"]
    batches = [each(rows, lambda part, k=k: part[k * size : (k + 1) * size]) for k in range(BATCHES)]  # type: ignore[misc]
    peak_memory = environment.start_peak_memory(device)
    settings = Settings(**job.config["timing"])
    workload = Workload(*build(job, device, dtype), batches, settings.compile)  # type: ignore[arg-type]
    if device.type == "cuda":  # there the model was made at a higher peak than a step may have
        torch.cuda.reset_peak_memory_stats(device)
    found = measure(
        workload,
        lambda: limit_of(workload.model, batches[0], job.cell["dim"]),
        clock_of(device),
        settings,
        peak_memory,
    )
    return {**found, "direction": agreement(workload, job.cell["dim"]), "data_note": data.note}


def train_cell(job: Job, device: torch.device) -> dict[str, Any]:
    """Train a model: the record's ``training``, and its pictures in a file beside."""
    settings, dtype = training.Settings(**job.config["training"]), number_type(job.cell["dtype"])
    data = load_data(job, settings.rows)
    train, validation, held_out = (moved(getattr(data, name), device, dtype) for name in SPLITS)
    data = data._replace(train=train, validation=validation, held_out=held_out)
    stream = Stream(data.train, job.cell["batch"], job.cell["seed"])
    _warm_up(job, stream, device, dtype)
    run = Training(*build(job, device, dtype), data, stream, settings)
    others = OtherCpu(idle_cores(device.type, torch.get_num_threads()))
    found: dict[str, Any] = {"data_note": data.note, "data": _facts(data, run.model)}
    try:
        trained = _trained(run, job, device)
    except FloatingPointError as error:  # what the curve holds up to there is the record's all the same
        trained = {"stopped_by": "divergence"}
        found |= {"status": "diverged", "reason": str(error)}
    job.checkpoint.unlink(missing_ok=True)
    progress = {"curve": run.curve, "steps": run.position, "seconds": run.seconds, "other_cores": others.cores()}
    return found | {"training": trained | progress}


def moved(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Bring a batch to a device, and its numbers, but no labels, to a type."""
    return each(batch, lambda part: part.to(device=device, dtype=dtype if part.is_floating_point() else None))


TASKS = {"time": time_cell, "train": train_cell}


def _warm_up(job: Job, stream: Stream, device: torch.device, dtype: torch.dtype) -> None:
    """Spend what the first steps of a process cost on a step that is thrown away."""
    _, step = build(job, device, dtype)
    begun = time.monotonic()
    try:
        for position in range(BATCHES):
            if time.monotonic() - begun < WARM_UP_S:
                step(stream.at(position))
    except FloatingPointError:
        pass  # the run itself will meet it, and say so
    torch.manual_seed(job.cell["seed"])


def _trained(run: Training, job: Job, device: torch.device) -> dict[str, Any]:
    """Train to the end, saving and showing how far it is; return what there is to say of the end."""
    checkpoint = Checkpoint(job.checkpoint, run)
    checkpoint.resume()
    resumed_at = run.position
    with _progress(run, "{optimizer}, {data}, dim {dim}, seed {seed}".format(**job.cell)) as show:

        def look() -> None:
            show()
            checkpoint.look()

        stopped_by = run.run(clock_of(device), look)
    final = run.final()
    if run.data.mixing is not None and job.cell["depth"] == 1 and not run.settings.trial:
        final |= separation.distances(run.model, run.data)
    arrays = {} if run.settings.trial else pictures.look(run.model, run.data, run.settings.pictures)
    if arrays:
        pictures.save(arrays, job.folder / "pictures" / f"{job.identity}.npz")
    return {"stopped_by": stopped_by, "resumed_at": resumed_at, "final": final}


@contextmanager
def _progress(run: Training, label: str) -> Iterator[Any]:
    """Show a bar, where there is a terminal: how far, the likelihood, and the time left."""
    shape = "{desc} {percentage:3.0f}% |{bar:20}| {elapsed} < {remaining}{postfix}"
    with tqdm(total=100, initial=run.done(), desc=label, leave=False, disable=None, bar_format=shape) as bar:

        def show() -> None:
            bar.set_postfix_str(f"step {run.position}, {run.curve['validation_nats'][-1]:.2f} nats", refresh=False)
            bar.update(run.done() - bar.n)

        yield show


def _facts(data: Dataset, model: nn.Module) -> dict[str, Any]:
    """What the records say of the data; bits per dim only where the likelihood is of the rows themselves."""
    bits = None if objective_of(model).of_targets else data.bits_offset
    return {"shape": data.shape, "bits_offset": bits} | {name: rows_of(getattr(data, name)) for name in SPLITS}


def classify(error: BaseException) -> tuple[str, str]:
    """Return the status and the reason that an exception gives a cell."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:  # Hydra's names the target alone
        error = error.__cause__
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    if isinstance(error, TypeError) and "missing" in reason and "positional argument" in reason:
        reason += "; in an optimizer's file _target_, direction and update each want `_partial_: true`"
    if isinstance(error, DivergedError | FloatingPointError):  # the latter from a direction that met a NaN
        return "diverged", str(error)
    if isinstance(error, TooSlowError):
        return "too_slow", str(error)
    words = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words_ in words for words_ in OUT_OF_MEMORY):
        return "out_of_memory", reason
    return "failed", reason

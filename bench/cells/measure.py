"""A job -> a record: a step timed, or a model trained, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from stepscale.bench.cells.build import build_model, number_type
from stepscale.bench.cells.failures import classify, fault_of_start, may_come_from_the_start
from stepscale.bench.cells.job import Job
from stepscale.bench.cells.time_cell import batches_of, log_cell, time_cell
from stepscale.bench.cells.train_cell import train_cell
from stepscale.bench.errors import StoppedError, UsageError
from stepscale.bench.machine import description, memory
from stepscale.bench.notes import trace
from stepscale.bench.records.operations import StepLog
from stepscale.bench.records.schema import Record, Status, Task


def measure_cell(job: Job, turn: Callable[[], None] = lambda: None) -> Record:
    """Measure a cell in this process; whatever goes wrong is the record's status and reason.

    ``turn`` is called before each block of a step that is timed, and returns when the machine is this cell's.

    Raises:
        StoppedError: the process was asked to end, and there is no result.
    """
    record = job.record(Status.FAILED, None, description.bare())
    try:
        number_type(job.cell.dtype)  # sets how products round, which the environment's description says
        record.environment = description.describe()
        device = prepare(job)
        if job.task is Task.TIME:
            time_cell(job, device, record, turn)
        else:
            train_cell(job, device, record)
    except StoppedError:
        raise
    except BaseException as error:  # also what a user's code ends a process by
        record.status, record.reason = classify(error)
        if may_come_from_the_start(error) and (fault := _fault_of_start(job)) is not None:
            record.status, record.reason = Status.DIVERGED, fault
        refused = type(error) is UsageError  # the reason is all that there is to say
        record.traceback = trace(error) if record.status is Status.FAILED and not refused else None
    else:
        record.status = Status.OK
    return record


def _fault_of_start(job: Job) -> str | None:
    """Build a cell's model anew, and say what is wrong with it before any step, if it can be told."""
    try:
        device = prepare(job)
        batches, _ = batches_of(job, device)
        return fault_of_start(build_model(job, device, number_type(job.cell.dtype)), batches[0])
    except Exception:
        return None


def log_operations(job: Job) -> StepLog:
    """Log the operations of a cell's step in this process; what cannot be is noted."""
    try:
        return log_cell(job, prepare(job))
    except BaseException as error:
        return StepLog(notes={"counts": classify(error)[1]})


def prepare(job: Job) -> torch.device:
    """Ready this process for a cell: its threads, its memory, its generator."""
    device = torch.device(job.cell.device)
    refuse_wrong_threads(job.cell.threads)
    if job.cell.dtype == "bfloat16" and job.cell.device == "cpu":
        refuse_wrong_means()
    memory.limit_memory(job.config["memory_gib"], device)
    torch.manual_seed(job.cell.seed)
    return device


def refuse_wrong_threads(asked: int) -> None:
    """See that torch has the threads asked for, and that nothing makes it wrong.

    Raises:
        RuntimeError: it has not, or something does.
    """
    if torch.get_num_threads() != asked:
        raise RuntimeError(
            f"torch has {torch.get_num_threads()} threads, {asked} were asked for; MKL gives no more "
            "than the machine has real cores: set threads (or OMP_NUM_THREADS) to those"
        )
    if os.environ.get("MKL_DYNAMIC", "").lower() in ("false", "0"):
        raise RuntimeError("MKL_DYNAMIC=FALSE makes torch's batched LU on CPU silently wrong: unset it")


def refuse_wrong_means() -> None:
    """See that a mean of bfloat16 is written into the tensor that is given for it, as torch 2.5 does not.

    Raises:
        RuntimeError: it is not.
    """
    into = torch.full((1,), float("nan"), dtype=torch.bfloat16)
    torch.mean(torch.zeros(2, 1, dtype=torch.bfloat16), 0, out=into)
    if into.isnan():
        raise RuntimeError(f"torch {torch.__version__} makes means of bfloat16 on CPU silently wrong: use a newer one")

"""What a cell's configuration builds: data, model and step. The only place that instantiates."""

from __future__ import annotations

import difflib
import functools
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from stepscale.bench.cells.identity import installed
from stepscale.bench.cells.job import TF32, Job
from stepscale.bench.data.dataset import Dataset
from stepscale.bench.errors import TargetError, UsageError
from stepscale.bench.notes import one_line
from stepscale.bench.records.schema import Config
from stepscale.models import Batch, each, tokens_of_row
from stepscale.optimizers import Step

PARTS = ("direction", "update", "scheduler")  # of an optimizer's configuration, which are built by themselves
LIBRARIES = ("pytorch_optimizer", "schedulefree", "singd")  # which the extra `optimizers` installs
REFUSED = re.compile(r"unexpected keyword argument '(\w+)'")


def load_data(job: Job, rows: int | None) -> Dataset:
    """Load a cell's data, that many train rows, of the width that ``data.dim`` says."""
    load = _built(job.config["data"], "data")
    with _explained(job.config["data"], "data"):
        data: Dataset = load(rows=rows, seed=job.cell.seed)
    return data


def rows_of_batch(data: Batch, batch: int) -> int:
    """Return the rows of a cell's ``batch``, which counts tokens where each has a target of its own.

    Raises:
        UsageError: they are no whole rows.
    """
    tokens = tokens_of_row(data)
    if batch % tokens:
        near = max(1, round(batch / tokens)) * tokens
        raise UsageError(
            f"batch={batch} counts tokens, and the data's rows have {tokens}: set batch={near}, or data.dim"
        )
    return batch // tokens


def number_type(dtype: str) -> torch.dtype:
    """Return the torch type of a cell's ``dtype``, and set how products of this process round.

    ``tf32`` is float32 whose products round their factors to TF32.
    """
    torch.set_float32_matmul_precision("high" if dtype == TF32 else "highest")
    found: torch.dtype = torch.float32 if dtype == TF32 else getattr(torch, dtype)
    return found


def build(job: Job, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Step]:
    """Build a cell's model and step."""
    model = build_model(job, device, dtype)
    return model, build_step(job.config["optimizer"], model)


def build_model(job: Job, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build a cell's model, on its device from the start: a CPU takes minutes to initialise a wide one."""
    with device:
        model: nn.Module = _built(job.config["model"], "model")
    _refuse_complex(model)
    return model.to(device=device, dtype=dtype)


def _refuse_complex(model: nn.Module) -> None:
    """See that all tensors of a model can be brought to a real type, which would drop imaginary parts.

    Raises:
        UsageError: one is complex.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(
                f"{type(model).__name__}.{name} is {kind}, and cells are measured in real numbers: keep its real and "
                "imaginary parts as real tensors, and join them by torch.complex in the loss"
            )


def build_step(config: Config, model: nn.Module) -> Step:
    """Build the step of an optimizer's configuration.

    Raises:
        UsageError: a part of it would be built before the model is there.
    """
    parts = {"optimizer": config} | {f"optimizer.{name}": config.get(name) for name in PARTS}
    for name, part in parts.items():
        if isinstance(part, dict) and "_target_" in part and not part.get("_partial_"):
            raise UsageError(
                f"{name} lacks `_partial_: true`; in an optimizer's file _target_, direction, update and scheduler"
                " each want `_partial_: true`"
            )
    built = {name: _named(config[name], f"optimizer.{name}") for name in PARTS if isinstance(config.get(name), dict)}
    make = _built({key: value for key, value in config.items() if key not in built}, "optimizer")
    with _explained(config, "optimizer"):
        step: Step = make(model, **built)
    return step


def _named(part: Config, key: str) -> Callable[..., Any]:
    """Build a part of an optimizer, whose errors are to name its key."""
    make = _built(part, key)

    @functools.wraps(make)  # whose parameters tell what it is built of
    def made(*arguments: object) -> Any:
        with _explained(part, key):
            return make(*arguments)

    return made


def _built(part: Config, key: str) -> Any:
    """Build what a part of a configuration names; raise what that raises, with the key it is at.

    Raises:
        UsageError: there is nothing of that name, or it cannot be called with what the configuration gives.
    """
    with _explained(part, key):
        try:
            return instantiate(part, _convert_="all")
        except InstantiationException as error:
            for place, target in _targets(part, key):
                if lacking := missing(target):
                    raise UsageError(f"{place}._target_={target}: {lacking}") from error
            cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause


def _targets(part: object, key: str) -> Iterator[tuple[str, str]]:
    """Yield every ``_target_`` of a part of a configuration, with the key that it is at."""
    if isinstance(part, dict):
        if isinstance(target := part.get("_target_"), str):
            yield key, target
        for name, value in part.items():
            yield from _targets(value, f"{key}.{name}")


def missing(target: str) -> str | None:
    """Say what of a dotted name is not there, and what may have been meant; None where all of it is."""
    names, found = target.split("."), None
    for count in range(1, len(names) + 1):
        try:
            found = pkgutil.resolve_name(".".join(names[:count]))
        except ModuleNotFoundError as error:
            if error.name not in (None, ".".join(names[:count])):
                return None  # it is there, and what it imports is not
        except AttributeError:
            pass
        else:
            continue
        if found is None:
            remedy = "your own must be importable from the folder you work in"
            if names[0] in LIBRARIES:
                remedy = "pip install 'stepscale[optimizers]' installs it"
            return f"there is no module {names[0]}; {remedy}"
        near = difflib.get_close_matches(names[count - 1], dir(found), n=1)
        version = f" (torch {torch.__version__})" if names[0] == "torch" else ""
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"there is no {names[count - 1]} in {'.'.join(names[: count - 1])}{version}{meant}"
    return None


@contextmanager
def _explained(part: Config, key: str) -> Iterator[None]:
    """Have an error of the block name the key of the part that it is of, what is called there, and with what.

    Raises:
        UsageError: the error is none of the user's own code, and so is one of the configuration.
        TargetError: it is; its traceback says more.
    """
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError, ImportError, AttributeError, FileNotFoundError, InstantiationException) as error:
        told, raised_in = f"{key}._target_={part.get('_target_')}: {one_line(error)}", _raised_in(error)
        if raised_in.startswith("stepscale.") and raised_in != __name__:  # whose words name what is wrong
            raise UsageError(told) from error
        given = ", ".join(f"{name}={value!r}" for name, value in part.items() if not _is_inner(name, value))
        told += f"; it was given {given}" * bool(given)
        told += _remedy(part, key, one_line(error))
        raise (UsageError if raised_in else TargetError)(told) from error


def _remedy(part: Config, key: str, said: str) -> str:
    """Say how a part of a configuration may be mended by what its call said, where that is known."""
    if (refused := REFUSED.search(said)) and refused[1] in part:
        return f"; drop what it does not know by ~{key}.{refused[1]}"
    if "only supports 2D" in said:
        return "; stepscale.optimizers.split gives it the matrices alone, as in optimizer=library/muon"
    return ""


def _raised_in(error: BaseException) -> str:
    """Return the module that raised an error; nothing where that is the user's own."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return ""
    name, path = str(last.tb_frame.f_globals.get("__name__")), Path(last.tb_frame.f_code.co_filename)
    return name if name.startswith("stepscale.") or installed(path.resolve()) else ""


def _is_inner(name: str, value: object) -> bool:
    """Whether an entry of a configuration is Hydra's, or a part that is built by itself."""
    return name in ("_target_", "_partial_", "_convert_", "_recursive_") or isinstance(value, dict)


def moved(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Bring a batch to a device, and its numbers, but no labels, to a type.

    Raises:
        ValueError: a number is not finite in that type.
    """
    found = each(batch, lambda part: part.to(device=device, dtype=dtype if part.is_floating_point() else None))
    rows = found if isinstance(found, torch.Tensor) else found[0]
    bad = ~torch.isfinite(rows).flatten(1).all(dim=1)
    if bad.any():
        raise ValueError(f"row {int(bad.int().argmax())} of a split of the data is not finite as {dtype}; remove it")
    return found

"""What a cell's configuration builds: data, model and step. The only place that instantiates."""

from __future__ import annotations

from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from stepscale.bench.cells.job import TF32, Job
from stepscale.bench.data.dataset import Dataset
from stepscale.bench.errors import UsageError
from stepscale.bench.records.schema import Config
from stepscale.models import Batch, each
from stepscale.optimizers import Step


def load_data(job: Job, rows: int | None) -> Dataset:
    """Load a cell's data, that many train rows."""
    data: Dataset = _built(job.config["data"])(dim=job.cell.dim, rows=rows, seed=job.cell.seed)
    return data


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
        model: nn.Module = _built(job.config["model"])
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
    parts = {"optimizer": config} | {f"optimizer.{name}": config.get(name) for name in ("direction", "update")}
    for name, part in parts.items():
        if isinstance(part, dict) and "_target_" in part and not part.get("_partial_"):
            raise UsageError(
                f"{name} lacks `_partial_: true`; in an optimizer's file _target_, direction and update each want"
                " `_partial_: true`"
            )
    step: Step = _built(config)(model)
    return step


def _built(part: Config) -> Any:
    """Build what a part of a configuration names; raise what that raises, of which Hydra names the target alone."""
    try:
        return instantiate(part, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    raise cause


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

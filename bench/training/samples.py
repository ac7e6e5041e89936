"""What a trained model looks like: samples, filters, a density in two dimensions. Arrays only; drawn by the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepscale.bench.atomic import atomic_write
from stepscale.bench.data.dataset import Dataset
from stepscale.bench.notes import Notes
from stepscale.models import HasLogProb, InThePlane, Samples, objective_of, offers

POINTS, GRID, REACH = 2_000, 128, 1.3  # in two dimensions: dots, cells a side, how far beyond the data
Arrays = dict[str, np.ndarray]


@torch.no_grad()
def look(model: nn.Module, data: Dataset, count: int, notes: Notes) -> Arrays:
    """Return what can be shown of a model; nothing where rows are neither images nor points of the plane.

    ``data``, ``samples`` and ``filters`` are ``[count, height, width]``, or points ``[n, 2]``; ``log_density`` is
    ``[GRID, GRID]``, its first axis y, over ``extent`` (left, right, bottom, top). ``contour`` is a Gaussian's mean and
    covariance, ``[3, 2]``, beside draws ``data`` of what it approximates.
    """
    held_out = data.held_out if isinstance(data.held_out, Tensor) else data.held_out[0]
    if data.shape is not None and count:
        rows = {"data": held_out[:count], **_samples(model, count, notes), **filters(model, count)}
        return _images(rows, data.shape, notes)
    if offers(model, InThePlane) and count:
        with notes.optional("posterior"):
            draws, mean, covariance = model.plane(data.train, POINTS)
            return {"data": _numpy(draws), "contour": _numpy(torch.cat([mean.unsqueeze(0), covariance]))}
    if held_out.shape[1] == 2:
        points = {"data": held_out[:POINTS], **_samples(model, POINTS, notes)}
        shown = {name: _numpy(value) for name, value in points.items()}
        with notes.optional("density"):
            shown |= _density(model, held_out)
        return shown
    return {}


def _images(rows: dict[str, Tensor], shape: tuple[int, int], notes: Notes) -> Arrays:
    """Return rows as images, those that are some: a user's first layer may have other rows than the data."""
    images = {}
    for name, value in rows.items():
        with notes.optional(name):
            images[name] = _numpy(value).reshape(-1, *shape)
    return images


def filters(model: nn.Module, count: int) -> dict[str, Tensor]:
    """Return the rows of the first affine layer's weight that are largest, ``[count, dim]``; nothing without one."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    if not layers:
        return {}
    weight = layers[0].weight
    return {"filters": weight[weight.norm(dim=1).argsort(descending=True)[:count]]}


def save(arrays: Arrays, path: Path) -> None:
    """Write arrays, whole or not at all, at half precision."""
    widest = np.finfo(np.float16).max  # of a model gone astray there may be more
    halves: Any = {name: value.clip(-widest, widest).astype(np.float16) for name, value in arrays.items()}
    with atomic_write(path) as file:
        np.savez_compressed(file, **halves)


def _samples(model: nn.Module, count: int, notes: Notes) -> dict[str, Tensor]:
    """Draw from the model where it can be drawn from: it may be of the user's making, or nearly singular."""
    if not offers(model, Samples):
        return {}
    with notes.optional("samples"):
        drawn = model.sample(count)
        return {"samples": drawn[torch.isfinite(drawn).all(dim=1)]}
    return {}


def _density(model: nn.Module, rows: Tensor) -> Arrays:
    if objective_of(model).of_targets or not offers(model, HasLogProb):
        return {}
    reach = REACH * float(rows.abs().max())
    axis = torch.linspace(-reach, reach, GRID, device=rows.device, dtype=rows.dtype)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    density = model.log_prob(torch.stack([x.flatten(), y.flatten()], dim=1)).reshape(GRID, GRID)
    return {"log_density": _numpy(density), "extent": np.array([-reach, reach, -reach, reach])}


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy()

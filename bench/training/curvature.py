"""The spectrum of a trained model's Hessian, and how its largest eigenvalue depends on the batch.

Granziol, Zohren & Roberts 2020, arXiv 2006.09092: a batch's Hessian is that of all rows and noise, so that
λ₁(B) = λ₁ + c / B.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.bench.records.schema import LEAST_SIZES, Curvature, Spectrum
from stepscale.models import Batch, each, rows_of
from stepscale.optimizers.hessian.lanczos import hessian_products, lanczos, spectral_density

SMALLEST, LARGEST = 10, 3_200  # rows; twice as many from one size to the next
STEPS, PROBES = 30, 4  # of Lanczos; vectors of a density


def look(model: nn.Module, rows: Batch, draws: int) -> Curvature:
    """Measure the largest eigenvalue of so many random batches of each size, and the density of one at both ends.

    O(``draws`` · STEPS) products with the Hessian a size. Rows are drawn without replacement, by the generator of their
    device.
    """
    sizes, most = list[int](), min(LARGEST, rows_of(rows))
    while (size := SMALLEST * 2 ** len(sizes)) <= most:
        sizes.append(size)
    if len(sizes) < LEAST_SIZES:
        raise ValueError(f"there are {rows_of(rows)} rows, and a line through three sizes needs {SMALLEST * 4}")
    largest = [[_largest(model, drawn(rows, size)) for _ in range(draws)] for size in sizes]
    spectra = [_spectrum(model, drawn(rows, size), size) for size in (sizes[0], sizes[-1])]
    return Curvature(batch=sizes, largest=largest, spectra=spectra)


def drawn(rows: Batch, size: int) -> Batch:
    """Return so many of the rows, at random."""
    one = rows if isinstance(rows, Tensor) else rows[0]
    places = torch.randperm(rows_of(rows), device=one.device)[:size]
    return each(rows, lambda part: part[places])


def _largest(model: nn.Module, batch: Batch) -> float:
    gradient, times = hessian_products(model, batch)
    return lanczos(times, torch.randn_like(gradient), STEPS).values[-1].item()


def _spectrum(model: nn.Module, batch: Batch, size: int) -> Spectrum:
    gradient, times = hessian_products(model, batch)
    found = spectral_density(times, gradient, steps=STEPS, probes=PROBES)
    return Spectrum(batch=size, values=found.values.tolist(), weights=found.weights.tolist())

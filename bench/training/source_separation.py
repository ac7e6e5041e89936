"""How well mixed sources were told apart, where the mixing is known: the one ground truth that training has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stepscale.bench.data.dataset import Dataset

LINEAR = 0.02  # how far from it rounding may be, of bfloat16 too


def amari_distance(P: np.ndarray) -> float:
    """O(d²): 0 where P = (unmixing)(mixing), ``[dim, dim]``, is a permutation with scales, 1 where it is constant.

    Amari, Cichocki, Yang 1996, "A new learning algorithm for blind signal separation", eq. 5.1, over its maximum
    2 d (d − 1).
    """
    size, dim = np.abs(P), len(P)
    rows = (size / size.max(axis=1, keepdims=True)).sum() - dim
    columns = (size / size.max(axis=0, keepdims=True)).sum() - dim
    return float(rows + columns) / (2 * dim * max(1, dim - 1))


def distances(model: nn.Module, data: Dataset) -> tuple[float, float]:
    """Return the Amari distance of a model of depth 1, and FastICA's on the same train rows."""
    mixing = np.asarray(data.mixing)
    return amari_distance(unmixing(model) @ mixing), amari_distance(fast_ica(_rows(data)) @ mixing)


def _rows(data: Dataset) -> Tensor:
    assert isinstance(data.train, Tensor)  # mixtures have no targets
    return data.train


@torch.no_grad()
def unmixing(model: nn.Module) -> np.ndarray:
    """Return W of a model that maps x to x Wᵀ + b, a flow of depth 1; ``[dim, dim]``.

    Raises:
        ValueError: it maps twice x to something else than twice as far.
    """
    parameter = next(model.parameters())
    eye = torch.eye(parameter.shape[1], device=parameter.device, dtype=parameter.dtype)
    start: Tensor = model(torch.zeros_like(eye))
    found, twice = model(eye) - start, model(2 * eye) - start
    if not torch.allclose(twice, 2 * found, rtol=LINEAR, atol=LINEAR * float(found.abs().max())):
        raise ValueError(f"{type(model).__name__} is no linear map, so that it has no unmixing")
    return found.T.double().cpu().numpy()


def fast_ica(rows: Tensor) -> np.ndarray:
    """Return the unmixing that scikit-learn's FastICA finds on ``[n, dim]``, to compare with; ``[dim, dim]``."""
    from sklearn.decomposition import FastICA

    ica = FastICA(whiten="unit-variance", max_iter=2_000, tol=1e-7, random_state=0)
    return np.asarray(ica.fit(rows.double().cpu().numpy()).components_)

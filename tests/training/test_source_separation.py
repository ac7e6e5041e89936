"""Sources told apart, against FastICA and Picard; what the relative gradient's equivariance means for that."""

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from picard import picard
from picard.densities import Tanh

from stepscale.bench.data import synthetic
from stepscale.bench.training import source_separation
from stepscale.models import MAF, Flow
from stepscale.optimizers import RelativeSGD
from tests.conftest import well_conditioned
from tests.support.training import ADAM

pytestmark = pytest.mark.numerical


def test_amari_distance() -> None:
    rng = np.random.default_rng(0)
    permuted = np.eye(5)[rng.permutation(5)] * rng.normal(size=5)
    assert source_separation.amari_distance(permuted) == pytest.approx(0)
    assert source_separation.amari_distance(np.ones((5, 5))) == pytest.approx(1)
    P = np.array([[1, 0.5], [0, 2]])  # rows: .5 + 0, columns: 0 + .25
    assert source_separation.amari_distance(P) == pytest.approx(0.75 / 4)


def test_unmixing_is_the_weight() -> None:
    model = Flow(4, depth=1)
    torch.nn.init.normal_(model.layers[0].bias)
    np.testing.assert_allclose(source_separation.unmixing(model), model.layers[0].weight.detach().numpy(), atol=1e-6)


def test_what_is_no_linear_map_has_no_unmixing() -> None:
    model = MAF(4, 1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # at its start it maps x to itself
    with pytest.raises(ValueError, match="MAF is no linear map"):
        source_separation.unmixing(model)


@pytest.mark.parametrize("mixings", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_sources_are_told_apart_as_well_as_by_fast_ica(mixings: int) -> None:
    """16 Laplace sources, several mixings: a flow of depth 1 with logistic noise, whole-sample relative steps.

    Picard maximises the very same likelihood, by another method, so it must find the same.
    """
    ours, theirs, same = [], [], []
    for seed in range(mixings):
        mixed = synthetic.mixture(16, 5_000, seed=seed)
        torch.manual_seed(seed)
        model = Flow(16, depth=1, base="logistic")
        step = RelativeSGD(model, lr=0.25, bound=1)
        for _ in range(300):
            step(mixed.train)
        found = source_separation.distances(model, mixed)
        ours.append(found[0])
        theirs.append(found[1])
        rows = mixed.train.double().numpy().T
        logistic = Tanh(params={"alpha": 0.5})
        whitening, rotation, _ = picard(
            rows, fun=logistic, ortho=False, extended=False, tol=1e-8, max_iter=500, random_state=0
        )
        same.append(source_separation.amari_distance(rotation @ whitening @ np.asarray(mixed.mixing)))
    assert np.median(ours) <= 1.05 * np.median(theirs), (np.median(ours), np.median(theirs))
    np.testing.assert_allclose(ours, same, rtol=0.02)


@pytest.mark.parametrize(("make", "same"), [(partial(RelativeSGD, lr=0.02, bound=1), True), (ADAM, False)])
def test_relative_descent_is_equivariant_and_euclidean_is_not(make: Any, same: bool) -> None:
    """On x and on M x, from W and from W M⁻¹, the likelihoods differ by log|det M| throughout."""
    rows, M = torch.randn(400, 4, dtype=torch.float64) ** 3, well_conditioned(4)
    one = Flow(4).double()
    other = deepcopy(one)
    with torch.no_grad():
        other.layers[0].weight.copy_(one.layers[0].weight @ torch.linalg.inv(M))
    steps, differences = (make(one), make(other)), []
    log_det = torch.linalg.slogdet(M).logabsdet.item()
    for _ in range(50):
        for step, x in zip(steps, (rows, rows @ M.T), strict=True):
            step(x)
        differences.append(abs(other.loss(rows @ M.T).item() - one.loss(rows).item() - log_det))
    assert (max(differences) < 1e-9) is same, max(differences)

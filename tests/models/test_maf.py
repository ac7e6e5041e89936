"""The masked autoregressive flow against automatic differentiation in float64."""

import math

import pytest
import torch
from torch.func import jacrev, vmap

from stepscale.models import MAF

pytestmark = pytest.mark.numerical


def random_maf(dim: int, depth: int = 3, hidden: int | None = None) -> MAF:
    torch.manual_seed(1)
    model = MAF(dim, depth, hidden=hidden).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("dim", "hidden"), [(1, None), (2, 3), (7, None), (6, 20), (9, 4)])
def test_density_is_that_of_its_jacobian(dim: int, hidden: int | None) -> None:
    model, x = random_maf(dim, hidden=hidden), torch.randn(5, dim, dtype=torch.float64)
    log_det = torch.linalg.slogdet(vmap(jacrev(model))(x)).logabsdet
    z = model(x)
    expected = -0.5 * z.square().sum(1) - 0.5 * dim * math.log(2 * math.pi) + log_det
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.loss(x), -expected.mean(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.inverse(z), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dim", "hidden", "lost"), [(7, 7, 0), (7, 6, 0), (6, 20, 0), (9, 4, 4), (6, 3, 2), (8, 3, 5)])
def test_each_autoregression_is_triangular(dim: int, hidden: int, lost: int) -> None:
    """μ_i and α_i see every earlier dimension and no other, but some next to it where there are few hidden units."""
    part, x = random_maf(dim, 1, hidden).parts[0], torch.rand(200, dim, dtype=torch.float64)
    with torch.no_grad():
        for parameter in part.hidden.parameters():
            parameter.abs_()  # no unit is off for all rows
    jacobian = vmap(jacrev(lambda row: part(row)[0]))(x)
    assert (jacobian.triu(1) == 0).all() and (jacobian.diagonal(dim1=1, dim2=2) > 0).all()
    unseen = torch.ones(dim, dim).tril(-1) * (jacobian == 0).all(0)
    assert unseen.sum() == lost and unseen.sum(1).max() <= math.ceil((dim - 1) / hidden) - 1
    assert all(row[:i].diff().min() >= 0 for i, row in enumerate(unseen) if i > 1), "those next to it"


def test_it_starts_as_a_standard_normal_and_samples_from_what_it_became() -> None:
    x = torch.randn(4, 6)
    assert torch.equal(MAF(6, 2)(x), x)
    model = random_maf(2, 2)
    torch.manual_seed(0)
    drawn = model.sample(20_000)
    weight = torch.exp(-0.5 * (drawn - 1).square().sum(1) - math.log(2 * math.pi) - model.log_prob(drawn))
    assert weight.mean().item() == pytest.approx(1, abs=5 * weight.std().item() / math.sqrt(len(weight)))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="hidden must be at least 1, got dim=4, depth=2, hidden=0"):
        MAF(4, 2, hidden=0)

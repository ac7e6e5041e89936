import numpy as np
import pytest
import torch

from stepscale.bench.data import bezier_curves, scikit_tables

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("dim", [16, 64, 144, 13])
def test_digits_are_images_of_the_dim_in_the_unit_interval(dim: int) -> None:
    found = scikit_tables.digits(dim, None, seed=0)
    assert isinstance(found.train, torch.Tensor)
    assert found.train.shape == (1123, dim)
    assert found.train.min() >= 0 and found.train.max() <= 1 and found.train.std() > 0.1
    assert found.shape == (None if dim == 13 else {16: (4, 4), 64: (8, 8), 144: (12, 12)}[dim])


def test_digits_at_their_own_resolution_are_scikit_learns_split_in_three() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    found = scikit_tables.digits(64, None, seed=3, labels=True)
    together = torch.cat([split[0] for split in (found.train, found.validation, found.held_out)])
    labels = torch.cat([split[1] for split in (found.train, found.validation, found.held_out)])
    originals = {tuple(row) for row in bunch.data}
    assert {tuple((16 * row).tolist()) for row in together} == originals and len(together) == len(bunch.data)
    known = {tuple(row): target for row, target in zip(bunch.data, bunch.target, strict=True)}
    assert all(known[tuple((16 * row).tolist())] == label for row, label in zip(together, labels, strict=True))
    assert labels.dtype == torch.int64


def test_digits_repeat_where_more_are_asked_for() -> None:
    found = scikit_tables.digits(16, 2000, seed=0)
    assert isinstance(found.train, torch.Tensor)
    assert len(found.train) == 2000 and torch.equal(found.train[:877], found.train[1123:])


def test_curves_have_six_degrees_of_freedom_and_soft_edges() -> None:
    found, again, other = (bezier_curves.curves(100, 40, seed=seed) for seed in (0, 0, 1))
    assert isinstance(found.train, torch.Tensor) and isinstance(again.train, torch.Tensor)
    assert found.train.shape == (40, 100) and found.shape == (10, 10)
    assert torch.equal(found.train, again.train) and not torch.equal(found.train, other.train)
    assert found.train.min() == 0 and 0.5 < found.train.max() <= 1
    inked = (found.train > 0).float().mean(1)
    assert ((inked > 0) & (inked < 0.5)).all()


def test_each_pixel_is_its_distance_from_the_curve_of_its_row() -> None:
    """Points by de Casteljau's construction, one pixel of one row at a time; rows are drawn 64 at once."""
    count, side = bezier_curves.TOGETHER + 2, 5
    train = bezier_curves.curves(side**2, count, seed=4).train
    assert isinstance(train, torch.Tensor)
    rng = np.random.default_rng(4)
    corners = [rng.uniform(0.1, 0.9, (3, 2)) for _ in range(count)]
    times = np.linspace(0, 1, bezier_curves.CURVE_POINTS)
    for row in (0, 1, bezier_curves.TOGETHER - 1, bezier_curves.TOGETHER, count - 1):
        a, b, c = corners[row]
        curve = [(1 - t) * ((1 - t) * a + t * b) + t * ((1 - t) * b + t * c) for t in times]
        for place in range(side**2):
            pixel = np.array([(place % side + 0.5) / side, (place // side + 0.5) / side])
            distance = min(np.linalg.norm(point - pixel) for point in curve) / bezier_curves.WIDTH
            assert train[row, place].item() == pytest.approx(max(0, 1 - distance**2), abs=1e-5)

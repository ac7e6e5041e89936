from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from stepscale.bench.data import dataset, photographs, synthetic

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("dim", [1, 7, 16, 60, 64, 96, 127, 768, 1022, 4096])
def test_photos_have_the_dim_asked_for(dim: int) -> None:
    found = photographs.photos(dim=dim, rows=30, seed=0)
    for part in found.splits:
        assert part.shape == (30, dim)
        assert part.dtype == torch.float32
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("loader", [photographs.photos, synthetic.mixture, synthetic.toy])
def test_evaluation_rows_are_as_many_as_train_rows_up_to_a_limit(loader: Any) -> None:
    assert [len(part) for part in loader(dim=2, rows=2_500, seed=0).splits] == [2_500, 2_000, 2_000]
    assert [len(part) for part in loader(dim=2, rows=7, seed=0).splits] == [7, 7, 7]


@pytest.mark.parametrize(("dim", "rows"), [(2, 50_000), (671, 50_000), (672, 49_932), (2**25, 1), (2**26, 1)])
def test_the_loader_chooses_the_rows_where_none_are_asked_for(dim: int, rows: int) -> None:
    assert dataset._counts(None, dim) == (rows, min(rows, 2_000), min(rows, 2_000))


def test_no_photograph_patch_is_wider_than_the_narrowest_strip() -> None:
    dim = max(range(1, photographs.PHOTO_LIMIT + 1), key=lambda dim: dataset.patch_shape(dim)[1])
    shape = dataset.patch_shape(dim)
    assert shape[1] > 100
    assert photographs.photos(dim=dim, rows=2, seed=0).shape == shape


@pytest.mark.parametrize(("dim", "shape"), [(96, (8, 12)), (127, None), (4097, None)])
def test_a_photographs_shape_is_known_where_it_is_not_cropped(dim: int, shape: tuple[int, int] | None) -> None:
    assert photographs.photos(dim=dim, rows=2, seed=0).shape == shape


def test_photos_are_centred_and_scaled_by_the_train_rows() -> None:
    train = photographs.photos(dim=64, rows=2000, seed=0).train.double()
    assert train.mean(0).abs().max() < 1e-6
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_photos_are_photographs_not_noise() -> None:
    patches = photographs.photos(dim=64, rows=2000, seed=0).train.reshape(-1, 8, 8)
    neighbours = (patches[:, :, 1:] * patches[:, :, :-1]).mean()
    assert neighbours > 0.8


@pytest.mark.parametrize("name", photographs.PHOTOS)
def test_the_photographs_are_those_that_scikit_learn_loads(name: str) -> None:
    colours = load_sample_image(name).astype(float)
    assert np.array_equal(photographs._grey(name), (colours @ [0.299, 0.587, 0.114]).round())


def test_no_pixel_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.tile(np.arange(640.0), (427, 1))  # a photograph whose pixels say where they lie
    monkeypatch.setattr(photographs, "_grey", lambda name: columns)
    monkeypatch.setattr(photographs, "standardised", lambda parts, *others: dataset.Dataset(*parts, note=""))
    found = photographs.photos(dim=64, rows=6_000, seed=0)
    seen = [np.unique(np.floor(256 * np.asarray(part))) for part in found.splits]
    assert [(part[0], part[-1]) for part in seen] == [(0, 383), (384, 511), (512, 639)]


@pytest.mark.parametrize("loader", [photographs.photos, synthetic.mixture, synthetic.toy])
def test_the_mean_can_be_left_in(loader: Any) -> None:
    centred, whole = (loader(dim=2, rows=500, seed=0, centre=centre) for centre in (True, False))
    mean = whole.train.double().mean(dim=0)
    for one, other in zip(centred.splits, whole.splits, strict=True):
        torch.testing.assert_close(one.double(), other.double() - mean, atol=1e-5, rtol=0)
    if loader is photographs.photos:
        assert mean.min() > 1  # photographs have no black mean


def test_photos_do_not_depend_on_anything_but_the_seed() -> None:
    one, same, other = (photographs.photos(dim=16, rows=10, seed=seed).train for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_above_its_limit_photos_says_that_it_is_noise() -> None:
    assert "Laplace noise" in photographs.photos(dim=4097, rows=4, seed=0).note


@pytest.mark.parametrize(
    ("dim", "shape"),
    [(64, (8, 8)), (96, (8, 12)), (768, (24, 32)), (127, (12, 12)), (1, (1, 1)), (2, (1, 2)), (22, (5, 5))],
)
def test_patches_are_the_squarest(dim: int, shape: tuple[int, int]) -> None:
    assert dataset.patch_shape(dim) == shape
    assert shape[0] * shape[1] >= dim


def test_unmixed_sources_are_laplace_and_mixed_ones_are_not_independent() -> None:
    noise = synthetic.mixture(dim=8, rows=20_000, seed=0, depth=0).train.double()
    kurtosis = (noise**4).mean() / (noise**2).mean() ** 2
    assert kurtosis.item() == pytest.approx(6, abs=0.4)
    assert (torch.corrcoef(noise.T) - torch.eye(8)).abs().max() < 0.05
    mixed = synthetic.mixture(dim=8, rows=20_000, seed=0, depth=2).train.double()
    assert (torch.corrcoef(mixed.T) - torch.eye(8)).abs().max() > 0.2


@pytest.mark.parametrize(("depth", "rows"), [(0, 20_000), (1, 20_000)])
def test_the_mixing_undone_gives_independent_laplace_sources(depth: int, rows: int) -> None:
    found = synthetic.mixture(dim=6, rows=rows, seed=0, depth=depth, centre=False)
    assert found.mixing is not None and found.mixing.dtype == torch.float64
    for part in found.splits:
        sources = torch.linalg.solve(found.mixing, part.double().T)
        assert (torch.corrcoef(sources) - torch.eye(6)).abs().max() < 0.1
        moments = [(sources**k).mean().item() for k in (2, 4)]  # of Laplace's density of scale 1: 2 and 24
        assert moments == pytest.approx([2, 24], rel=0.1)
    assert (depth == 0) == bool((found.mixing == found.mixing.diag().diag()).all())


def test_different_mixings_leave_the_same_entropy() -> None:
    one, other = (synthetic.mixture(dim=16, rows=20_000, seed=seed) for seed in (0, 1))
    assert one.mixing is not None and other.mixing is not None
    assert (one.mixing - other.mixing).abs().max() > 0.1
    log_dets = [torch.linalg.slogdet(found.mixing).logabsdet.item() for found in (one, other)]
    assert log_dets[0] == pytest.approx(log_dets[1], abs=0.1)  # but for the scale of a finite sample


def test_no_matrix_is_the_mixing_of_a_deeper_mixture() -> None:
    assert synthetic.mixture(dim=3, rows=10, seed=0, depth=2).mixing is None


@pytest.mark.parametrize("name", ["moons", "circles", "pinwheel", "eight_gaussians"])
def test_toy_densities_are_in_the_plane_and_drawn_by_the_seed(name: str) -> None:
    found, same, other = (synthetic.toy(dim=2, rows=300, seed=seed, name=name) for seed in (0, 0, 1))
    assert torch.equal(found.train, same.train) and not torch.equal(found.train, other.train)
    assert len(torch.cat(found.splits).unique(dim=0)) == 900
    assert found.train.double().std(correction=0).item() == pytest.approx(1)
    assert name in found.note


def test_circles_are_two_circles() -> None:
    radius = synthetic.toy(dim=2, rows=2_000, seed=0, name="circles").train.norm(dim=1)
    outer = radius > radius.mean()
    assert outer.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (radius[outer].mean() / radius[~outer].mean()).item() == pytest.approx(2, abs=0.05)


def test_eight_gaussians_are_evenly_filled_and_their_width_is_an_eighth_of_their_radius() -> None:
    x = synthetic._eight_gaussians(8_000, np.random.default_rng(0))
    angle = np.arange(8) * np.pi / 4
    offsets = x[:, None] - 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    nearest = (offsets**2).sum(axis=2).argmin(axis=1)
    assert np.bincount(nearest) == pytest.approx(np.full(8, 1_000), rel=0.1)
    assert offsets[np.arange(8_000), nearest].std() == pytest.approx(0.5, rel=0.03)


def test_a_pinwheel_unwound_has_five_straight_arms() -> None:
    x = synthetic._pinwheel(8_000, np.random.default_rng(0))
    radius, angle = np.hypot(*x.T), np.arctan2(x[:, 1], x[:, 0])
    straight = (angle - np.exp(radius) / 4) * 5 / (2 * np.pi)  # a whole number at the middle of every arm
    arm = straight.round()
    assert np.bincount((arm % 5).astype(int)) == pytest.approx(np.full(5, 1_600), rel=0.1)
    assert radius.mean() == pytest.approx(1, abs=0.02)
    inner = abs(radius - 1) < 0.1
    assert (straight - arm)[inner].std() * 2 * np.pi / 5 == pytest.approx(0.1, rel=0.2)


def test_toy_data_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="toy data have dim 2, got dim=256; set dim=2"):
        synthetic.toy(dim=256, rows=3, seed=0)
    with pytest.raises(ValueError, match="named spiral; choose moons, circles, pinwheel or eight_gaussians"):
        synthetic.toy(dim=2, rows=3, seed=0, name="spiral")

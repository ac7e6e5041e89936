"""The look at a trained model's Hessian: against dense matrices, and the law of the batch found again."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from msgspec.structs import replace

from stepscale.bench.analysis.training import curvature as analysis
from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.records import store
from stepscale.bench.records.schema import Curvature, Spectrum, Status
from stepscale.bench.report import write
from stepscale.bench.training import curvature
from stepscale.models import Quadratic
from tests.support.training import job


def test_of_a_quadratic_every_batch_has_the_same_eigenvalues() -> None:
    """H is no matter of the rows: λ₁ = 1 at all sizes, and the density's mean is the trace / n."""
    torch.manual_seed(0)
    model = Quadratic(12, 50.0, noise=0.5).double()
    found = curvature.look(model, torch.randn(500, 12, dtype=torch.float64), 2)
    assert found.batch == [10, 20, 40, 80, 160, 320]
    assert np.array(found.largest) == pytest.approx(np.ones((6, 2)), rel=1e-5)
    mean = sum(w * v for w, v in zip(found.spectra[0].weights, found.spectra[0].values, strict=True))
    assert [one.batch for one in found.spectra] == [10, 320]
    # four probes of random signs: the standard deviation of the mean is (2 Σ_{i≠j} H_ij² / 4)^½ / n
    H = model.hessian
    spread = (2 * (H.square().sum() - H.diagonal().square().sum()) / 4).sqrt().item() / 12
    assert mean == pytest.approx(H.trace().item() / 12, abs=4 * spread)


def test_batches_are_drawn_without_replacement_and_keep_their_targets() -> None:
    x, t = torch.arange(100.0).view(100, 1), torch.arange(100)
    rows, targets = curvature.drawn((x, t), 60)
    assert len(set(targets.tolist())) == 60 and torch.equal(rows.flatten().long(), targets)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 30 rows, and a line through three sizes needs 40"):
        curvature.look(Quadratic(3), torch.zeros(30, 3), 1)


def test_the_batch_law_is_found_again() -> None:
    sizes = np.repeat([25, 100, 400, 1600], 2)
    noise = np.tile([0.1, -0.1], 4)
    fit = analysis.batch_law(pd.DataFrame({"rows": sizes, "lambda_1": 3 + 50 / sizes + noise}))
    assert tuple(fit) == pytest.approx((3, 50, 1)) and fit.least_batch == pytest.approx(50 / 3)
    bent = pd.DataFrame({"rows": [25, 100, 400, 1600], "lambda_1": [3.0, 4, 3, 4]})
    assert analysis.batch_law(bent).r_squared < 0.5
    spectra = [Spectrum(10, [1.0], [1.0])]
    for sizes_, largest in (([10, 20], [[1.0], [2.0]]), ([10, 20, 40], [[1.0], [2.0], []])):
        with pytest.raises(ValueError, match="needs eigenvalues of at least 3 sizes of batches"):
            Curvature(sizes_, largest, spectra)
    with pytest.raises(ValueError, match="a spectrum needs eigenvalues"):
        Spectrum(10, [], [])


def test_a_run_leaves_it_in_its_record_and_the_page_draws_it(tmp_path: Path) -> None:
    of = job(tmp_path, "model=classifier", "training.curvature=2", optimizer="adam", dim=64)
    record = measure_cell(of)
    assert record.status is Status.OK and record.training and record.training.curvature
    assert all(len(values) == 2 for values in record.training.curvature.largest)
    store.save(record, tmp_path)
    said = write.write(tmp_path)
    # the cell is called a flow, whatever it is made of
    assert re.search(r"flow, photos, dim 64, `adam`, batch \d+, seed 0: R² \S+ over batches of 10 to 640 rows", said)
    assert "lambda_1" in (tmp_path / "curvature.csv").read_text() and list(tmp_path.glob("curvature*.png"))


def test_runs_that_differ_in_any_axis_are_told_apart(tmp_path: Path) -> None:
    """In the names of their figures, and in what is said of them."""
    record = measure_cell(job(tmp_path, "model=classifier", "training.curvature=2", optimizer="adam", dim=64))
    for depth, batch in ((2, 5), (3, 5), (2, 9)):
        made = replace(record, cell=replace(record.cell, depth=depth, batch=batch), identity=f"{depth}-{batch}")
        store.save(made, tmp_path)
    said = write.write(tmp_path)
    for place in ("batch 5, seed 0, depth 2:", "batch 5, seed 0, depth 3:", "batch 9, seed 0, depth 2:"):
        assert f"`adam`, {place}" in said
    assert len(list(tmp_path.glob("curvature-*.png"))) == 3

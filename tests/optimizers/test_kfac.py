"""K-FAC against dense Kronecker solves and closed forms, in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from stepscale.models import Flow, LayerIO
from stepscale.optimizers import KFAC, Layerwise, Schedule
from stepscale.optimizers.core.solve import cholesky_inverse
from stepscale.optimizers.kronecker.kfac import factored_damping
from tests.conftest import batch_of, generic_flow, gradients, well_conditioned
from tests.support.dense import homogeneous

pytestmark = pytest.mark.numerical


def dense_direction(io: LayerIO, source: LayerIO, relative: bool, damping: float) -> tuple[Tensor, Tensor]:
    """(dW, db) from the Kronecker product itself: kron(G, A) vec = vec(G · A) for row-major vec."""
    W, b, B = io.layer.weight.detach(), io.layer.bias.detach(), len(io.y)
    d = len(W)
    N = torch.eye(d, dtype=W.dtype) if relative else torch.linalg.inv(W).T
    x, x_source = (io.y, source.y) if relative else (io.a, source.a)
    gradient = io.delta.T @ homogeneous(x) / B
    gradient[:, :d] -= N
    A = homogeneous(x_source).T @ homogeneous(x_source) / B
    G = source.delta.T @ source.delta / B
    pi = math.sqrt((A.trace() / (d + 1)) / (G.trace() / d))
    A_damped = A + pi * math.sqrt(damping) * torch.eye(d + 1, dtype=W.dtype)
    G_damped = G + math.sqrt(damping) / pi * torch.eye(d, dtype=W.dtype)
    D = torch.linalg.solve(torch.kron(G_damped, A_damped), gradient.reshape(-1)).reshape(d, d + 1)
    if relative:
        return D[:, :d] @ W, D[:, :d] @ b + D[:, d]
    return D[:, :d], D[:, d]


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
@pytest.mark.parametrize("statistics", ["model", "data"])
@pytest.mark.parametrize("log_det", ["exact", "stale"])  # equal on the step of the inversion
def test_direction_equals_the_dense_kronecker_solve(frame: str, statistics: str, log_det: str) -> None:
    model, x = generic_flow(), batch_of(20)
    torch.manual_seed(3)
    source = model.capture(model.sample(20)) if statistics == "model" else model.capture(x)
    torch.manual_seed(3)
    KFAC(model, damping=0.01, frame=frame, statistics=statistics, log_det=log_det)(x)
    got = gradients(model)
    for k, (io, other) in enumerate(zip(model.capture(x), source, strict=True)):
        dW, db = dense_direction(io, other, frame == "relative", 0.01)
        assert (got[2 * k] - dW).abs().max() < 1e-9 * max(1, dW.abs().max())
        assert (got[2 * k + 1] - db).abs().max() < 1e-9 * max(1, db.abs().max())


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_between_inversions_exact_follows_the_weights_and_stale_does_not(frame: str) -> None:
    """After the weights moved, ``exact`` has the log-determinant's part of today, ``stale`` that of the inversion."""
    model, x = generic_flow(), batch_of(20)
    found = {}
    initial = {k: v.clone() for k, v in model.state_dict().items()}
    for log_det in ("exact", "stale"):
        model.load_state_dict(initial)
        step = KFAC(model, frame=frame, statistics="data", log_det=log_det)
        step(x)
        gradients(model)
        inverses = [(f.right.clone(), f.left.clone()) for f in step.applied]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        moved = {k: v.clone() for k, v in model.state_dict().items()}
        step(x)
        found[log_det] = gradients(model)[0]
        (A_inv, G_inv), io = inverses[0], model.capture(x)[0]
        rank_b = G_inv @ (io.delta.T @ homogeneous(io.y if frame == "relative" else io.a) / 20) @ A_inv
        weights = {"exact": moved, "stale": initial}[log_det]
        W, now = weights["layers.0.weight"], moved["layers.0.weight"]
        if frame == "relative":
            expected = rank_b[:, :5] @ now - G_inv @ A_inv[:5, :5] @ W
        else:
            expected = rank_b[:, :5] - G_inv @ torch.linalg.inv(W).T @ A_inv[:5, :5]
        assert (found[log_det] - expected).abs().max() < 1e-9
        torch.manual_seed(0)
    assert (found["exact"] - found["stale"]).abs().max() > 1e-3


def one_layer(n: int = 500) -> tuple[Flow, Tensor, Tensor]:
    model = generic_flow(4, 1, bias=False)
    x = torch.randn(n, 4, dtype=torch.float64) @ well_conditioned(4)
    u = x @ model.layers[0].weight.detach().T
    return model, x, u.T @ u / n


def relative_part(model: Flow) -> Tensor:
    (dW,) = gradients(model)
    return dW @ torch.linalg.inv(model.layers[0].weight.detach())


def test_closed_form_of_one_gaussian_layer_with_statistics_from_data() -> None:
    """E = C⁻¹ − C⁻², C = E[u uᵀ]."""
    model, x, C = one_layer()
    KFAC(model, damping=0.0, statistics="data")(x)
    inverse = torch.linalg.inv(C)
    assert (relative_part(model) - (inverse - inverse @ inverse)).abs().max() < 1e-10


def test_closed_form_of_one_gaussian_layer_with_statistics_from_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """E = C − I, for model samples whose second moment is exactly the model's."""
    model, x, C = one_layer()
    noise = torch.linalg.qr(torch.randn(len(x), 4, dtype=torch.float64)).Q * math.sqrt(len(x))
    monkeypatch.setattr(model, "sample", lambda n: model.inverse(noise).detach())
    KFAC(model, damping=0.0, statistics="model")(x)
    assert (relative_part(model) - (C - torch.eye(4))).abs().max() < 1e-10


def test_sampled_factors_tend_to_the_models() -> None:
    model = generic_flow(3, 1, bias=False)
    step = KFAC(model, statistics="model", schedule=Schedule(statistics=1, inverse=1000, decay=0.999))
    for _ in range(400):
        step(torch.randn(200, 3, dtype=torch.float64))
    assert (step.moments[0].A - torch.eye(3)).abs().max() < 0.02
    assert (step.moments[0].G - torch.eye(3)).abs().max() < 0.02


def test_heavy_damping_gives_the_gradient() -> None:
    model, x = generic_flow(), batch_of()
    Layerwise(model)(x)
    expected = gradients(model)
    KFAC(model, damping=1e20, frame="euclidean", statistics="data")(x)  # a factor's share is its norm over the root
    for got, want in zip(gradients(model), expected, strict=True):
        assert (got * 1e20 - want).abs().max() < 1e-6 * want.abs().max()


def test_undamped_direction_does_not_depend_on_the_frame() -> None:
    model, x = generic_flow(), batch_of(50)
    found = []
    for frame in ("relative", "euclidean"):
        KFAC(model, damping=0.0, frame=frame, statistics="data")(x)
        found.append(gradients(model))
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-10 * one.abs().max()


def test_one_sample_is_exactly_kronecker() -> None:
    """At B = 1 the determinant-free Fisher block of a layer is kron(G, A) itself."""
    model, x = generic_flow(), batch_of(1)
    io = model.capture(x)[0]
    score = (io.delta.T @ homogeneous(io.a)).reshape(-1)
    step = KFAC(model, frame="euclidean", statistics="data")
    step(x)
    kron = torch.kron(step.moments[0].G, step.moments[0].A)
    torch.testing.assert_close(kron, torch.outer(score, score))


def test_curvature_is_per_sample_not_of_the_mean_gradient() -> None:
    """G must not shrink with the batch: the usual released scale error loses a factor B²."""
    model, x = generic_flow(), batch_of(8)
    traces = []
    for data in (x, x.repeat(10, 1)):
        step = KFAC(model, statistics="data")
        step(data)
        traces.append(step.moments[0].G.trace())
    torch.testing.assert_close(traces[0], traces[1])


def test_running_averages_are_unbiased() -> None:
    """ε = min(1 − 1/k, decay): a plain mean while k ≤ 20, then exponential."""
    model = generic_flow(3, 1, bias=False)
    step = KFAC(model, statistics="data", schedule=Schedule(statistics=1, decay=0.9))
    moments = []
    for k in range(1, 16):
        x = batch_of(10, 3)
        moments.append(model.capture(x)[0].y.T @ model.capture(x)[0].y / 10)
        step(x)
        if k == 10:
            torch.testing.assert_close(step.moments[0].A, torch.stack(moments).mean(0))
    expected = torch.stack(moments[:10]).mean(0)
    for moment in moments[10:]:
        expected = 0.9 * expected + 0.1 * moment
    torch.testing.assert_close(step.moments[0].A, expected)


def test_work_follows_the_intervals() -> None:
    model = generic_flow()
    step = KFAC(model, schedule=Schedule(statistics=2, inverse=3))
    assert step.facts.period == 6
    seen = []
    for _ in range(6):
        phases: list[str] = []
        step(batch_of(), phases.append)
        seen.append(phases)
    assert [("statistics" in p, "inverse" in p) for p in seen] == [
        (True, True), (False, False), (True, False), (False, True), (True, False), (False, False)
    ]  # fmt: skip


def test_state_restores_the_same_continuation() -> None:
    model, x = generic_flow(), batch_of()
    step = KFAC(model, statistics="data", schedule=Schedule(statistics=1))
    step(x)
    state, again = step.state_dict(), KFAC(model, statistics="data", schedule=Schedule(statistics=1))
    again.load_state_dict(state)
    step(x)
    first = gradients(model)
    again(x)
    for one, other in zip(first, gradients(model), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame": "riemannian"}, "relative, euclidean, got 'riemannian'"),
        ({"damping": -1.0}, "damping=-1.0"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 5, "damping": 0.0}, "needs damping"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KFAC(Flow(3), **options)


def test_a_schedule_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="inverse=0"):
        Schedule(inverse=0)


def test_a_model_without_samples_is_refused() -> None:
    class OnlyCapture(nn.Module):
        def capture(self, batch: Tensor) -> list[LayerIO]:
            return []

    with pytest.raises(TypeError, match=r"needs OnlyCapture\.capture_samples"):
        KFAC(OnlyCapture())


@pytest.mark.parametrize(
    ("value", "error", "remedy"),
    [(0.0, torch.linalg.LinAlgError, "raise damping"), (math.nan, FloatingPointError, "lower the learning rate")],
)
def test_a_factor_without_inverse_is_refused(value: float, error: type, remedy: str) -> None:
    with pytest.raises(error, match=remedy):
        cholesky_inverse(torch.diag(torch.tensor([1.0, value])), 0.0)


def test_a_layer_without_gradient_splits_the_damping_evenly() -> None:
    A, G = torch.eye(3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for one, other in ((A, G), (G, A)):
        shifts = factored_damping(one, other, 0.25)
        assert [float(shift) for shift in shifts] == pytest.approx([0.5, 0.5])

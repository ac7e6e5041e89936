"""log|det W| against torch's, its derivatives by finite differences."""

import pytest
import torch

from stepscale.models import Flow, inverse_transpose, log_abs_det, log_abs_det_and_rounding, solved
from stepscale.models.flows import determinant
from tests.conftest import well_conditioned

pytestmark = pytest.mark.numerical


def matrix(n: int = 6) -> torch.Tensor:
    torch.manual_seed(n)
    return well_conditioned(n)


@pytest.mark.parametrize("n", [1, 2, 6, 40])
def test_value_and_gradient_are_torch_s(n: int) -> None:
    W, other = matrix(n).requires_grad_(), matrix(n).requires_grad_()
    value, expected = log_abs_det(W), torch.linalg.slogdet(other).logabsdet
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(W.grad, other.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse_transpose(W.detach()), other.grad, rtol=1e-10, atol=1e-10)


def test_first_and_second_derivatives_by_finite_differences() -> None:
    W = matrix().requires_grad_()
    assert torch.autograd.gradcheck(log_abs_det, (W,))
    assert torch.autograd.gradgradcheck(log_abs_det, (W,))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own use of it
def test_torch_func_differentiates_it() -> None:
    W, dW = matrix(), matrix(6).T.contiguous()
    inverse = torch.linalg.inv(W)
    torch.testing.assert_close(torch.func.grad(log_abs_det)(W), inverse.T, rtol=1e-10, atol=1e-10)
    _, change = torch.func.jvp(log_abs_det, (W,), (dW,))
    assert change.item() == pytest.approx((inverse @ dW).trace().item(), abs=1e-10)


class Loss(torch.nn.Module):
    """A row's loss, as ``torch.func.functional_call`` wants it."""

    def __init__(self, model: Flow) -> None:
        super().__init__()
        self.model = model

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return self.model.loss(row[None])


def test_per_sample_gradients_of_a_flow() -> None:
    model, x = Flow(5, 2).double(), torch.randn(7, 5, dtype=torch.float64)
    loss = Loss(model)
    parameters = {name: value.detach() for name, value in loss.named_parameters()}
    gradient = torch.func.grad(lambda values, row: torch.func.functional_call(loss, values, (row,)))
    per_sample = torch.func.vmap(gradient, in_dims=(None, 0))(parameters, x)
    model.loss(x).backward()
    for name, parameter in loss.named_parameters():
        torch.testing.assert_close(per_sample[name].mean(0), parameter.grad, rtol=1e-10, atol=1e-10)


def test_a_singular_matrix() -> None:
    W = torch.ones(3, 3, dtype=torch.float64)
    assert log_abs_det(W).item() == -torch.inf
    remedy = "is singular, and so has no inverse: start from a regular one, or lower the learning rate"
    with pytest.raises(FloatingPointError, match=f"^a weight {remedy}"):
        inverse_transpose(W)
    with pytest.raises(FloatingPointError, match=f"^a weight {remedy}"):
        solved(W, W)
    value, rounding = log_abs_det_and_rounding(W)
    assert (value.item(), rounding.item()) == (-torch.inf, torch.inf)
    flow = Flow(3, 2)
    with torch.no_grad():
        flow.layers[1].weight.zero_()
    with pytest.raises(FloatingPointError, match=f"^a weight {remedy}"):
        flow.sample(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("smallest", [1.0, 1e-3])
def test_rounding_changes_it_by_no_more_than_is_said(
    monkeypatch: pytest.MonkeyPatch, smallest: float, dtype: torch.dtype
) -> None:
    """The worst rounding of each entry attains the bound; any other stays within it."""
    monkeypatch.setattr(determinant, "ROWS", 7)
    left, right = (torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q for _ in range(2))
    W = (left * torch.linspace(smallest, 2, 20, dtype=torch.float64) @ right).to(dtype)
    value, bound = log_abs_det_and_rounding(W)
    exact, half = W.double(), torch.finfo(dtype).eps / 2
    assert value.item() == pytest.approx(torch.linalg.slogdet(exact).logabsdet.item(), abs=1e-10)
    step = 1e-6  # of the rounding: to first order
    worst = exact.abs() * half * torch.linalg.inv(exact).T.sign()
    change = torch.linalg.slogdet(exact + step * worst).logabsdet - value
    assert change.item() / step == pytest.approx(bound.item(), rel=1e-3)
    rounded = exact * (1 + half * (2 * torch.rand_like(exact) - 1) * step)
    assert abs(torch.linalg.slogdet(rounded).logabsdet - value) < step * bound


def test_a_batch_of_matrices_is_each_of_them() -> None:
    matrices = torch.stack([matrix(), -2 * matrix().T]).requires_grad_()
    found = log_abs_det(matrices)
    torch.testing.assert_close(found, torch.linalg.slogdet(matrices).logabsdet)
    assert torch.autograd.gradcheck(log_abs_det, (matrices,))

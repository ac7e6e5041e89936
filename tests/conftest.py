from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from torch import Tensor

from stepscale.bench.records import tables
from stepscale.models import Flow
from tests.support.commands import Forking
from tests.support.synthetic import COSTS, DIMS, run_of


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def well_conditioned(dim: int) -> Tensor:
    """Make a random ``[dim, dim]`` float64 matrix of condition 4, far from orthogonal.

    One of independent entries is now and then nearly singular, and then a test of it hangs on a rounding.
    """
    left, right = (torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q for _ in range(2))
    return left * torch.linspace(0.5, 2, dim, dtype=torch.float64) @ right


def generic_flow(dim: int = 5, depth: int = 3, **options: object) -> Flow:
    """Build a float64 flow whose weights are well conditioned, no rotations, and whose biases are not zero."""
    flow = Flow(dim, depth, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in flow.layers:
            layer.weight.copy_(well_conditioned(dim))
            if layer.bias is not None:
                layer.bias.normal_()
    return flow


def rounding(matrix: Tensor) -> float:
    """Return the relative error that a solve with ``matrix`` may have: 100 ε times its condition number."""
    return 100 * torch.finfo(matrix.dtype).eps * torch.linalg.cond(matrix).item()


def gradients(model: torch.nn.Module) -> list[Tensor]:
    found = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
        parameter.grad = None
    return found


def batch_of(n: int = 7, dim: int = 5) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64)


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A run of optimizers whose cost is known, five seeds each."""
    return tables.load(run_of(tmp_path_factory.mktemp("run"), COSTS, DIMS, seeds=5))


@pytest.fixture(scope="session")
def forking() -> Iterator[Forking]:
    one = Forking()
    yield one
    one.end()

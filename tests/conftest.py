from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from torch import Tensor

from stepscale.bench import tables
from stepscale.models import Flow
from tests.synthetic import COSTS, DIMS, run_of


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def generic_flow(dim: int = 5, depth: int = 3, **options: object) -> Flow:
    """Build a float64 flow whose weights are far from orthogonal and whose biases are not zero."""
    flow = Flow(dim, depth, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in flow.layers:
            layer.weight.add_(torch.randn_like(layer.weight), alpha=0.3)
            if layer.bias is not None:
                layer.bias.normal_()
    return flow


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

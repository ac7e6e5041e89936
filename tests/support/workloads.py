"""Small workloads of the optimizers in ``conf/``."""

import torch

from stepscale.bench.timing.workload import Workload
from tests.support.compose import built, composed, named

OPTIMIZERS = named("optimizer")


def workload_of(name: str, *overrides: str) -> Workload:
    """Build a step at dim 12, with three batches of 6 rows."""
    config = composed(f"optimizer={name}", "dim=12", *overrides)
    model = built(config["model"])
    return Workload(model, built(config["optimizer"])(model), [torch.randn(6, 12) for _ in range(3)])

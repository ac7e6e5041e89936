"""The library without the command line: a flow, trained by the relative gradient."""

import torch

from stepscale.bench.data import photos
from stepscale.models import Flow
from stepscale.optimizers import Relative, pair

data = photos(dim=64, rows=50_000, seed=0)
flow = Flow(dim=64, depth=2)
step = pair(flow, Relative, lambda parameters: torch.optim.SGD(parameters, lr=1e-2))
for batch in data.train.split(100):
    step(batch)
print(f"{flow.loss(data.held_out).item():.2f} nats")

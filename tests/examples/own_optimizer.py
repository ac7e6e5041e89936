"""An optimizer of your own: any ``torch.optim.Optimizer``, here fed by the relative gradient."""

from collections.abc import Iterable

import torch

from stepscale.bench.data import photos
from stepscale.models import Flow
from stepscale.optimizers import Relative, pair


class SignDescent(torch.optim.Optimizer):
    """Moves every parameter by ``lr`` against the sign of its gradient."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


if __name__ == "__main__":
    data, flow = photos(dim=16, rows=2_000, seed=0), Flow(dim=16)
    step = pair(flow, Relative, SignDescent)
    print(f"before: {flow.loss(data.held_out).item():.2f} nats")
    for batch in data.train.split(100):
        step(batch)
    print(f"after:  {flow.loss(data.held_out).item():.2f} nats")

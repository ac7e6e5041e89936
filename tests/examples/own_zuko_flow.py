"""A flow of another library, here zuko: an adapter gives it ``loss``. Its hidden width grows, and the data's does not.

stepscale model._target_=own_zuko_flow.ZukoNSF optimizer=adam data.dim=8 dim=32,64 \\
  ~model.dim '+model.features=${data.dim}' '+model.hidden=${dim}' -m
"""

import torch
import zuko
from torch import Tensor, nn

from stepscale.bench import TimingSettings, time_step
from stepscale.optimizers import Layerwise, pair


class ZukoNSF(nn.Module):
    """A neural spline flow of ``depth`` transforms, by networks of two layers of width ``hidden``."""

    def __init__(self, features: int, hidden: int, depth: int = 2) -> None:
        super().__init__()
        self.flow = zuko.flows.NSF(features, transforms=depth, hidden_features=[hidden, hidden])

    def loss(self, batch: Tensor) -> Tensor:
        return -self.flow().log_prob(batch).mean()


if __name__ == "__main__":
    settings = TimingSettings(precision=0.05, time_limit_s=0.2, warmup_s=0.05, block_s=0.005, max_step_s=2)
    for hidden in (32, 64):
        model = ZukoNSF(8, hidden)
        step = pair(model, Layerwise, torch.optim.Adam)
        found = time_step(model, step, [torch.randn(100, 8) for _ in range(3)], settings)
        print(f"hidden {hidden}: {found.step_ms:.3f} ms a step, {found.ratio:.1f} x limit, {found.flops:.3g} FLOP")

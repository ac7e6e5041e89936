"""A model of your own: it needs ``loss(batch)`` and nothing else. Here its step is timed."""

import torch
from torch import Tensor, nn

from stepscale.bench import TimingSettings, time_step
from stepscale.optimizers import Layerwise, pair


class Denoiser(nn.Module):
    """Guesses rows from noisy ones; built with ``dim`` and ``depth``, as ``conf/model/flow.yaml`` does."""

    def __init__(self, dim: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(dim, dim), nn.Tanh())))

    def loss(self, batch: Tensor) -> Tensor:
        noisy = batch + 0.1 * torch.randn_like(batch)
        return (self.layers(noisy) - batch).square().sum(1).mean()


if __name__ == "__main__":
    settings = TimingSettings(precision=0.05, time_limit_s=0.2, warmup_s=0.05, block_s=0.005, max_step_s=2)
    for dim in (32, 64):
        model = Denoiser(dim)
        step = pair(model, Layerwise, torch.optim.Adam)
        found = time_step(model, step, [torch.randn(100, dim) for _ in range(3)], settings)
        print(f"dim {dim}: {found.step_ms:.3f} ms a step, {found.ratio:.1f} x limit, {found.flops:.3g} FLOP")

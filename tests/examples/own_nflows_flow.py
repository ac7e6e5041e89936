"""A flow of nflows: ``stepscale model._target_=own_nflows_flow.NflowsMAF optimizer=adam dim=64``."""

from nflows.flows.autoregressive import MaskedAutoregressiveFlow
from torch import Tensor, nn


class NflowsMAF(nn.Module):
    """A masked autoregressive flow of ``depth`` transforms, built with ``dim`` and ``depth``."""

    def __init__(self, dim: int, depth: int = 2) -> None:
        super().__init__()
        self.flow = MaskedAutoregressiveFlow(dim, dim, num_layers=depth, num_blocks_per_layer=1)

    def loss(self, batch: Tensor) -> Tensor:
        return -self.flow.log_prob(batch).mean()

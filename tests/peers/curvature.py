"""Other projects' K-FAC.

They hook into ``nn.Linear`` modules and run autograd themselves, as their users would call them. Versions are pinned in
the extra ``peers``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stepscale.models import Batch
from stepscale.optimizers import Facts, Mark, no_mark

MOMENTUM = 0.9


class Asdl:
    """ASDL's K-FAC, empirical Fisher, two-sided with π; statistics every step and inverses every ``interval``."""

    def __init__(self, model: nn.Module, lr: float, damping: float, interval: int, batch: int) -> None:
        torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: None  # type: ignore[assignment] # no CUDA
        from asdl import FISHER_EMP, KfacGradientMaker, PreconditioningConfig

        config = PreconditioningConfig(
            preconditioner_upd_interval=interval,
            curvature_upd_interval=1,
            damping=damping,
            ema_decay=0.05,
            data_size=batch,
        )
        self.model, self.facts = model, Facts(period=interval)
        self.maker = KfacGradientMaker(model, config, fisher_type=FISHER_EMP)
        self.update = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.update.zero_grad()
        outputs = self.maker.setup_model_call(self.model, batch[0])
        self.maker.setup_loss_call(nn.functional.cross_entropy, outputs, batch[1])
        self.maker.forward_and_backward()
        mark("precondition")
        self.update.step()
        mark("update")

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.maker.state["step"], "update": self.update.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.maker.state["step"] = state["step"]
        self.update.load_state_dict(state["update"])


class Singd:
    """SINGD with dense factors: inverse-free K-FAC, empirical Fisher, its factors every ``interval`` steps."""

    def __init__(self, model: nn.Module, lr: float, damping: float, interval: int) -> None:
        from singd.optim.optimizer import SINGD

        self.model, self.facts = model, Facts(period=interval)
        self.update = SINGD(model, lr=lr, damping=damping, momentum=MOMENTUM, T=interval, structures=("dense", "dense"))

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.update.zero_grad()
        nn.functional.cross_entropy(self.model(batch[0]), batch[1]).backward()
        mark("gradient")
        self.update.step()
        mark("update")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.update.steps, "scales": dict(self.update._grad_scales)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.update.steps, self.update._grad_scales = state["steps"], dict(state["scales"])

"""M-FAC: products with the inverse of the empirical Fisher matrix of the last m gradients.

Frantar, Kurtic & Alistarh 2021, "M-FAC: efficient matrix-free approximations of second-order information", NeurIPS,
arXiv 2107.03356.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stepscale.optimizers.core.update import StateDict

WHOLE = 2**16  # numbers of a gradient up to which it is looked at in one piece


class MFAC(torch.optim.Optimizer):
    """(λ I + GᵀG/m)⁻¹ g with g the last row of G, m gradients: O(m P + m³) a step and O(m P) memory, no d³ anywhere.

    P is the number of parameters. As g is a row of G, the direction is m Gᵀ c, (m λ I + G Gᵀ) c = e, with e the unit
    vector of its row: no difference of large numbers, which the usual form g/λ − … is. The new row of G Gᵀ and the
    system are float64: of two gradients that are nearly equal float32 products lose the difference.

    With any direction behind it: of ``Relative`` it is quadratic on the flow. The 1/m stays while the window fills, as
    published, so that a first step is m g / (m λ + ‖g‖²), of length m/‖g‖ at the most: lr goes as 1/m.

    Args:
        params: as of any torch optimizer.
        lr: learning rate.
        window: m, gradients kept.
        damping: λ.
        momentum: of the directions, as in ``torch.optim.SGD``.
        weight_decay: added to the gradient, times the parameter, before it is kept.

    Raises:
        ValueError: an argument is out of its range.
        FloatingPointError: at a step, and a gradient is not finite.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        *,
        window: int = 32,
        damping: float = 1e-5,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        if window < 1 or not damping > 0:
            raise ValueError(f"window must be at least 1 and damping positive, got window={window}, damping={damping}")
        if not lr > 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                "lr must be positive, momentum in [0, 1) and weight_decay at least 0, got "
                f"lr={lr}, momentum={momentum}, weight_decay={weight_decay}"
            )
        self.window, self.damping = window, damping
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [(group, p) for group in self.param_groups for p in group["params"]]
        whole = self._whole(parameters[0][1])
        place = whole["step"] % self.window
        for group, parameter in parameters:
            self._keep(group, parameter, place)
        rows = [state["gradients"] for _, p in parameters if "gradients" in (state := self.state[p])]
        if not rows:
            return loss
        shares = [products(kept, kept[place]).to(whole["gram"].device) for kept in rows]
        gram = torch.stack(shares).sum(0)
        if not torch.isfinite(gram).all():  # the wait for the device
            raise FloatingPointError("a gradient is not finite: lower the learning rate")
        whole["gram"][place] = whole["gram"][:, place] = gram
        whole["step"] += 1
        weights = self._weights(whole["gram"], place)
        for group, parameter in parameters:
            if parameter.grad is not None:
                kept = self.state[parameter]["gradients"]
                self._move(group, parameter, combined(weights, kept).view_as(parameter))
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take up a state; torch would cast G Gᵀ to the parameters' type."""
        super().load_state_dict(state_dict)
        first, saved = self.param_groups[0]["params"][0], state_dict["state"].get(0, {})
        if "gram" in saved:
            self.state[first]["gram"] = saved["gram"].to(first.device)

    def __getstate__(self) -> StateDict:
        return super().__getstate__() | {"window": self.window, "damping": self.damping}

    def _weights(self, gram: Tensor, place: int) -> Tensor:
        """O(m³): m c, by which the kept gradients add up to the direction."""
        system = gram.clone()
        system.diagonal().add_(self.window * self.damping)
        unit = system.new_zeros(len(system))
        unit[place] = self.window
        return torch.linalg.solve(system, unit)

    def _whole(self, first: nn.Parameter) -> dict[str, Any]:
        """Return the state of all parameters together, which the first of them keeps."""
        state = self.state[first]
        if "gram" not in state:
            state["step"] = 0
            state["gram"] = torch.zeros(self.window, self.window, dtype=torch.float64, device=first.device)
        return state

    def _keep(self, group: dict[str, Any], parameter: nn.Parameter, place: int) -> None:
        """O(P): write today's gradient over the oldest; of a parameter that is frozen now it is zero."""
        state, gradient = self.state[parameter], parameter.grad
        if gradient is None:
            if "gradients" in state:
                state["gradients"][place] = 0
            return
        if "gradients" not in state:
            state["gradients"] = parameter.new_zeros(self.window, parameter.numel())  # zeros weigh nothing
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state["gradients"][place] = gradient.flatten()

    def _move(self, group: dict[str, Any], parameter: nn.Parameter, direction: Tensor) -> None:
        if group["momentum"]:
            state = self.state[parameter]
            if "momentum" in state:
                direction = state["momentum"].mul_(group["momentum"]).add_(direction)
            else:
                state["momentum"] = direction
        parameter.sub_(direction, alpha=group["lr"])


def products(rows: Tensor, row: Tensor) -> Tensor:
    """O(m P): each row times one, in float64; ``[m, P]`` and ``[P]``, to ``[m]``."""
    count = pieces(rows)
    parts = zip(rows.tensor_split(count, dim=1), row.tensor_split(count), strict=True)
    return torch.stack([part.double() @ one.double() for part, one in parts]).sum(0)


def combined(weights: Tensor, rows: Tensor) -> Tensor:
    """O(m P): the rows' sum with these weights, in float64, as nearly equal rows have large ones of two signs."""
    weights = weights.to(rows.device)
    return torch.cat([(weights @ part.double()).to(rows.dtype) for part in rows.tensor_split(pieces(rows), dim=1)])


def pieces(rows: Tensor) -> int:
    """Into how many pieces rows are split: in float64 one is as large as two rows, and each grows as rows do."""
    return len(rows) if rows.shape[1] > WHOLE else 1


class InverseFisher:
    """(λ I + GᵀG/m)⁻¹ of m given gradients, not formed: products, and its diagonal; O(m² P) to make, O(m P) memory.

    For pruning: removing parameter k at the least cost changes a loss by w_k² / (2 [F⁻¹]_kk) (optimal brain surgeon).
    It is made for m < P: of more gradients than parameters the diagonal's rounding grows as 1/λ.

    Args:
        gradients: G, ``[m, P]``.
        damping: λ.

    Raises:
        ValueError: ``damping`` is not positive.
    """

    def __init__(self, gradients: Tensor, damping: float) -> None:
        if not damping > 0:
            raise ValueError(f"damping must be positive, got {damping}")
        self.gradients, self.damping = gradients.double(), damping
        system = self.gradients @ self.gradients.T
        system.diagonal().add_(len(gradients) * damping)
        self.factor = torch.linalg.cholesky(system)

    def times(self, x: Tensor) -> Tensor:
        """O(m P): the inverse times ``[P]``; float64."""
        G, x = self.gradients, x.double()
        inner = torch.cholesky_solve((G @ x).unsqueeze(1), self.factor).squeeze(1)
        return (x - inner @ G) / self.damping

    def diagonal(self) -> Tensor:
        """O(m² P): ``[P]``; float64."""
        halves = torch.linalg.solve_triangular(self.factor, self.gradients, upper=False)
        return (1 - halves.square().sum(0)) / self.damping

    def pruning_costs(self, parameters: Tensor) -> Tensor:
        """O(m² P): by how much a loss grows at least when each of ``[P]`` parameters is removed alone; float64."""
        return parameters.double().square() / (2 * self.diagonal())

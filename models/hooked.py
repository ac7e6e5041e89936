"""Capturing any model by hooks: what its ``nn.Linear`` and ``nn.Conv2d`` modules saw, by its ``loss`` alone.

A convolution is the affine layer of its unfolded patches, and each position is one more row of its sample: KFC, Grosse
& Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers", arXiv 1602.01407.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from stepscale.models.batch import Batch, require_rows, rows_of
from stepscale.models.captured_layer import LayerIO, Part
from stepscale.models.choices import one_of
from stepscale.models.contract import CountsTerms, DrawsTargets, HasLoss, offers

Ruled = nn.Linear | nn.Conv2d
"""A module that has a rule."""


class Rest(StrEnum):
    """What becomes of parameters whose modules have no rule."""

    REFUSE = "refuse"
    GRADIENT = "gradient"


class Use(NamedTuple):
    """One call of a module that has a rule."""

    module: Ruled
    x: Tensor
    y: Tensor  # a copy: what follows may write over the output
    edge: GradientEdge  # of the output as the module left it


class Hooked:
    """A model with ``loss`` as one that captures: O(B P), one forward and one backward pass, no weight's gradient.

    There are hooks during the forward pass only. The first capture forms all gradients, to see that each captured
    layer's is of its calls alone. Where the model opens ``torch.autocast``, what is captured has the weights' type, and
    the digits that it was computed to.

    Args:
        model: offers ``loss``; ``sampled_loss`` for the model's own samples; and ``loss_terms`` where its loss is the
            mean of other terms than a batch's rows.
        what: captures it, for messages.
        rest: of trained parameters whose modules have no rule: ``"refuse"`` them by name, or write their plain
            ``"gradient"`` into ``.grad``.

    Raises:
        ValueError: ``rest`` is out of its range; or, when called, a batch has no rows.
        TypeError: when called, and a module has no rule, or its rows are not those of the loss's terms, or a weight is
            used outside its module.
    """

    def __init__(self, model: nn.Module, what: str, rest: str = Rest.REFUSE) -> None:
        self.model, self.what, self.rest = model, what, one_of("rest", Rest, rest)
        self.batch: Batch | None = None
        self.checked = False

    def capture(self, batch: Batch) -> list[LayerIO]:
        """O(B P): the layers of the batch's loss, in the order of the model's modules; what is frozen loses ``.grad``.

        It writes the gradients of parameters without a rule, if it is to.
        """
        self.batch = batch
        uses, loss = self._forward(cast(HasLoss, self.model).loss)
        ours, others = self._split(uses)
        looked_at = [] if self.checked else [*ours.values()]
        sought: list[Any] = [*(use.edge for use in uses), *others, *looked_at]
        found = torch.autograd.grad(loss, sought, allow_unused=True)
        for parameter, gradient in zip(others, found[len(uses) :], strict=False):
            parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
        ios = self._layers(uses, found[: len(uses)])
        if not self.checked:
            self._check(uses, ios, dict(zip(ours, found[len(uses) + len(others) :], strict=True)))
            self.checked = True
        return ios

    def capture_samples(self, ios: list[LayerIO]) -> list[LayerIO]:
        """O(B P): the same of the inputs that were captured last, with targets drawn from the model."""
        uses, loss = self._forward(cast(DrawsTargets, self.model).sampled_loss)
        found = torch.autograd.grad(loss, [use.edge for use in uses], allow_unused=True)  # type: ignore[arg-type]
        return self._layers(uses, found)

    def _forward(self, loss: Callable[[Batch], Tensor]) -> tuple[list[Use], Tensor]:
        """The calls of the modules that have a rule, in the order of the modules, and the loss."""
        uses: list[Use] = []

        def record(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], y: Tensor) -> None:
            if y.requires_grad:  # not where the model itself takes no gradient
                x = args[0] if args else named["input"]
                uses.append(Use(cast(Ruled, module), x.detach(), y.detach().clone(), get_gradient_edge(y)))

        dynamo = sys.modules.get("torch._dynamo")  # would compile the hook anew for each module, and give up at eight
        hook_of = record if dynamo is None else dynamo.disable(record)
        assert self.batch is not None, "capture() comes first: capture_samples() has its inputs"
        places = {module: place for place, module in enumerate(with_rule(self.model))}
        hooks = [module.register_forward_hook(hook_of, prepend=True, with_kwargs=True) for module in places]
        try:
            with torch.enable_grad():
                value = loss(self.batch)
        finally:
            for hook in hooks:
                hook.remove()
        return sorted(uses, key=lambda use: places[use.module]), value

    def _split(self, uses: list[Use]) -> tuple[dict[int, nn.Parameter], list[nn.Parameter]]:
        """What is trained of the modules that were called, by its id, and all else that is trained."""
        ours = {id(p): p for use in uses for p in use.module.parameters() if p.requires_grad}
        others = []
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
            elif id(parameter) not in ours:
                others.append(parameter)
        if others and self.rest is Rest.REFUSE:
            names = ", ".join(owners(self.model, {id(parameter) for parameter in others}))
            raise TypeError(
                f"{self.what} has no rule for {names}: set rest=gradient, to take their plain one, or freeze them"
            )
        return ours, others

    def _layers(self, uses: list[Use], gradients: tuple[Tensor | None, ...]) -> list[LayerIO]:
        assert self.batch is not None
        B = self.model.loss_terms(self.batch) if offers(self.model, CountsTerms) else rows_of(self.batch)
        require_rows(B)
        kernels: dict[int, Tensor] = {}  # one matrix a weight, by which its uses are known
        found = []
        for use, gradient in zip(uses, gradients, strict=True):
            layer, b, dtype = as_linear(use.module, kernels), use.module.bias, use.module.weight.dtype
            y = rows(use.module, use.y.to(dtype))  # autocast's are of fewer digits
            delta = torch.zeros_like(y) if gradient is None else rows(use.module, gradient.to(dtype)) * B
            x = use.x.to(dtype)
            a = rows(use.module, x) if isinstance(use.module, nn.Linear) else patches(use.module, x)
            u = y if b is None else y - b.detach()
            found.append(LayerIO(layer, a, u, y, delta, log_det=False, copies=self._copies(use, B)))
        return found

    def _copies(self, use: Use, B: int) -> int:
        """How many rows there are of each of B terms; the terms come first, or are some of the first dimensions'."""
        shape = use.y.shape[:-1] if isinstance(use.module, nn.Linear) else (*use.y.shape[:-3], *use.y.shape[-2:])
        products = [*accumulate(shape, mul, initial=1)]
        if products[-1] % B or not (B in products or shape[0] % B == 0):
            raise TypeError(
                f"{name_of(self.model, use.module)} sees rows of shape {tuple(shape)}, and the loss is a mean of {B} "
                "terms: put the batch first, or say by loss_terms(batch) how many terms there are"
            )
        return products[-1] // B

    def _check(self, uses: list[Use], ios: list[LayerIO], exact: dict[int, Tensor | None]) -> None:
        """O(B P): hold δᵀa / B, summed over a parameter's uses, against its gradient."""
        found: dict[int, Tensor] = {}
        bounds: dict[int, Tensor] = {}
        for use, io in zip(uses, ios, strict=True):
            ones = io.a.new_ones(len(io.a), 1)
            for parameter, a in ((use.module.weight, io.a), (use.module.bias, ones)):
                if parameter is not None and id(parameter) in exact:
                    gradient = (io.delta.T @ a / io.samples).view_as(parameter)
                    found[id(parameter)] = found.get(id(parameter), 0) + gradient
                    bounds[id(parameter)] = bounds.get(id(parameter), 0) + io.delta.norm() * a.norm() / io.samples
        coarsest = max((torch.finfo(use.y.dtype).eps for use in uses), default=0.0)  # as autocast's
        for use in uses:
            for parameter in use.module.parameters():
                if (true := exact.get(id(parameter))) is None:
                    continue
                off = (found[id(parameter)] - true).norm()
                if off > coarsest**0.5 * bounds[id(parameter)]:
                    raise TypeError(
                        f"the gradient of {name_of(self.model, use.module)} is not of its calls alone: a parameter of "
                        "it is used elsewhere, too; freeze it, or use the layerwise direction"
                    )


def has_rule(module: nn.Module) -> bool:
    """Whether it is affine in its own weight: ``nn.Linear``, or ``nn.Conv2d`` of one group, padded with zeros."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and isinstance(module.weight, nn.Parameter)
    return isinstance(module, nn.Linear) and isinstance(module.weight, nn.Parameter)  # no parametrised one


def with_rule(model: nn.Module) -> list[nn.Module]:
    """List the modules that have a rule and a trained part, and share none with a module that has no rule."""
    outside = {id(p) for module in model.modules() if not has_rule(module) for p in module.parameters(recurse=False)}
    found = []
    for module in model.modules():
        trained = {id(p) for p in module.parameters(recurse=False) if p.requires_grad}
        if has_rule(module) and trained and not trained & outside:
            found.append(module)
    return found


def owners(model: nn.Module, parameters: set[int]) -> list[str]:
    """Name the modules whose own parameters are among those."""
    return [
        name_of(model, module)
        for module in model.modules()
        if any(id(parameter) in parameters for parameter in module.parameters(recurse=False))
    ]


def name_of(model: nn.Module, module: nn.Module) -> str:
    """Name a module and its type."""
    name = next(name for name, other in model.named_modules() if other is module)
    return f"{name or 'the model itself'} ({type(module).__name__})"


def as_linear(module: Ruled, kernels: dict[int, Tensor]) -> nn.Linear:
    """Make a convolution the affine layer of its patches, whose gradient is in its kernel's memory."""
    if isinstance(module, nn.Linear):
        return module
    W = module.weight
    if id(W) not in kernels:
        kernels[id(W)] = W.detach().flatten(1).requires_grad_(W.requires_grad)
        if W.requires_grad:
            if W.grad is None or not W.grad.is_contiguous():
                W.grad = torch.empty_like(W, memory_format=torch.contiguous_format)
            kernels[id(W)].grad = W.grad.view(len(W), -1)
    return Part(kernels[id(W)], cast(nn.Parameter | None, module.bias))


def rows(module: Ruled, y: Tensor) -> Tensor:
    """O(B d): inputs of a linear layer, or outputs of either, as rows: ``[rows, dim]``."""
    if isinstance(module, nn.Conv2d):
        y = y.flatten(-2).transpose(-1, -2)
    return y.reshape(-1, y.shape[-1])


def patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """O(B d): what each output of a convolution sees, ``[batch · positions, channels · kernel]``."""
    padding = module.padding
    if isinstance(padding, str):
        spans = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        height, width = ((span // 2, span - span // 2) for span in spans)
        x, padding = functional.pad(x, (*width, *height)), (0, 0)
    unfolded = functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
    return unfolded.transpose(-1, -2).reshape(-1, unfolded.shape[-2])

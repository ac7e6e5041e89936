"""Timing a step from a script: what it says, and what it leaves behind."""

import math
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import stepscale.bench
from stepscale.bench import StepTime, TimingSettings, time_step
from stepscale.bench.config import CONF
from stepscale.bench.timing import one_step
from stepscale.models import Flow
from stepscale.optimizers import KFAC, Layerwise, Relative, RelativeSGD, Step, pair
from tests.support.theirs import OnlyLoss

BRIEF = TimingSettings(precision=0.5, time_limit_s=0.02, warmup_s=0.01, block_s=0.001, max_step_s=10)
ADAM, SGD = partial(torch.optim.Adam, lr=1e-3), partial(torch.optim.SGD, lr=1e-3)


def batches(dim: int = 8) -> list[Tensor]:
    return [torch.randn(20, dim) for _ in range(2)]


def test_what_it_says_fits_together() -> None:
    flow = Flow(8)
    found = time_step(flow, pair(flow, Relative, SGD), batches(), BRIEF)
    assert isinstance(found, StepTime)
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.step_ms > 0 and found.limit_ms > 0
    assert found.flops == 2 * 7 * 20 * 8**2, "seven products of [20, 8] and [8, 8]"


STEPS: dict[str, Callable[[Flow], Step]] = {
    "stateless": lambda flow: pair(flow, Relative, SGD),
    "adam": lambda flow: pair(flow, Relative, ADAM),
    "factors": lambda flow: pair(flow, KFAC, SGD),
    "fused": lambda flow: RelativeSGD(flow, lr=1e-3),
}


def gradients(flow: Flow) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in flow.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kind", STEPS)
def test_model_and_step_are_left_as_they_were(kind: str) -> None:
    """A step timed in between changes nothing of what training comes to."""
    x, ends = batches(), []
    start = Flow(8).state_dict()
    for timed in (False, True):
        torch.manual_seed(0)
        flow = Flow(8)
        flow.load_state_dict(start)
        step = STEPS[kind](flow)
        torch.manual_seed(1)
        for number in range(3):
            if timed and number < 2:
                before = gradients(flow)
                time_step(flow, step, x, BRIEF)
                assert all(map(torch.equal, before, gradients(flow))) and len(before) == len(gradients(flow))
            step(x[0])
        ends.append([parameter.clone() for parameter in flow.parameters()])
    for plain, interrupted in zip(*ends, strict=True):
        torch.testing.assert_close(interrupted, plain, rtol=0, atol=0)


def test_a_compiled_step_is_left_as_it_was_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's moments with it, though a compiled step's state is not put back between blocks."""
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    flow = Flow(8)
    step = STEPS["adam"](flow)
    step(batches()[0])
    before = deepcopy(step.state_dict())
    time_step(flow, step, batches(), replace(BRIEF, compile="default"))
    after, there = (tree_leaves(state) for state in (step.state_dict(), before))
    assert len(after) == len(there)
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(after, there, strict=True))


def test_a_batch_may_have_targets() -> None:
    class Regression(nn.Linear):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return (self(batch[0]) - batch[1]).square().mean()

    model = Regression(6, 2)
    found = time_step(model, pair(model, Layerwise, SGD), [(torch.randn(20, 6), torch.randn(20, 2))], BRIEF)
    assert found.flops == 2 * (2 * 20 * 6 * 2), "the product, and the gradient of its weight"


def test_beside_compiled_functions_a_model_without_products_is_timed_without_a_ratio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(torch._dynamo.utils.counters["frames"], "ok", 1)
    model = OnlyLoss(8)
    found = time_step(model, pair(model, Layerwise, SGD), batches(), BRIEF)
    assert found.step_ms > 0 and math.isnan(found.ratio) and math.isnan(found.limit_ms)


def test_no_batch_is_named() -> None:
    flow = Flow(8)
    with pytest.raises(ValueError, match="at least one batch, got none"):
        time_step(flow, pair(flow, Relative, SGD), [], BRIEF)


def test_its_settings_are_those_of_the_files() -> None:
    assert asdict(one_step.DEFAULT) == yaml.safe_load((CONF / "timing" / "default.yaml").read_text())


def test_importing_the_harness_imports_nothing() -> None:
    code = (
        "import sys, importlib.util; before = set(sys.modules); import stepscale.bench as bench\n"
        "print(sorted(set(sys.modules) - before - {'stepscale', 'stepscale.bench'}))\n"
        "bench.load; print('pandas' in sys.modules, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:2] == ["[]", "False False"]


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(stepscale.bench, name) for name in stepscale.bench.__all__)
    assert set(stepscale.bench.__all__) <= set(dir(stepscale.bench))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        stepscale.bench.lod  # noqa: B018

"""Which device is chosen, on a machine with a GPU and on one without."""

import pytest
import torch

from stepscale.bench.errors import UsageError
from stepscale.bench.machine.device import choose_device, require_present


@pytest.mark.parametrize(
    ("asked", "with_gpu", "without"), [("auto", "cuda", "cpu"), ("cpu", "cpu", "cpu"), ("cuda", "cuda", "cuda")]
)
def test_the_user_decides_else_the_machine(
    asked: str, with_gpu: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for there, expected in ((True, with_gpu), (False, without)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device(asked) == expected


@pytest.mark.parametrize("asked", ["tpu", "cuda:1", "", "cpu,cuda"])
def test_another_word_is_no_device(asked: str) -> None:
    with pytest.raises(UsageError, match=f"device must be one of auto, cpu, cuda, got '{asked}'"):
        choose_device(asked)


def test_only_a_gpu_can_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_present("cpu")
    with pytest.raises(UsageError, match="sees no CUDA device here; use device=cpu"):
        require_present("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_present("cuda")

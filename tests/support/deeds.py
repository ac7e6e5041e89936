"""What an optimizer of the user's may do to the process that measures it, one function a deed."""

from __future__ import annotations

import builtins
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

LONG_S = 300  # longer than any sweep here


class Bare(BaseException):
    """No exception that `except Exception` would see."""


class MuteError(Exception):
    """Its message cannot be read."""

    def __str__(self) -> str:
        raise ValueError("no message")


def raised(error: BaseException) -> Callable[[Any], None]:
    def deed(optimizer: Any) -> None:
        raise error

    return deed


def signalled(number: int) -> Callable[[Any], None]:
    def deed(optimizer: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(1)

    return deed


def child(optimizer: Any) -> None:
    if os.fork() == 0:
        time.sleep(LONG_S)


def daemon(optimizer: Any) -> None:
    """As a service starts: the process that is left has another parent, and a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(LONG_S)
        os._exit(0)


def child_then_killed(optimizer: Any) -> None:
    child(optimizer)
    os.kill(os.getpid(), signal.SIGKILL)


def fork_bomb(optimizer: Any) -> None:
    for _ in range(4):
        os.fork()  # the copies go on with the step, and measure too


def pool(optimizer: Any) -> None:
    optimizer.pool = multiprocessing.get_context("fork").Pool(2)


def thread(optimizer: Any) -> None:
    threading.Thread(target=time.sleep, args=(LONG_S,), daemon=False).start()


def deaf_sleep(optimizer: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(LONG_S)


def kill_the_parent(optimizer: Any) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(LONG_S)


def without_builtins(optimizer: Any) -> None:
    builtins.print = None  # type: ignore[assignment]


def without_output(optimizer: Any) -> None:
    sys.stdout.close()
    sys.stderr.close()


def nan(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data.fill_(float("nan"))


def hoard(optimizer: Any) -> None:
    optimizer.hoard = [torch.ones(2**24) for _ in range(2**10)]


def recursion(optimizer: Any) -> None:
    recursion(optimizer)


def no_files(optimizer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


# deed -> the statuses its cell may have
DEEDS: dict[str, tuple[Callable[[Any], object], set[str]]] = {
    "exit with words": (raised(SystemExit("bye")), {"failed"}),
    "exit 0": (raised(SystemExit(0)), {"failed"}),
    "os._exit": (lambda _: os._exit(3), {"killed"}),
    "KeyboardInterrupt": (raised(KeyboardInterrupt()), {"failed"}),
    "GeneratorExit": (raised(GeneratorExit()), {"failed"}),
    "BaseException": (raised(Bare("bare")), {"failed"}),
    "mute exception": (raised(MuteError()), {"failed"}),
    "message of 10 MB": (raised(ValueError("x" * 10**7)), {"failed"}),
    "half a surrogate pair": (raised(ValueError("a\ud800b")), {"failed"}),
    "control characters": (raised(ValueError("a\x1b[31m\rb\0c")), {"failed"}),
    "recursion": (recursion, {"failed"}),
    "SIGKILL": (signalled(signal.SIGKILL), {"killed"}),
    "SIGTERM": (signalled(signal.SIGTERM), {"killed"}),
    "SIGSEGV": (signalled(signal.SIGSEGV), {"killed"}),
    "SIGABRT": (signalled(signal.SIGABRT), {"killed"}),
    "SIGRTMIN+6": (signalled(40), {"killed"}),
    "SIGSTOP": (signalled(signal.SIGSTOP), {"killed"}),
    "sleep": (lambda _: time.sleep(LONG_S), {"killed"}),
    "deaf sleep": (deaf_sleep, {"killed"}),
    "parent killed": (kill_the_parent, {"killed"}),
    "nan": (nan, {"diverged"}),
    "hoard": (hoard, {"out_of_memory"}),
    "child": (child, {"ok"}),
    "child of a session": (lambda _: subprocess.Popen(["sleep", str(LONG_S)], start_new_session=True), {"ok"}),
    "daemon": (daemon, {"ok"}),
    "child, then killed": (child_then_killed, {"killed"}),
    "forks that go on": (fork_bomb, {"ok", "killed", "failed"}),
    "pool": (pool, {"ok"}),
    "thread": (thread, {"ok"}),
    "flood of lines": (lambda _: print("x\n" * 10**5), {"ok"}),
    "flood without end of line": (lambda _: sys.stderr.write("x" * 10**6), {"ok"}),
    "default dtype": (lambda _: torch.set_default_dtype(torch.float64), {"ok", "failed"}),
    "deterministic": (lambda _: torch.use_deterministic_algorithms(True), {"ok", "failed"}),
    "other folder": (lambda _: os.chdir("/"), {"ok"}),
    "no environment": (lambda _: os.environ.clear(), {"ok"}),
    "no print": (without_builtins, {"ok"}),
    "no output": (without_output, {"ok"}),
    "no descriptors": (lambda _: os.closerange(3, 256), {"ok", "killed", "failed"}),
    "no files": (no_files, {"ok", "killed", "failed"}),
    "no clock": (lambda _: setattr(time, "perf_counter", lambda: 0.0), {"ok", "failed", "killed"}),
}


class Misbehaving(torch.optim.SGD):
    """Plain SGD, that does its deed before its first step."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, deed: str) -> None:
        super().__init__(params, lr=lr)
        self.deed: str | None = deed

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.deed is not None:
            deed, self.deed = self.deed, None
            DEEDS[deed][0](self)
        super().step()


def misbehaving(deed: str) -> list[str]:
    """Return the words that make a cell's optimizer do a deed."""
    target = f"optimizer.update._target_={Misbehaving.__module__}.Misbehaving"
    return [target, f"+optimizer.update.deed='{deed}'"]

"""The harness. Its public names are loaded when they are first used: importing this package imports nothing.

A cell's process starts by it, and must not wait for pandas.
"""

TYPE_CHECKING = False  # typing's own would be an import
if TYPE_CHECKING:
    from stepscale.bench.records.tables import curves as load_curves
    from stepscale.bench.records.tables import load
    from stepscale.bench.timing.one_step import StepTime, time_step
    from stepscale.bench.timing.time_step import Settings as TimingSettings

__all__ = ["StepTime", "TimingSettings", "load", "load_curves", "time_step"]

_PLACES = {
    "StepTime": ("stepscale.bench.timing.one_step", "StepTime"),
    "TimingSettings": ("stepscale.bench.timing.time_step", "Settings"),
    "load": ("stepscale.bench.records.tables", "load"),
    "load_curves": ("stepscale.bench.records.tables", "curves"),
    "time_step": ("stepscale.bench.timing.one_step", "time_step"),
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, there = _PLACES[name]
    return getattr(import_module(module), there)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

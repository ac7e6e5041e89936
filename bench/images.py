"""Where ``digits`` and ``curves`` once were; they are in ``stepscale.bench.data`` now."""

from stepscale.bench.data import curves, digits

__all__ = ["curves", "digits"]

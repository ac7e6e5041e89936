"""Where ``load`` and ``curves`` once were; they are in ``stepscale.bench.records.tables`` now."""

from stepscale.bench.records.tables import curves, load

__all__ = ["curves", "load"]

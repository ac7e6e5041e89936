"""Where the usual density benchmarks once were; they are in ``stepscale.bench.data.density_benchmarks`` now."""

from stepscale.bench.data.density_benchmarks import bsds300, gas, hepmass, miniboone, mnist, power

__all__ = ["bsds300", "gas", "hepmass", "miniboone", "mnist", "power"]

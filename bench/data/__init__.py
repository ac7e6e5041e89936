"""Rows to measure and train on; the loaders that ``_target_`` names."""

from stepscale.bench.data.bezier_curves import curves
from stepscale.bench.data.mixtures import mixture
from stepscale.bench.data.photographs import photos
from stepscale.bench.data.scikit_digits import digits
from stepscale.bench.data.toy_densities import toy

__all__ = ["curves", "digits", "mixture", "photos", "toy"]

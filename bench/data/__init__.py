"""Rows to measure and train on; the loaders that ``_target_`` names."""

from stepscale.bench.data.bezier_curves import curves
from stepscale.bench.data.photographs import photos
from stepscale.bench.data.scikit_tables import digits, regression
from stepscale.bench.data.synthetic import lines, mixture, toy
from stepscale.bench.data.text_bytes import text

__all__ = ["curves", "digits", "lines", "mixture", "photos", "regression", "text", "toy"]

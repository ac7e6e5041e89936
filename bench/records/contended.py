"""When a measurement counts as disturbed: a part of how it is measured, unlike the rest of this folder."""

CONTENDED = 0.25  # cores that others used

"""Posteriors of a regression's coefficients, approximated by a Gaussian density."""

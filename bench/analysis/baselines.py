"""The two baselines that reports are about. Nothing else in ``bench`` knows an optimizer by its name."""

from __future__ import annotations

HONEST, NAIVE = "layerwise", "naive"
BASELINES = (
    f"`{HONEST}` (one log-determinant a layer) is the honest baseline, `{NAIVE}` (the full Jacobian of every sample) "
    "the naive one; a factor over `naive` says little about a method."
)


def base(optimizer: object) -> str:
    """Return the name of an optimizer's file: ``base("kfac[update.lr=0.1]")`` is ``"kfac"``."""
    return str(optimizer).split("[")[0]

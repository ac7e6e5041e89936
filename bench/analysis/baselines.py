"""The two baselines that reports are about. Nothing else in ``bench`` knows an optimizer by its name."""

from __future__ import annotations

HONEST, NAIVE = "layerwise", "naive"


def base(optimizer: object) -> str:
    """Return the name of an optimizer's file: ``base("kfac[update.lr=0.1]")`` is ``"kfac"``."""
    return str(optimizer).split("[")[0]

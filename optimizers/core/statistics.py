"""Where second moments come from."""

from __future__ import annotations

from enum import StrEnum


class Statistics(StrEnum):
    """Whose second moments: of samples of the model, for the true Fisher matrix, or of the data, for the empirical."""

    MODEL = "model"
    DATA = "data"


class Sharing(StrEnum):
    """How the rows of a sample that have one weight enter second moments.

    Eschenhagen, Immer, Turner, Schneider & Hennig 2023, "Kronecker-factored approximate curvature for modern neural
    network architectures", arXiv 2311.00636: each row by itself, or the mean of the inputs and the sum of the outputs'
    gradients. The former is exact, on deep linear networks, where each row has a term of the loss, the latter where the
    rows are averaged before it.
    """

    EXPAND = "expand"
    REDUCE = "reduce"

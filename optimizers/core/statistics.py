"""Where second moments come from."""

from __future__ import annotations

from enum import StrEnum


class Statistics(StrEnum):
    """Whose second moments: of samples of the model, for the true Fisher matrix, or of the data, for the empirical."""

    MODEL = "model"
    DATA = "data"

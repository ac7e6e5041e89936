"""What is trained: one file a model family."""

from stepscale.models.autoencoder import Autoencoder
from stepscale.models.choices import one_of
from stepscale.models.classifier import Classifier
from stepscale.models.determinant import inverse_transpose, log_abs_det
from stepscale.models.flow import Flow, FlowDensity
from stepscale.models.mlp import MLP
from stepscale.models.objective import LogDet, Objective, objective_of
from stepscale.models.plu import PLUFlow
from stepscale.models.protocol import (
    Batch,
    Captures,
    CapturesSamples,
    FisherRoots,
    HasLogProb,
    HasLoss,
    HasProducts,
    Invertible,
    LayerIO,
    Model,
    Samples,
    Tangents,
    TracksLogProb,
    each,
    lacking,
    offers,
    rows_of,
    slopes,
)

__all__ = [
    "MLP",
    "Autoencoder",
    "Batch",
    "Captures",
    "CapturesSamples",
    "Classifier",
    "FisherRoots",
    "Flow",
    "FlowDensity",
    "HasLogProb",
    "HasLoss",
    "HasProducts",
    "Invertible",
    "LayerIO",
    "LogDet",
    "Model",
    "Objective",
    "PLUFlow",
    "Samples",
    "Tangents",
    "TracksLogProb",
    "each",
    "inverse_transpose",
    "lacking",
    "log_abs_det",
    "objective_of",
    "offers",
    "one_of",
    "rows_of",
    "slopes",
]

"""What is trained: one file a model family."""

from stepscale.models.autoencoder import Autoencoder
from stepscale.models.classifier import Classifier
from stepscale.models.determinant import inverse_transpose, log_abs_det
from stepscale.models.flow import Flow
from stepscale.models.mlp import MLP
from stepscale.models.plu import PLUFlow
from stepscale.models.protocol import Batch, LayerIO, Model, Tangents, each, rows_of, slopes

__all__ = [
    "MLP",
    "Autoencoder",
    "Batch",
    "Classifier",
    "Flow",
    "LayerIO",
    "Model",
    "PLUFlow",
    "Tangents",
    "each",
    "inverse_transpose",
    "log_abs_det",
    "rows_of",
    "slopes",
]

"""What is trained: one file a model family."""

from stepscale.models.batch import Batch, each, require_rows, rows_of, tokens_of_row
from stepscale.models.bayes.posterior import GaussianPosterior
from stepscale.models.captured_layer import LayerIO, Part, Tangents, first, joined, reduced, slopes
from stepscale.models.choices import one_of
from stepscale.models.contract import (
    BernoulliUnits,
    Captures,
    CapturesSamples,
    CountsTerms,
    DrawsTargets,
    ExpectsTargets,
    FisherRoots,
    FisherTimes,
    HasJacobians,
    HasLogProb,
    HasLoss,
    HasProducts,
    InThePlane,
    Invertible,
    Model,
    Samples,
    TracksLogProb,
    lacking,
    offers,
)
from stepscale.models.flows.determinant import inverse_transpose, log_abs_det, log_abs_det_and_rounding, solved
from stepscale.models.flows.flow import Flow, FlowDensity
from stepscale.models.flows.maf import MAF
from stepscale.models.flows.plu_flow import PLUFlow
from stepscale.models.hooked import Hooked, Rest, with_rule
from stepscale.models.latent.helmholtz import Helmholtz
from stepscale.models.networks.autoencoder import Autoencoder
from stepscale.models.networks.classifier import Classifier
from stepscale.models.networks.convnet import ConvNet
from stepscale.models.networks.mlp import MLP
from stepscale.models.networks.quadratic import Quadratic
from stepscale.models.networks.transformer import Transformer
from stepscale.models.objective import LogDet, Objective, objective_of
from stepscale.models.quantum.thermal_state import ThermalState

__all__ = [
    "MAF",
    "MLP",
    "Autoencoder",
    "Batch",
    "BernoulliUnits",
    "Captures",
    "CapturesSamples",
    "Classifier",
    "ConvNet",
    "CountsTerms",
    "DrawsTargets",
    "ExpectsTargets",
    "FisherRoots",
    "FisherTimes",
    "Flow",
    "FlowDensity",
    "GaussianPosterior",
    "HasJacobians",
    "HasLogProb",
    "HasLoss",
    "HasProducts",
    "Helmholtz",
    "Hooked",
    "InThePlane",
    "Invertible",
    "LayerIO",
    "LogDet",
    "Model",
    "Objective",
    "PLUFlow",
    "Part",
    "Quadratic",
    "Rest",
    "Samples",
    "Tangents",
    "ThermalState",
    "TracksLogProb",
    "Transformer",
    "each",
    "first",
    "inverse_transpose",
    "joined",
    "lacking",
    "log_abs_det",
    "log_abs_det_and_rounding",
    "objective_of",
    "offers",
    "one_of",
    "reduced",
    "require_rows",
    "rows_of",
    "slopes",
    "solved",
    "tokens_of_row",
    "with_rule",
]

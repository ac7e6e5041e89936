"""What is trained: one file a model family."""

from stepscale.models.flow import Flow
from stepscale.models.protocol import Batch, LayerIO, Model

__all__ = ["Batch", "Flow", "LayerIO", "Model"]

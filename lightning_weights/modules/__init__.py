"""Networks, layers and LightningModules."""

from lightning_weights.modules.classifier import Classifier
from lightning_weights.modules.mlp import MLP

__all__ = ["MLP", "Classifier"]

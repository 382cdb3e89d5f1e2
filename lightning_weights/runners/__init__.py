"""Runners: what drives several fits of one method, or more than a fit."""

from lightning_weights.runners.cross_fit import CrossFit, cross_fit
from lightning_weights.runners.incremental import IncrementalResults, IncrementalRunner
from lightning_weights.runners.k_fold import KFoldResults, KFoldRunner
from lightning_weights.runners.quantization import QuantizationRunner
from lightning_weights.runners.signature import SignatureNetworks, SignatureTrainer
from lightning_weights.runners.stacking import StackingRunner

__all__ = [
    "CrossFit",
    "IncrementalResults",
    "IncrementalRunner",
    "KFoldResults",
    "KFoldRunner",
    "QuantizationRunner",
    "SignatureNetworks",
    "SignatureTrainer",
    "StackingRunner",
    "cross_fit",
]

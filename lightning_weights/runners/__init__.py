"""Runners: what drives several fits of one method, or more than a fit."""

from lightning_weights.runners.incremental import IncrementalResults, IncrementalRunner
from lightning_weights.runners.quantization import QuantizationRunner

__all__ = ["IncrementalResults", "IncrementalRunner", "QuantizationRunner"]

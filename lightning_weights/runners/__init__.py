"""Runners: what drives several fits of one method."""

from lightning_weights.runners.incremental import IncrementalResults, IncrementalRunner

__all__ = ["IncrementalResults", "IncrementalRunner"]

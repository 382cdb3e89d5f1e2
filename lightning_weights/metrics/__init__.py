"""Metrics that the methods are judged by."""

from lightning_weights.metrics.task_accuracy import TaskAccuracyMatrix

__all__ = ["TaskAccuracyMatrix"]

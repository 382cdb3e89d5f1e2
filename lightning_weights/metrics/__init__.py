"""Metrics that the methods are judged by."""

from lightning_weights.metrics.adversarial_accuracy import AdversarialAccuracy
from lightning_weights.metrics.condition_number import ConditionNumber
from lightning_weights.metrics.equivariance_error import EquivarianceError
from lightning_weights.metrics.hypervolume import Hypervolume
from lightning_weights.metrics.oscillation_rate import OscillationRate
from lightning_weights.metrics.task_accuracy import TaskAccuracyMatrix
from lightning_weights.metrics.verified_error import VerifiedError

__all__ = [
    "AdversarialAccuracy",
    "ConditionNumber",
    "EquivarianceError",
    "Hypervolume",
    "OscillationRate",
    "TaskAccuracyMatrix",
    "VerifiedError",
]

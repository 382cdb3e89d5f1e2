"""Callbacks: when and where a method acts in training."""

from lightning_weights.callbacks.classp import CLASSPPhases
from lightning_weights.callbacks.exact_resume import ExactResume
from lightning_weights.callbacks.task_stream import TaskStream

__all__ = ["CLASSPPhases", "ExactResume", "TaskStream"]

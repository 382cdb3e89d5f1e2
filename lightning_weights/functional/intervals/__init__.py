"""Interval bound propagation through networks of any shape, by torch.fx."""

from lightning_weights.functional.intervals import standard_rules  # noqa: F401  registers them
from lightning_weights.functional.intervals.crown import crown_fused_loss, crown_margins
from lightning_weights.functional.intervals.interpreter import IntervalInterpreter, interval_forward
from lightning_weights.functional.intervals.interval import Interval, IntervalOutput, PreActivation
from lightning_weights.functional.intervals.registry import register_interval_rule
from lightning_weights.functional.intervals.rules import monotone, positive_linear

__all__ = [
    "Interval",
    "IntervalInterpreter",
    "IntervalOutput",
    "PreActivation",
    "crown_fused_loss",
    "crown_margins",
    "interval_forward",
    "monotone",
    "positive_linear",
    "register_interval_rule",
]

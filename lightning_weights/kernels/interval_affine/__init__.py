"""Interval propagation through affine layers: centres and half-widths through one load of every weight."""

from __future__ import annotations

from lightning_weights.kernels.interval_affine.affine import interval_affine
from lightning_weights.kernels.interval_affine.margins import interval_margins
from lightning_weights.kernels.interval_affine.reference import (
    IntervalAffine,
    interval_affine_reference,
    interval_margins_reference,
    rounding_slack,
)

__all__ = [
    "IntervalAffine",
    "interval_affine",
    "interval_affine_reference",
    "interval_margins",
    "interval_margins_reference",
    "rounding_slack",
]

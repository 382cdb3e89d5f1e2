"""Oscillation-free quantization: quantizers of weights and activations, annealing, and the product of attention."""

from lightning_weights.functional.ofq.attention import key_bias, movable_factors, score_matrix
from lightning_weights.functional.ofq.boundary_range import updates_per_range
from lightning_weights.functional.ofq.lsq import lsq, lsq_bounds, lsq_codes, lsq_step
from lightning_weights.functional.ofq.oscillation import (
    FreezingState,
    OscillationCounts,
    OscillationState,
    start_freezing,
    start_oscillation,
    update_freezing,
    update_oscillation,
)
from lightning_weights.functional.ofq.weights import CodedWeight, boundary_mask, confidence, stats_codes, statsq

__all__ = [
    "CodedWeight",
    "FreezingState",
    "OscillationCounts",
    "OscillationState",
    "boundary_mask",
    "confidence",
    "key_bias",
    "lsq",
    "lsq_bounds",
    "lsq_codes",
    "lsq_step",
    "movable_factors",
    "score_matrix",
    "start_freezing",
    "start_oscillation",
    "stats_codes",
    "statsq",
    "update_freezing",
    "update_oscillation",
    "updates_per_range",
]

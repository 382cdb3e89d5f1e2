"""Electronic synapses: what devices do, how pairs are programmed, and how a curve is fitted."""

from lightning_weights.functional.hw_synapse.curves import CurveFit, fit_curve, read_table
from lightning_weights.functional.hw_synapse.programming import clipped_share, default_scale, target_states
from lightning_weights.functional.hw_synapse.signals import quantize_errors, quantize_inputs

__all__ = [
    "CurveFit",
    "clipped_share",
    "default_scale",
    "fit_curve",
    "quantize_errors",
    "quantize_inputs",
    "read_table",
    "target_states",
]

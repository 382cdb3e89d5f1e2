"""Post-training quantization of networks: which layers, from which inputs, in which order."""

from lightning_weights.modules.quantization.beta_sweep import BetaChoice, sweep_beta
from lightning_weights.modules.quantization.packing import make_room
from lightning_weights.modules.quantization.post_training import quantize
from lightning_weights.modules.quantization.report import LayerReport, QuantizationReport

__all__ = ["BetaChoice", "LayerReport", "QuantizationReport", "make_room", "quantize", "sweep_beta"]

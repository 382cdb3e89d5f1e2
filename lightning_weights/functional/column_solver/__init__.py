"""Quantization column by column, errors compensated by later columns: GPTQ, GPTAQ, ResComp and FOEM."""

from lightning_weights.functional.column_solver.config import CompensationConfig, FOEMConfig
from lightning_weights.functional.column_solver.factors import Factors, factorize
from lightning_weights.functional.column_solver.grids import (
    dequantize,
    group_grids,
    group_index,
    round_to_grid,
    search_grid,
)
from lightning_weights.functional.column_solver.solve import QuantizedWeight, quantize_weight, relative_error
from lightning_weights.functional.column_solver.statistics import InputStatistics
from lightning_weights.functional.column_solver.sweep import BetaSweep, sweep_beta

__all__ = [
    "BetaSweep",
    "CompensationConfig",
    "FOEMConfig",
    "Factors",
    "InputStatistics",
    "QuantizedWeight",
    "dequantize",
    "factorize",
    "group_grids",
    "group_index",
    "quantize_weight",
    "relative_error",
    "round_to_grid",
    "search_grid",
    "sweep_beta",
]

"""Strategies: what a method saves in communication between processes."""

from lightning_weights.strategies.gradient_reduction import GradientReduction
from lightning_weights.strategies.low_rank_ddp import LowRankDDPStrategy, LowRankReduction
from lightning_weights.strategies.sparse_ddp import SparseDDPStrategy, SparseReduction

__all__ = ["GradientReduction", "LowRankDDPStrategy", "LowRankReduction", "SparseDDPStrategy", "SparseReduction"]

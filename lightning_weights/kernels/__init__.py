"""Operators: one file or folder each with eager reference, Triton kernel, cost model and registration."""

import os

# Triton's default for fusing products and sums changes between releases: kernels that promise the reference's bits say
# so themselves, all others keep this. It must be set before triton is imported.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from lightning_weights.kernels._op import Cost, kernel_mode, local_shards, use_kernels

__all__ = ["Cost", "kernel_mode", "local_shards", "use_kernels"]

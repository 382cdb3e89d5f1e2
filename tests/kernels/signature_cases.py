"""Data and an independent oracle for tests of packed signatures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.kernels.buffers import SHAPES

BITS = (2, 3, 4, 5, 6, 7, 8)


def packed(codes: Sequence[int], bits: int) -> Tensor:
    """One number of all codes, the first one lowest, in bytes."""
    number = sum(int(code) << bits * i for i, code in enumerate(codes))
    return torch.tensor(list(number.to_bytes(-(-len(codes) * bits // 8), "little")), dtype=torch.uint8)


def problem(dtype: torch.dtype = torch.float32, bits: Sequence[int] = BITS, shapes: Any = SHAPES) -> dict[str, Any]:
    """Arguments of the operator, every third stream missing, and what the streams hold."""
    bases = [torch.randn(shape).to(dtype) for shape in shapes]
    held = [[torch.randint(2**each, (base.numel(),)) for base in bases] for each in bits]
    streams = [
        [None if (i + t) % 3 == 2 else packed(codes.tolist(), bits[i]) for t, codes in enumerate(row)]
        for i, row in enumerate(held)
    ]
    size = (len(bits), len(bases))
    return {
        "bases": bases,
        "codes": streams,
        "low": -torch.rand(size),
        "high": torch.rand(size),
        "scales": [(0.7, -1.3, 0.0, 0.25)[i % 4] for i in range(len(bits))],
        "bits": list(bits),
        "held": held,
    }


def oracle(held: list[list[Tensor]], *, bases: Any, codes: Any, low: Any, high: Any, scales: Any, bits: Any) -> Any:
    """Sum in fp32 in numpy, one rounding per operation, and round once at the end."""
    sums = []
    for t, base in enumerate(bases):
        total = base.float().numpy().copy()
        for i, scale in enumerate(scales):
            if codes[i][t] is not None and scale != 0.0:
                smallest, largest = np.float32(low[i, t]), np.float32(high[i, t])
                step = (largest - smallest) / np.float32(2 ** bits[i] - 1)
                q = held[i][t].numpy().reshape(total.shape)
                value = np.where(q == 2 ** bits[i] - 1, largest, q.astype(np.float32) * step + smallest)
                total = total + np.float32(scale) * value
        sums.append(torch.from_numpy(total).to(base.dtype))
    return sums

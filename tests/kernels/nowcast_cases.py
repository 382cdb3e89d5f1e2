"""Data and an independent oracle for tests of KNOWN's predictions."""

import numpy as np
import torch
from torch import Tensor

from lightning_weights.kernels.nowcast import parameter_count

SIZES = [(64, 0), (8, 64), (64, 8), (64, 8), (64, 8), (32, 64)]  # of A (its inputs vary), B, C, E, F and G


def data(count: int, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Histories and parameters with which every part of the network has something to say."""
    return torch.randn(count, length).mul_(0.5).to(dtype), torch.randn(parameter_count(length)).mul_(0.15).to(dtype)


def oracle(history: Tensor, parameters: Tensor, recursions: int, slope: float = 0.3) -> Tensor:
    """Predict in float64, without PyTorch, from the packing order as it is written down."""
    flat, windows, taken = parameters.double().numpy(), history.double().numpy(), 0
    streams = []
    for inputs in (windows.shape[1], windows.shape[1] - 1):
        layers = []
        for rows, columns in SIZES:
            matrix = flat[taken : taken + rows * (columns or inputs)].reshape(rows, -1)
            taken += matrix.size
            layers.append((matrix, flat[taken : taken + rows]))
            taken += rows
        streams.append(layers)
    found = []
    for _ in range(recursions):
        ends = []
        for x, layers in zip((windows, windows[:, 1:] - windows[:, :-1]), streams, strict=True):
            (a, b, c, e, f, g) = layers
            u = x @ a[0].T + a[1]
            z = np.maximum(u @ b[0].T + b[1], 0.0)
            exponent = np.minimum((z @ f[0].T + f[1]) * u, 80.0)
            v = (z @ c[0].T + c[1] + (z @ e[0].T + e[1]) * np.exp(exponent)) @ g[0].T + g[1]
            ends.append(np.where(v > 0.0, v, slope * v))
        delta = np.tanh(np.concatenate(ends, axis=1) @ flat[taken:-1] + flat[-1])
        found.append(windows[:, -1] + delta)
        windows = np.concatenate([windows[:, 1:], found[-1][:, None]], axis=1)
    return torch.from_numpy(np.stack(found, axis=1))

"""Data and an independent oracle for tests of the cross-entropy per sample."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100


def batch(samples: int, length: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits spread over several units, and labels of which the first and some others are ignored."""
    logits = 3.0 * torch.randn(samples, length, classes)
    labels = torch.randint(classes, (samples, length))
    labels[torch.rand(samples, length) < 0.3] = IGNORED
    return logits.to(dtype), labels


def oracle(
    logits: Tensor, labels: Tensor, weights: Tensor, samples: Tensor | None = None, num_samples: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of samples, and the gradient of their weighted sum, in float64, token by token."""
    z, y = logits.detach().double().numpy(), labels.numpy()
    owner = np.arange(len(y))[:, None] * np.ones_like(y) if samples is None else samples.numpy()
    size = len(y) if num_samples is None else num_samples
    sums, counts, gradient = np.zeros(size), np.zeros(size), np.zeros(z.shape)
    tokens = [place for place in np.ndindex(y.shape) if y[place] != IGNORED and 0 <= owner[place] < size]
    for place in tokens:
        sums[owner[place]] -= np.log(_softmax(z[place])[y[place]])
        counts[owner[place]] += 1
    for place in tokens:
        scale = float(weights[owner[place]]) / counts[owner[place]]
        gradient[place] = scale * _softmax(z[place])
        gradient[place][y[place]] -= scale
    return sums / np.maximum(counts, 1), gradient


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def losses_and_gradient(function: Any, logits: Tensor, labels: Tensor, weights: Tensor, *samples: Any) -> Any:
    """Losses, and the gradient of their weighted sum with respect to the logits, which keep their strides."""
    leaf = logits.detach().requires_grad_()
    losses = function(leaf, labels, *samples)
    return losses.detach(), torch.autograd.grad((weights * losses).sum(), leaf)[0]


def head(samples: int, length: int, width: int, classes: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Hidden states, matrix, bias and labels."""
    _, labels = batch(samples, length, classes)
    shapes = (samples, length, width), (classes, width), (classes,)
    return [*(torch.randn(shape, dtype=dtype) for shape in shapes), labels]

"""Inputs and a float64 oracle for the tests of companding."""

import numpy as np
import torch

FUNCTIONS = ("arctan", "tanh", "softsign")
# Latent shape and number of scales: single, odd, a block and one more, a convolution, long rows, and several of them.
CASES = (((1, 1), 1), ((7,), 1), ((2, 16), 2), ((1025,), 1), ((4, 3, 3, 3), 4), ((3, 1111), 1), ((2, 5000), 2))


def inputs(shape, scales, dtype=torch.float32):
    """Latents from far inside to far outside the width, scales, widths and upstream gradients."""
    wide = torch.promote_types(dtype, torch.float32)
    latent = (torch.randn(shape) * 10.0 ** torch.randint(-2, 2, shape)).to(dtype)
    return (
        latent,
        torch.rand(scales, dtype=wide) + 0.5,
        torch.rand(scales, dtype=wide) + 0.5,
        torch.randn(shape).to(dtype),
    )


def oracle(latent, a, b, upstream, function):
    """Weights and the gradients to latents, scales and widths in numpy's float64."""
    v, g = (t.detach().double().numpy().reshape(len(a), -1) for t in (latent, upstream))
    a, b = (t.detach().double().numpy()[:, None] for t in (a, b))
    r = v / b
    unit = {"arctan": np.arctan, "tanh": np.tanh, "softsign": lambda x: x / (1 + abs(x))}[function](r)
    slope = {"arctan": 1 / (1 + r**2), "tanh": np.cosh(np.clip(r, -300, 300)) ** -2.0, "softsign": (1 + abs(r)) ** -2.0}
    slope = slope[function]
    results = a * unit, g * a / b * slope, (g * unit).sum(1), (-a / b * g * r * slope).sum(1)
    return [results[0].reshape(latent.shape), results[1].reshape(latent.shape), *results[2:]]

"""Inputs and a float64 oracle for the tests of mixing."""

import numpy as np
import torch

# Templates per set, shape of a block, sets of the blocks in reading order, blocks beside each other: a single number,
# a member alone, stem and head, four blocks in both orders, rows of one vector, a block and more, and several tiles.
CASES = (
    (1, (1, 1), (0,), 1),
    (3, (5, 7), (0,), 1),
    (2, (6, 3, 3, 3), (0, 1), 1),
    (2, (7, 8), (0, 1), 2),
    (2, (6, 4, 3), (0, 0, 1, 1), 2),
    (4, (3, 16), (0, 1, 0, 1), 2),
    (2, (2, 1025), (0, 0, 1, 1), 2),
    (2, (33, 48), (0, 0, 1, 1), 2),
)


def inputs(count, shape, sets, dtype=torch.float32):
    """Templates of each set, coefficients, and nothing else."""
    wide = torch.promote_types(dtype, torch.float32)
    templates = [torch.randn(count, *shape).to(dtype) for _ in range(max(sets) + 1)]
    return templates, torch.randn(len(sets), count, dtype=wide)


def oracle(templates, coefficients, sets, columns, upstream=None):
    """The weight, or the gradients to templates and coefficients, entry by entry in numpy's float64."""
    parts = [part.detach().double().numpy() for part in templates]
    alpha = coefficients.detach().double().numpy()
    _, o, i = parts[0].shape[:3]
    places = [divmod(block, columns) for block in range(len(sets))]
    places = [(slice(r * o, r * o + o), slice(c * i, c * i + i)) for r, c in places]
    if upstream is None:
        weight = np.full((o * (len(sets) // columns), i * columns, *parts[0].shape[3:]), np.nan)
        for place, factors, which in zip(places, alpha, sets, strict=True):
            weight[place] = sum(factor * template for factor, template in zip(factors, parts[which], strict=True))
        return weight
    slope = upstream.detach().double().numpy()
    grads, grad_alpha = [np.zeros_like(part) for part in parts], np.zeros_like(alpha)
    for block, (place, which) in enumerate(zip(places, sets, strict=True)):
        for t in range(len(parts[which])):
            grads[which][t] += alpha[block, t] * slope[place]
            grad_alpha[block, t] = (slope[place] * parts[which][t]).sum()
    return [*grads, grad_alpha]


def tolerances(dtype, upstream):
    """Relative and absolute tolerances of templates' gradients, and of sums, which cancel."""
    step = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    return step, step * (1.0 + float(upstream.double().abs().sum()))

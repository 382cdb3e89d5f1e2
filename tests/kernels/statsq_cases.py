"""Inputs and an oracle in numpy for the tests of the statistics-based quantizer."""

import numpy as np
import torch

SHAPES = ((1, 1), (3, 7), (5, 48), (4, 512), (3, 1111))
MOMENTUM, THRESHOLD, RANGE = 0.25, 0.2, 0.1


def inputs(shape, dtype=torch.float32):
    """A weight with outliers and a row of zeros where there are several."""
    weight = torch.randn(shape)
    weight[:, ::5] *= 4.0
    if len(weight) > 2:
        weight[1] = 0.0
    return weight.to(dtype)


def tracker(shape, bits, ema_dtype=torch.float32):
    """Codes of some step before, directions and averages."""
    n = 2 ** (bits - 1)
    return [
        torch.randint(-n, n, shape).to(torch.int8),
        torch.randint(-1, 2, shape).to(torch.int8),
        torch.rand(shape).mul_(0.5).to(ema_dtype),
    ]


def oracle(weight, bits):
    """Codes, steps, values and distances to the nearest threshold, looked up one threshold at a time."""
    w = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).numpy()
    n, number = 2 ** (bits - 1), w.dtype.type
    s = (2.0 * np.abs(w).mean(1, dtype=np.float64)).astype(number)[:, None]
    ratio = np.divide(w, s, out=np.zeros_like(w), where=s > 0)
    u = np.clip(ratio, number(-1), number(1 - 1e-6)) * number(n) - number(0.5)
    codes = np.rint(u)
    values = s * (codes + number(0.5)) / number(n)
    distance = np.abs(u[..., None] - (np.arange(-n, n - 1) + 0.5)).min(-1)
    return codes, (s / n)[:, 0], torch.from_numpy(values).to(weight.dtype), distance


def advanced(codes, state):
    """The tracker after a step, one weight at a time: codes, directions, averages; and the first three counts."""
    previous, direction, ema = (tensor.flatten().tolist() for tensor in state)
    flips = turns = 0
    for i, code in enumerate(int(code) for code in np.ravel(codes)):
        way = (previous[i] > code) - (previous[i] < code)
        turned = way != 0 and way == -direction[i]
        ema[i] = MOMENTUM * turned + (1 - MOMENTUM) * ema[i]
        flips += way != 0
        turns += turned
        direction[i] = way or direction[i]
        previous[i] = code
    return previous, direction, ema, [flips, turns, sum(value > THRESHOLD for value in ema)]

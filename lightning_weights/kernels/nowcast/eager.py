"""KNOWN's predictions without Triton: a few hundred weights at a time, which stay in the cache from end to end."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.kernels.nowcast.reference import (
    FEATURES,
    GATES,
    HIGHEST_EXPONENT,
    WIDTH,
    Stream,
    split_parameters,
)

CHUNK = 1024  # weights at a time on the CPU: buffers of a stream stay in its caches, and calls cost little
DEVICE_CHUNK = 1 << 16  # elsewhere
LINE = 16  # weights at a time are a multiple: products of other numbers round differently, depending on the company
BITS = math.log2(math.e)  # exponents are scaled by it: powers of two take two thirds of the time of powers of e


class Folded(NamedTuple):
    """A stream's matrices, with as few products as possible; each but ``v`` has its bias behind it.

    Attributes:
        u: Of u, (inputs + 1, 64).
        z: Of z, straight from the inputs, with a number behind it that is always 1, (9, inputs + 1).
        p: Of p, (9, 64).
        q: Of q log2(e), (9, 64).
        v: Of v, from p exp(q u), (64, 32).
        vz: Of v, straight from z, (9, 32).
    """

    u: Tensor
    z: Tensor
    p: Tensor
    q: Tensor
    v: Tensor
    vz: Tensor


def fold(stream: Stream) -> Folded:
    """Multiply out what no function lies between: z depends on u linearly, and v on g.

    Args:
        stream: Parameters of a stream.

    Returns:
        The matrices.
    """
    pairs = (stream.A, stream.a), (stream.C, stream.c), (stream.E, stream.e), (stream.F, stream.f)
    u, g, p, q = (torch.cat([matrix, bias.unsqueeze(1)], dim=1) for matrix, bias in pairs)
    z = u.new_zeros(GATES + 1, u.shape[1])
    z[:GATES] = stream.B @ u
    z[:GATES, -1] += stream.b
    z[GATES, -1] = 1.0
    vz = stream.G @ g
    vz[:, -1] += stream.h0
    return Folded(u.t(), z, p.t(), q.t() * BITS, stream.G.t(), vz.t())


class _Memory(NamedTuple):
    """What a chunk is worked on in; of the first three, columns are weights.

    A recursion looks at some rows of a window, which end with a row of ones, for the bias: its prediction takes their
    place, and the next row of ones follows.
    """

    w: Tensor
    dw: Tensor
    z: Tensor
    u: Tensor
    p: Tensor
    q: Tensor
    v: Tensor

    @classmethod
    def like(cls, history: Tensor, recursions: int, n: int) -> _Memory:
        rows = (history.shape[1] + recursions, history.shape[1] - 1 + recursions, GATES + 1)
        columns = (WIDTH, WIDTH, WIDTH, 2 * FEATURES)
        return cls(
            *(history.new_empty(size, n) for size in rows),
            *(history.new_empty(n, size) for size in columns),
        )


def nowcast_in_chunks(history: Tensor, parameters: Tensor, recursions: int, leaky_slope: float) -> Tensor:
    """Predict; arguments and result as in the registered operator."""
    found = history.new_empty(len(history), recursions)
    with torch.inference_mode():  # spares every call the autograd layers
        _predict(history, parameters, leaky_slope, found)
    return found


def _predict(history: Tensor, parameters: Tensor, leaky_slope: float, found: Tensor) -> None:
    length, recursions = history.shape[1], found.shape[1]
    known = split_parameters(parameters, length)
    streams = fold(known.w), fold(known.dw)
    most = CHUNK if history.device.type == "cpu" else DEVICE_CHUNK
    memory = None
    for start in range(0, len(history), most):
        some = history[start : start + most]
        padded = -(-len(some) // LINE) * LINE
        if memory is None or len(memory.v) != padded:
            memory = _Memory.like(history, recursions, padded)
        memory.w[:length, : len(some)] = some.t()
        memory.w[:length, len(some) :] = 0.0
        memory.w[length:], memory.dw[length - 1 :] = 1.0, 1.0
        torch.sub(memory.w[1:length], memory.w[: length - 1], out=memory.dw[: length - 1])
        for last in range(length, length + recursions):
            _run(memory.w[last - length : last + 1], streams[0], memory, memory.v[:, :FEATURES])
            _run(memory.dw[last - length : last], streams[1], memory, memory.v[:, FEATURES:])
            torch.nn.functional.leaky_relu_(memory.v, leaky_slope)
            torch.addmv(known.o_0, memory.v, known.o, out=memory.dw[last - 1]).tanh_()
            torch.add(memory.w[last - 1], memory.dw[last - 1], out=memory.w[last])
        found[start : start + len(some)] = memory.w[length:, : len(some)].t()


def _run(x: Tensor, stream: Folded, memory: _Memory, v: Tensor) -> None:
    """Write what goes into a stream's leaky ReLU to ``v``."""
    _, _, z, u, p, q, *_ = memory
    torch.mm(x.t(), stream.u, out=u)
    torch.mm(stream.z, x, out=z).relu_()
    torch.mm(z.t(), stream.p, out=p)
    torch.mm(z.t(), stream.q, out=q).mul_(u).clamp_(max=BITS * HIGHEST_EXPONENT).exp2_().mul_(p)
    torch.mm(q, stream.v, out=v).addmm_(z.t(), stream.vz)

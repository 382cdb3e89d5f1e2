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

CHUNK = 2048  # weights at a time on the CPU: buffers of a stream stay in its caches, and calls cost little
DEVICE_CHUNK = 1 << 16  # elsewhere
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
    z = torch.cat([stream.B @ stream.A, (stream.B @ stream.a + stream.b).unsqueeze(1)], dim=1)
    one = torch.zeros_like(z[:1])
    one[0, -1] = 1.0
    vz = torch.cat([stream.G @ stream.C, (stream.G @ stream.c + stream.h0).unsqueeze(1)], dim=1)
    p, q, u = (
        torch.cat([matrix, bias.unsqueeze(1)], dim=1).t().contiguous()
        for matrix, bias in ((stream.E, stream.e), (stream.F, stream.f), (stream.A, stream.a))
    )
    return Folded(u, torch.cat([z, one]), p, q * BITS, stream.G.t().contiguous(), vz.t().contiguous())


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
    n = min(len(history), CHUNK if history.device.type == "cpu" else DEVICE_CHUNK)
    memory = _Memory.like(history, recursions, n)
    for start in range(0, len(history), max(n, 1)):
        some = history[start : start + n]
        if len(some) < n:
            memory = _Memory.like(history, recursions, len(some))
        memory.w[:length] = some.t()
        memory.w[length:], memory.dw[length - 1 :] = 1.0, 1.0
        torch.sub(memory.w[1:length], memory.w[: length - 1], out=memory.dw[: length - 1])
        for last in range(length, length + recursions):
            _run(memory.w[last - length : last + 1], streams[0], memory, memory.v[:, :FEATURES])
            _run(memory.dw[last - length : last], streams[1], memory, memory.v[:, FEATURES:])
            torch.nn.functional.leaky_relu_(memory.v, leaky_slope)
            torch.addmv(known.o_0, memory.v, known.o, out=memory.dw[last - 1]).tanh_()
            torch.add(memory.w[last - 1], memory.dw[last - 1], out=memory.w[last])
        found[start : start + len(some)] = memory.w[length:].t()


def _run(x: Tensor, stream: Folded, memory: _Memory, v: Tensor) -> None:
    """Write what goes into a stream's leaky ReLU to ``v``."""
    _, _, z, u, p, q, *_ = memory
    torch.mm(x.t(), stream.u, out=u)
    torch.mm(stream.z, x, out=z).relu_()
    torch.mm(z.t(), stream.p, out=p)
    torch.mm(z.t(), stream.q, out=q).mul_(u).clamp_(max=BITS * HIGHEST_EXPONENT).exp2_().mul_(p)
    torch.mm(q, stream.v, out=v).addmm_(z.t(), stream.vz)

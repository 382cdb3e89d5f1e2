"""Specification of the KNOWN network's predictions in plain PyTorch."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

WIDTH, GATES, FEATURES = 64, 8, 32  # numbers u of a stream, z in its middle, and v at its end
HIGHEST_EXPONENT = 80.0  # e^80 times anything usual still is a number in fp32


class Stream(NamedTuple):
    """Matrices, (out, in), and biases of one of the two streams.

    Attributes:
        A: Of u, linear in the input.
        a: Its bias.
        B: Of z, behind a ReLU.
        b: Its bias.
        C: Of g, linear in z.
        c: Its bias.
        E: Of p, linear in z.
        e: Its bias.
        F: Of q, linear in z.
        f: Its bias.
        G: Of v, linear in h = g + p exp(q u).
        h0: Its bias.

    Examples:
        >>> split_parameters(torch.zeros(parameter_count(5)), history=5).w.A.shape
        torch.Size([64, 5])
    """

    A: Tensor
    a: Tensor
    B: Tensor
    b: Tensor
    C: Tensor
    c: Tensor
    E: Tensor
    e: Tensor
    F: Tensor
    f: Tensor
    G: Tensor
    h0: Tensor


class Parameters(NamedTuple):
    """All parameters of a KNOWN network.

    Attributes:
        w: Stream of the weights themselves.
        dw: Stream of their differences.
        o: Of the prediction, linear in both streams' ends.
        o_0: Its bias.

    Examples:
        >>> split_parameters(torch.zeros(parameter_count(5)), history=5).o.shape
        torch.Size([64])
    """

    w: Stream
    dw: Stream
    o: Tensor
    o_0: Tensor


def _shapes(history: int) -> list[tuple[int, ...]]:
    """Return the shapes of all parts in the order in which they are packed."""
    shapes: list[tuple[int, ...]] = []
    for inputs in (history, history - 1):
        matrices: list[tuple[int, ...]] = [(WIDTH, inputs), (GATES, WIDTH), *[(WIDTH, GATES)] * 3, (FEATURES, WIDTH)]
        shapes += [shape for matrix in matrices for shape in (matrix, matrix[:1])]
    return [*shapes, (2 * FEATURES,), ()]


def parameter_count(history: int) -> int:
    """Return the number of parameters of a KNOWN network.

    Args:
        history: Weights that it looks back at, at least 2.

    Examples:
        >>> parameter_count(5)
        9425
    """
    return sum(map(prod, _shapes(history)))


def check_parameters(parameters: Tensor, history: int) -> None:
    """Raise unless packed parameters are as many as a history needs.

    Args:
        parameters: Packed parameters.
        history: Weights that the network looks back at.

    Raises:
        ValueError: If there are more or fewer parameters.

    Examples:
        >>> check_parameters(torch.zeros(9425), history=5)
    """
    expected = parameter_count(history) if history >= 2 else 0
    if parameters.shape != (expected,) or not expected:
        raise ValueError(
            f"parameters have shape {tuple(parameters.shape)} for a history of {history}; allowed are 2 or more "
            f"weights of history, and ({expected},) for the parameters"
        )


def split_parameters(parameters: Tensor, history: int) -> Parameters:
    """Return views of packed parameters.

    Args:
        parameters: One after the other as `Parameters` and `Stream` list them, (``parameter_count(history)``,).
        history: Weights that the network looks back at.

    Returns:
        Matrices, vectors and the last bias, of no dimensions.

    Raises:
        ValueError: If there are more or fewer parameters.

    Examples:
        >>> split_parameters(torch.zeros(9425), history=5).w.A.shape
        torch.Size([64, 5])
    """
    check_parameters(parameters, history)
    shapes = _shapes(history)
    flat = parameters.split([prod(shape) for shape in shapes])
    parts = [part.view(shape) for part, shape in zip(flat, shapes, strict=True)]
    return Parameters(Stream(*parts[:12]), Stream(*parts[12:24]), *parts[24:])


def _run(x: Tensor, stream: Stream, leaky_slope: float) -> Tensor:
    linear, relu = torch.nn.functional.linear, torch.nn.functional.relu
    u = linear(x, stream.A, stream.a)
    z = relu(linear(u, stream.B, stream.b))
    g, p, q = linear(z, stream.C, stream.c), linear(z, stream.E, stream.e), linear(z, stream.F, stream.f)
    h = g + p * (q * u).clamp(max=HIGHEST_EXPONENT).exp()
    return torch.nn.functional.leaky_relu(linear(h, stream.G, stream.h0), leaky_slope)


def known_delta(history: Tensor, parameters: Tensor, leaky_slope: float = 0.3) -> Tensor:
    r"""Return how far a KNOWN network expects weights to move with more data.

    For x the weights w of the history, and for x their differences, each with parameters of its own,

    $$u = Ax + a, \quad z = \mathrm{ReLU}(Bu + b), \quad h = (Cz + c) + (Ez + e) \odot e^{(Fz + f) \odot u}, \quad
      v = \mathrm{LeakyReLU}(Gh + h_0)$$

    $$\delta = \tanh(o \cdot [v_w; v_{dw}] + o_0)$$

    Exponents above 80 are 80.

    Args:
        history: Values of every weight, from the most forgotten to the last, (N, S).
        parameters: Of the network, packed, see [`split_parameters`][].
        leaky_slope: Slope of the leaky ReLU below zero.

    Returns:
        Deltas, (N,), differentiable in history and parameters.

    Source: Jang, Kim and Kim 2026, arXiv:2508.05059.

    Examples:
        >>> known_delta(torch.rand(3, 5), torch.zeros(9425))
        tensor([0., 0., 0.])
    """
    known = split_parameters(parameters, history.shape[-1])
    v = torch.cat([_run(history, known.w, leaky_slope), _run(history.diff(dim=-1), known.dw, leaky_slope)], dim=-1)
    return torch.tanh(v @ known.o + known.o_0)


def nowcast_reference(history: Tensor, parameters: Tensor, recursions: int = 1, leaky_slope: float = 0.3) -> Tensor:
    """Predict weights, and go on from the prediction.

    Args:
        history: Values of every weight, from the most forgotten to the last, (N, S).
        parameters: Of the KNOWN network, packed, see [`split_parameters`][].
        recursions: Predictions; each but the first one looks back at the one before.
        leaky_slope: Slope of the leaky ReLU below zero.

    Returns:
        Predictions, (N, recursions), differentiable in history and parameters.

    Examples:
        >>> nowcast_reference(torch.tensor([[0.1, 0.2, 0.3]]), torch.zeros(parameter_count(3)), recursions=2)
        tensor([[0.3000, 0.3000]])
    """
    predictions = []
    for _ in range(recursions):
        predictions.append(history[:, -1] + known_delta(history, parameters, leaky_slope))
        history = torch.cat([history[:, 1:], predictions[-1][:, None]], dim=1)
    return torch.stack(predictions, dim=1)

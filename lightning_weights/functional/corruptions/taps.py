"""Linear filters and shifts of images, element by element, so that no bit depends on the size of the batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Border = Literal["edge", "mirror", "symmetric"]


def inside(places: Tensor, size: int, border: Border = "edge") -> Tensor:
    """Return where to read for places that may lie outside of 0 to ``size - 1``.

    Args:
        places: Whole numbers.
        size: How many places there are.
        border: ``edge``: the last one is repeated. ``mirror``: c b | a b c | b a. ``symmetric``: b a | a b c | c b.

    Examples:
        >>> places = torch.arange(-2, 5)
        >>> [inside(places, 3, border).tolist() for border in ("mirror", "symmetric")]
        [[2, 1, 0, 1, 2, 1, 0], [1, 0, 0, 1, 2, 2, 1]]
    """
    if border == "edge" or size == 1:
        return places.clamp(0, size - 1)
    period, last = (2 * size - 2, 2 * size - 2) if border == "mirror" else (2 * size, 2 * size - 1)
    wrapped = places.remainder(period)
    return torch.minimum(wrapped, last - wrapped)


def weigh_taps(x: Tensor, dim: int, places: Tensor, weights: Tensor) -> Tensor:
    """Make each entry along a dimension from a few others, as a weighted sum in a fixed order.

    Args:
        x: Any tensor.
        dim: Dimension.
        places: Where to read, int64 of shape (entries, taps).
        weights: What to multiply with, of the same shape.

    Examples:
        >>> weigh_taps(torch.tensor([1.0, 2.0, 4.0]), 0, torch.tensor([[0, 1], [1, 2]]), torch.full((2, 2), 0.5))
        tensor([1.5000, 3.0000])
    """
    shape = [1] * x.ndim
    shape[dim] = -1
    places, weights = places.to(x.device), weights.to(x)
    out = torch.zeros((), dtype=x.dtype, device=x.device)
    for tap in range(places.shape[1]):
        out = out + weights[:, tap].view(shape) * x.index_select(dim, places[:, tap])
    return out


def gaussian_weights(sigma: float, radius: int) -> Tensor:
    """Return a bell curve at whole places from ``-radius`` to ``radius``, float64 with sum 1.

    Examples:
        >>> gaussian_weights(0.0, 1)
        tensor([0., 1., 0.], dtype=torch.float64)
    """
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    if sigma == 0:
        return (places == 0).double()
    curve = torch.exp(-0.5 * (places / sigma) ** 2)
    return curve / curve.sum()


def smooth(x: Tensor, sigma: float, *, truncate: float = 4.0, border: Border = "edge") -> Tensor:
    """Blur along all dimensions but the first two with a bell curve, cut off at ``truncate`` deviations.

    Args:
        x: Images of shape (N, C, H, W) or signals of shape (N, C, L).
        sigma: Standard deviation in pixels.
        truncate: Where the curve ends, in deviations.
        border: What lies outside; see `inside`.

    Examples:
        >>> smooth(torch.eye(3)[None, None], sigma=0.1).equal(torch.eye(3)[None, None])
        True
    """
    radius = int(truncate * sigma + 0.5)
    weights = gaussian_weights(sigma, radius)
    for dim in range(2, x.ndim):
        places = torch.arange(x.shape[dim])[:, None] + torch.arange(-radius, radius + 1)
        x = weigh_taps(x, dim, inside(places, x.shape[dim], border), weights.expand_as(places))
    return x


def enlarge(x: Tensor, factor: float) -> Tensor:
    """Zoom into the middle of images, which keep their size, with bilinear interpolation.

    Args:
        x: Images of shape (N, C, H, W).
        factor: Factor from 1.

    Examples:
        >>> enlarge(torch.arange(4.0).expand(1, 1, 4, 4), 2.0)[0, 0, 0]
        tensor([0.7500, 1.2500, 1.7500, 2.2500])
    """
    for dim in (2, 3):
        size = x.shape[dim]
        exact = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / factor + (size - 1) / 2
        lower = exact.floor()
        share = exact - lower
        places = inside(torch.stack([lower, lower + 1], dim=1).long(), size)
        x = weigh_taps(x, dim, places, torch.stack([1 - share, share], dim=1))
    return x


def pick(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels at places that differ from sample to sample.

    Args:
        x: Images of shape (N, C, H, W).
        rows: int64 of a shape that can be broadcast to (N, H', W').
        columns: As ``rows``.

    Examples:
        >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> pick(x, torch.tensor([[[1, 0]]]), torch.tensor([[[0, 1]]]))
        tensor([[[[2., 1.]]]])
    """
    count, channels, _, width = x.shape
    places = rows * width + columns
    places = places.expand(count, *places.shape[1:])
    flat = x.flatten(2).gather(2, places.flatten(1)[:, None].expand(-1, channels, -1))
    return flat.reshape(count, channels, *places.shape[1:])


def interpolate(x: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """Return pixels at places between pixels, which differ from sample to sample, with bilinear interpolation.

    Args:
        x: Images of shape (N, C, H, W).
        rows: Floats of shape (N, H', W').
        columns: As ``rows``.
        border: What lies outside; see `inside`.

    Examples:
        >>> half = torch.full((1, 1, 1), 0.5)
        >>> interpolate(torch.arange(4.0).reshape(1, 1, 2, 2), half, half, "edge")
        tensor([[[[1.5000]]]])
    """
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None].to(x), (columns - left)[:, None].to(x)
    height, width = x.shape[2:]
    out = torch.zeros((), dtype=x.dtype, device=x.device)
    for below, row_share in ((0, 1 - down), (1, down)):
        for beside, column_share in ((0, 1 - right), (1, right)):
            read = inside(top.long() + below, height, border), inside(left.long() + beside, width, border)
            out = out + row_share * column_share * pick(x, *read)
    return out


def drag(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Smear images along a direction: half a bell curve of whole steps, as if the camera had begun to move.

    Args:
        x: Images of shape (N, C, H, W).
        radius: The curve has ``2 * radius + 1`` steps, to the nearest whole number.
        sigma: Its standard deviation in pixels.
        degrees: Direction of every sample, shape (N,); 0 is along the rows, 90 along the columns.

    Examples:
        >>> drag(torch.tensor([[[[0.0, 0.0, 1.0]]]]), 1.0, 1.0, torch.zeros(1))
        tensor([[[[0.0777, 0.4259, 1.0000]]]])
    """
    steps = round(2 * radius) + 1
    weights = gaussian_weights(sigma, steps - 1)[steps - 1 :]
    weights = weights / weights.sum()
    angles = torch.deg2rad(degrees.double()).view(-1, 1, 1)
    height, width = x.shape[2:]
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    out = torch.zeros((), dtype=x.dtype, device=x.device)
    for step, weight in enumerate(weights.tolist()):
        down, right = ((step * way(angles) - 0.5).ceil().long() for way in (torch.sin, torch.cos))
        read = inside(rows[:, None] + down, height), inside(columns + right, width)
        out = out + weight * pick(x, *read)
    return out


def disk(radius: float, sigma: float) -> Tensor:
    """Return a disk whose rim is softened by a bell curve of three taps, float64 of odd height and width, with sum 1.

    Args:
        radius: Radius in pixels.
        sigma: Standard deviation of the bell curve.

    Examples:
        >>> disk(0.5, 0.0)
        tensor([[0., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]], dtype=torch.float64)
    """
    reach = math.floor(radius) + 1
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    flat = (places[:, None] ** 2 + places**2 <= radius**2).double()
    weights = gaussian_weights(sigma, 1)
    padded = torch.nn.functional.pad(flat / flat.sum(), (1, 1, 1, 1))
    size = len(places)
    parts = [weights[i] * weights[j] * padded[i : i + size, j : j + size] for i in range(3) for j in range(3)]
    return torch.stack(parts).sum(0)

"""JPEG without files: everything that loses information, nothing of what does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_weights.errors import check_number
from lightning_weights.functional.corruptions.taps import inside

BLOCK = 8
# the tables of the standard's annex K, row by row
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Return images as they come out of a JPEG file: 8 bits, YCbCr 4:2:0, quantised 8 x 8 cosine transforms.

    Quality scales the standard's tables as the Independent JPEG Group's library does, on which nearly all programs
    rest, and colour is brought to full size with its triangle filter.

    Args:
        images: Images of shape (N, 1, H, W) or (N, 3, H, W) in [0, 1].
        quality: Quality from 1 to 100.

    Returns:
        Images of the same shape and type, whole multiples of 1/255.

    Raises:
        ValueError: If ``quality`` is out of range.

    Examples:
        >>> jpeg(torch.full((1, 3, 8, 8), 0.5), quality=50).mul(255).unique()
        tensor([128.])
    """
    check_number("quality", quality, low=1, high=101, whole=True)
    levels = (images.double() * 255).round()
    if images.shape[1] == 1:
        out = _coded(levels, LUMINANCE, quality)
    else:
        height, width = images.shape[2:]
        luma, *chroma = _to_luma_and_chroma(levels).split(1, dim=1)
        small = _halved(torch.cat(chroma, dim=1))
        size = [2 * small.shape[2], 2 * small.shape[3]]
        decoded = _coded(small, CHROMINANCE, quality)
        large = interpolate(decoded, size=size, mode="bilinear", align_corners=False).round()
        out = _to_colors(torch.cat([_coded(luma, LUMINANCE, quality), large[:, :, :height, :width]], dim=1))
    return (out / 255).to(images.dtype)


def _coded(levels: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Return channels after transform, quantisation, and both backwards."""
    height, width = levels.shape[2:]
    steps = _steps(table, quality).to(levels)
    basis = _cosines().to(levels)
    blocks = _in_blocks(_extended(levels - 128, BLOCK))
    spectrum = _transformed(blocks, basis)
    # the library's transform keeps three binary digits, and its division rounds halves away from zero
    kept = (spectrum * 8).round().abs() / 8
    quantised = (kept / steps + 0.5).floor() * steps * spectrum.sign()
    restored = _transformed(quantised, basis.T) + 128
    return _joined(restored)[:, :, :height, :width].round().clamp(0, 255)


def _steps(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255).double()


def _cosines() -> Tensor:
    """Return the orthonormal cosine transform: a row per frequency."""
    frequency, place = torch.arange(BLOCK).double()[:, None], torch.arange(BLOCK).double()
    basis = torch.cos((2 * place + 1) * frequency * math.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis


def _transformed(blocks: Tensor, matrix: Tensor) -> Tensor:
    """Multiply columns and rows of the last two dimensions with a matrix, in an order that no batch size changes."""
    for dim in (-1, -2):
        parts = [blocks.select(dim, place).unsqueeze(dim) for place in range(BLOCK)]
        shape = (1, BLOCK) if dim == -1 else (BLOCK, 1)
        blocks = parts[0] * matrix[:, 0].reshape(shape)
        for place in range(1, BLOCK):
            blocks = blocks + parts[place] * matrix[:, place].reshape(shape)
    return blocks


def _extended(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sizes are multiples."""
    for dim in (2, 3):
        size = x.shape[dim]
        places = torch.arange(-(-size // multiple) * multiple, device=x.device)
        x = x.index_select(dim, inside(places, size))
    return x


def _in_blocks(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    return x.reshape(count, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)


def _joined(blocks: Tensor) -> Tensor:
    return blocks.transpose(3, 4).flatten(4).flatten(2, 3)


def _halved(chroma: Tensor) -> Tensor:
    """Average squares of four."""
    even = _extended(chroma, 2)
    rows = even[:, :, ::2] + even[:, :, 1::2]
    bias = 1 + torch.arange(rows.shape[3] // 2, device=rows.device) % 2
    return ((rows[..., ::2] + rows[..., 1::2] + bias) / 4).floor()


def _to_luma_and_chroma(levels: Tensor) -> Tensor:
    red, green, blue = levels.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128], dim=1).round()


def _to_colors(channels: Tensor) -> Tensor:
    luma, blue, red = channels[:, 0], channels[:, 1] - 128, channels[:, 2] - 128
    green = luma - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587
    return torch.stack([luma + 1.402 * red, green, luma + 1.772 * blue], dim=1).round().clamp(0, 255)

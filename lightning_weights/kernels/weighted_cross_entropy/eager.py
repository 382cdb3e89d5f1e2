"""Cross-entropy of rows without Triton: cache-sized chunks in fp32 of the rows that count."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 19  # logits per chunk on CPUs: few enough for the buffer to stay in caches, enough to hide calls
LARGE_CHUNK = 1 << 26  # elsewhere: 256 MiB of fp32
SMALLEST = 1e-30  # probability whose logarithm is still exact in fp32


def row_losses(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Compute the loss of every row and log Σ exp of its logits; arguments as in the registered operator.

    Returns:
        Two tensors of one number per row, in fp32 or wider; both are 0 for rows that don't count.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses, normalizers = (torch.zeros(len(logits), dtype=wide, device=logits.device) for _ in range(2))
    step = _rows_per_chunk(logits)
    buffer = logits.new_empty(step, logits.shape[1], dtype=wide)
    for rows in counted_rows(labels, ignore_index, step):
        chunk, label = logits[rows], labels[rows]
        counts = label != ignore_index
        largest = chunk.amax(dim=1, keepdim=True).to(wide)
        total = torch.sub(chunk, largest, out=buffer[: len(chunk)]).exp_().sum(dim=1)
        normalizer = total.log_().add_(largest.squeeze(1))
        at_label = chunk.gather(1, torch.where(counts, label, 0)[:, None]).squeeze(1)
        losses[rows] = torch.where(counts, normalizer - at_label, 0.0)
        normalizers[rows] = torch.where(counts, normalizer, 0.0)
    return losses, normalizers


def row_gradients(
    upstream: Tensor, normalizers: Tensor, logits: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor
) -> Tensor:
    """Compute the gradient of Σ upstream · loss with respect to the logits.

    Args:
        upstream: One number per row.
        normalizers: What `row_losses` returned beside the losses.
        logits: Logits of shape (rows, classes).
        labels: One label per row.
        ignore_index: Label of rows that don't count.
        gradient: Where the gradient goes, 0 in rows that don't count; it may be the logits themselves.

    Returns:
        ``gradient``.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    step = _rows_per_chunk(logits)
    buffer = logits.new_empty(step, logits.shape[1], dtype=wide)
    ignored = labels == ignore_index
    scales = torch.where(ignored, 0.0, upstream)[:, None].to(wide)
    if logits.device.type == "cpu":
        _clear(gradient, ignored)
    for rows in counted_rows(labels, ignore_index, step):
        scale, label = scales[rows], torch.where(ignored[rows], 0, labels[rows])
        part = torch.sub(logits[rows], normalizers[rows, None], out=buffer[: len(label)]).exp_().mul_(scale)
        part.scatter_add_(1, label[:, None], -scale)
        if logits.device.type != "cpu":
            part.masked_fill_(ignored[rows, None], 0.0)  # 0 times the power of an infinite logit is NaN
        gradient[rows] = part.to(gradient.dtype)
    return gradient


def losses_and_gradients(logits: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor) -> Tensor:
    """Compute, on CPUs, the loss of every row, and its gradient while the powers of the logits are at hand.

    Args:
        logits: Logits of shape (rows, classes).
        labels: One label per row.
        ignore_index: Label of rows that don't count.
        gradient: Where the gradient of every loss goes, 0 in rows that don't count; it may be the logits themselves.

    Returns:
        One loss per row in fp32 or wider, 0 for rows that don't count.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = torch.zeros(len(logits), dtype=wide)
    for rows in counted_rows(labels, ignore_index, _rows_per_chunk(logits)):
        chunk, label = logits[rows].to(wide), labels[rows, None]
        in_place = isinstance(rows, slice) and gradient.dtype == wide and gradient is not logits
        powers = torch.softmax(chunk, dim=1, out=gradient[rows] if in_place else None)
        at_label = powers.gather(1, label)
        loss = at_label.log().neg_()
        small = at_label < SMALLEST  # whose logarithm is wrong, or infinite
        if bool(small.any()):
            loss = torch.where(small, chunk.logsumexp(dim=1, keepdim=True) - chunk.gather(1, label), loss)
        losses[rows] = loss.squeeze(1)
        powers.scatter_(1, label, at_label - 1)
        if not in_place:
            gradient[rows] = powers.to(gradient.dtype)
    _clear(gradient, labels == ignore_index)
    return losses


def _clear(gradient: Tensor, ignored: Tensor) -> None:
    gradient.index_fill_(0, ignored.nonzero().squeeze(1), 0.0)  # a mask would be spread over all classes


def weigh_rows(gradient: Tensor, scales: Tensor) -> Tensor:
    """Multiply every row with a number, in place, in the numbers' dtype."""
    if gradient.dtype == scales.dtype:
        return gradient.mul_(scales[:, None])
    step = _rows_per_chunk(gradient)
    for part, scale in zip(gradient.split(step), scales.split(step), strict=True):
        part.copy_(part.to(scale.dtype).mul_(scale[:, None]))
    return gradient


def counted_rows(labels: Tensor, ignore_index: int, step: int) -> list[slice | Tensor]:
    """Return rows in chunks of ``step``: on CPUs those that count; elsewhere all, since looking would make it wait."""
    if labels.device.type == "cpu" and bool((ignored := labels == ignore_index).any()):
        chunks = (~ignored).nonzero().squeeze(1).split(step)
        return [_slice(rows) for rows in chunks if len(rows)]
    return [slice(start, min(start + step, len(labels))) for start in range(0, len(labels), step)]


def _slice(rows: Tensor) -> slice | Tensor:
    """Return neighbours as a slice, which copies nothing."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _rows_per_chunk(logits: Tensor) -> int:
    size = CHUNK if logits.device.type == "cpu" else LARGE_CHUNK
    return max(1, min(size // max(1, logits.shape[1]), len(logits)))

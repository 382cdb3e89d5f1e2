"""Weights plus packed signatures: many tensors, several signatures, codes read straight into the sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.apply_signature.eager import apply_in_pieces
from lightning_weights.kernels.apply_signature.reference import (
    apply_signature_reference,
    dequantize_codes,
    packed_bytes,
)

__all__ = ["apply_signature", "apply_signature_reference", "dequantize_codes"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the weights, for the Triton kernel


def _apply(
    outs: Sequence[Tensor],
    bases: Sequence[Tensor],
    codes: Sequence[Tensor],
    low: Tensor,
    high: Tensor,
    scales: Sequence[float],
    bits: Sequence[int],
) -> None:
    if takes_triton(outs[0].device.type, [(outs, DTYPES)]):
        from lightning_weights.kernels.apply_signature.kernel import launch_apply_signature

        launch_apply_signature(outs, bases, codes, low, high, scales, bits)
    else:
        apply_in_pieces(outs, bases, codes, low, high, scales, bits)


def _apply_fake(*arguments: object) -> None:
    """Nothing is returned."""


_op = register(
    "apply_signature",
    "(Tensor(a!)[] outs, Tensor[] bases, Tensor[] codes, Tensor low, Tensor high, float[] scales, int[] bits) -> ()",
    implementation=_apply,
    fake=_apply_fake,
)


def apply_signature(
    outs: Sequence[Tensor],
    bases: Sequence[Tensor],
    codes: Sequence[Sequence[Tensor | None]],
    low: Tensor,
    high: Tensor,
    scales: Sequence[float],
    bits: Sequence[int],
) -> None:
    r"""Write weights plus K quantized signatures, read from their packed codes: [`apply_signature_reference`][], fused.

    $$\theta'_t = \theta_t + \sum_i \alpha_i\, v_{i,t}(q), \qquad
      v_{i,t}(q) = l_{i,t} + q\,\frac{h_{i,t} - l_{i,t}}{2^{b_i} - 1}, \qquad v_{i,t}(2^{b_i} - 1) = h_{i,t}$$

    Sums run over i = 0, 1, … in fp32 and are rounded once, so that the same signatures and scales always give the same
    bits, on every device. A signature of scale 0 is not there at all.

    Args:
        outs: T tensors that are written; gradients do not pass.
        bases: T tensors of the same shapes and types; ``outs`` themselves are allowed.
        codes: K rows of T streams of bytes, uint8, ``ceil(numel * bits / 8)`` long; None where a signature leaves a
            tensor alone. Code j takes bits ``bits*j`` to ``bits*(j+1) - 1``, counted from the lowest of the first byte.
        low: l, what code 0 stands for, fp32, (K, T).
        high: h, what the largest code stands for, fp32, (K, T).
        scales: α, K of them.
        bits: b, K of them, 2 to 8.

    Raises:
        ValueError: If numbers, shapes or types do not belong together, before anything is written.
        ShardedParameterError: If a tensor is sharded: codes belong to whole tensors.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Cai, Zhang and Wang 2023, arXiv:2302.12480, whose signatures they are.

    Examples:
        >>> weight, clean = torch.zeros(4), torch.ones(4)
        >>> codes, low, high = torch.tensor([0b11_00_01_10], dtype=torch.uint8), torch.zeros(1, 1), torch.ones(1, 1)
        >>> apply_signature([weight], [clean], [[codes]], low, 3 * high, scales=[0.5], bits=[2])
        >>> weight
        tensor([2.0000, 1.5000, 1.0000, 2.5000])
    """
    if any(hasattr(tensor, "placements") for tensor in (*outs, *bases)):
        raise ShardedParameterError(
            "a weight is sharded (a DTensor), and codes belong to whole tensors; use weight.full_tensor()"
        )
    _check(outs, bases, codes, low, high, scales, bits)
    if outs:
        absent = torch.empty(0, dtype=torch.uint8, device=outs[0].device)
        streams = [absent if stream is None else stream for row in codes for stream in row]
        _op([out.detach() for out in outs], list(bases), streams, low, high, list(scales), list(bits))


def _check(
    outs: Sequence[Tensor],
    bases: Sequence[Tensor],
    codes: Sequence[Sequence[Tensor | None]],
    low: Tensor,
    high: Tensor,
    scales: Sequence[float],
    bits: Sequence[int],
) -> None:
    size = (len(scales), len(outs))
    if len(bits) != size[0] or {tuple(low.shape), tuple(high.shape)} != {size}:
        raise ValueError(
            f"there are {len(outs)} tensors, {size[0]} scales, {len(bits)} bits, low {tuple(low.shape)} and high "
            f"{tuple(high.shape)}; allowed are as many bits as scales, and {size} for low and high"
        )
    if len(codes) != size[0] or any(len(row) != size[1] for row in codes):
        raise ValueError(f"codes are {[len(row) for row in codes]} tensors; allowed are {size[0]} rows of {size[1]}")
    kinds = [[(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors] for tensors in (outs, bases)]
    if kinds[0] != kinds[1] or not all(out.is_floating_point() for out in outs):
        raise ValueError("bases must have the shapes, floating types and device of the tensors that are written")
    for i, row in enumerate(codes):
        check_number(f"bits[{i}]", bits[i], low=2, high=9, whole=True)
        for t, stream in enumerate(row):
            expected = packed_bytes(outs[t].numel(), bits[i])
            if stream is not None and (stream.dtype != torch.uint8 or stream.shape != (expected,)):
                raise ValueError(
                    f"codes[{i}][{t}] are {tuple(stream.shape)} of {stream.dtype}; allowed for {outs[t].numel()} "
                    f"weights of {bits[i]} bits are ({expected},) of torch.uint8"
                )

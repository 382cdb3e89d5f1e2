"""Attributes of pairs of points that no rotation or translation changes, and that tell all other pairs apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.functional.rotated import rotated

NOISE = 8.0  # roundings within which a displacement counts as parallel to an orientation


def safe_norm(vectors: Tensor, tiny: Tensor | float = 0.0) -> Tensor:
    """Compute lengths whose first and second derivatives are zero, not NaN, where the length is.

    Args:
        vectors: Vectors of shape (..., n).
        tiny: Squared length up to which a vector is zero; broadcasts.

    Returns:
        Lengths of shape (...).

    Examples:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> torch.autograd.grad(safe_norm(x), x)[0]
        tensor([0., 0., 0.])
    """
    return _safe_root(vectors.square().sum(-1), tiny)


def bi_invariants(
    relative: Tensor, receiver_orientations: Tensor | None = None, sender_orientations: Tensor | None = None
) -> Tensor:
    r"""Compute the attributes that weights are shared by: of two points, and of two points with orientations.

    $$a_1 = o_i \cdot r, \quad a_2 = \lVert r - a_1 o_i \rVert, \quad a_3 = o_i \cdot o_j, \qquad r = x_j - x_i$$

    Without orientations the only attribute is |r|. In the plane a₂ has a sign: it is the product of r with o_i turned
    by 90°. Receiver is i, sender j.

    Args:
        relative: Displacements r from receivers to senders, of shape (..., n) with n = 2 or 3.
        receiver_orientations: Unit vectors o_i, which broadcast with ``relative``; ``None`` for bare positions.
        sender_orientations: Unit vectors o_j, which broadcast too; ``None`` leaves a₃ out.

    Returns:
        Attributes of shape (..., q) with q = 1 (positions), 2 (with o_i) or 3 (with both).

    Raises:
        ValueError: If n is neither 2 nor 3, orientations have another n, or o_j is given without o_i.

    Source: Bekkers et al. 2024, arXiv:2310.02970. Derivatives differ from the released code's where a₂ or |r| is zero:
    they are zero there, the second ones too.

    Examples:
        >>> bi_invariants(torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.0, 0.0, 1.0]))
        tensor([4., 3.])
        >>> bi_invariants(torch.tensor([3.0, 4.0]))
        tensor([5.])
    """
    n = relative.shape[-1]
    _check_dimensions(n, receiver_orientations, sender_orientations)
    if receiver_orientations is None:
        return safe_norm(relative)[..., None]
    # component by component: sums over a last axis of 2 or 3 are slow
    r, o = relative.unbind(-1), receiver_orientations.unbind(-1)
    along = _dot(r, o)
    if n == 2:
        across = o[0] * r[1] - o[1] * r[0]
    else:
        # what remains of a parallel displacement is rounding, and its direction is noise
        noise = (NOISE * torch.finfo(relative.dtype).eps) ** 2 * _dot(r, r).detach()
        rest = [x - along * y for x, y in zip(r, o, strict=True)]
        across = _safe_root(_dot(rest, rest), noise)
    attributes = [along, across]
    if sender_orientations is not None:
        attributes.append(_dot(o, sender_orientations.unbind(-1)))
    return torch.stack(torch.broadcast_tensors(*attributes), dim=-1)


def frame_invariants(relative: Tensor, receiver_frames: Tensor, sender_frames: Tensor) -> Tensor:
    r"""Compute the attributes of two points with whole frames, which are elements of SE(3).

    $$a = (R_i^\top (x_j - x_i),\; R_i^\top R_j)$$

    Args:
        relative: Displacements x_j - x_i of shape (..., 3), from receivers to senders.
        receiver_frames: Rotations R_i of shape (..., 3, 3).
        sender_frames: Rotations R_j of shape (..., 3, 3).

    Returns:
        Attributes of shape (..., 12): the displacement in the receiver's frame, then the relative rotation row by row.

    Raises:
        ValueError: If the shapes are others.

    Source: the weight sharing of Bekkers et al. 2024, arXiv:2310.02970, for the whole group; their code has none of it.

    Examples:
        >>> frame_invariants(torch.tensor([1.0, 2.0, 3.0]), torch.eye(3), torch.eye(3))[:3]
        tensor([1., 2., 3.])
    """
    shapes = [tuple(tensor.shape) for tensor in (relative, receiver_frames, sender_frames)]
    if relative.shape[-1:] != (3,) or any(shape[-2:] != (3, 3) for shape in shapes[1:]):
        raise ValueError(
            f"relative has shape {shapes[0]}, receiver_frames {shapes[1]} and sender_frames {shapes[2]}; allowed are "
            f"(..., 3) and twice (..., 3, 3)"
        )
    inverse = receiver_frames.mT
    displacement = rotated(relative, inverse)
    rotation = rotated(sender_frames.mT, inverse[..., None, :, :]).mT.flatten(-2)
    shape = torch.broadcast_shapes(displacement.shape[:-1], rotation.shape[:-1])
    return torch.cat([displacement.expand(*shape, 3), rotation.expand(*shape, 9)], dim=-1)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    products = [x * y for x, y in zip(a, b, strict=True)]
    return sum(products[1:], start=products[0])


def _safe_root(squared: Tensor, tiny: Tensor | float) -> Tensor:
    inside = squared > tiny
    return torch.where(inside, torch.where(inside, squared, 1.0).sqrt(), 0.0)


def _check_dimensions(n: int, receiver_orientations: Tensor | None, sender_orientations: Tensor | None) -> None:
    if n not in (2, 3):
        raise ValueError(f"relative has vectors of {n} components; allowed are 2 and 3")
    if receiver_orientations is None and sender_orientations is not None:
        raise ValueError(
            "sender_orientations are given without receiver_orientations; allowed are neither, o_i or both"
        )
    for name, given in (("receiver", receiver_orientations), ("sender", sender_orientations)):
        if given is not None and given.shape[-1] != n:
            raise ValueError(
                f"{name}_orientations has vectors of {given.shape[-1]} components; allowed are {n}, as in relative"
            )

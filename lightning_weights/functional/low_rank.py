"""The leading singular triplets of a matrix, by three methods of different cost."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.full_precision import full_precision

SVDMethod = Literal["exact", "gram", "randomized"]

OVERSAMPLING = 8  # directions beyond the rank that a block of the randomized method has, at least
BLOCKS = 8  # of its Krylov space: spectra of weights and gradients decay slowly, fewer leave the last directions mixed


class TruncatedSVD(NamedTuple):
    """The leading singular triplets of a matrix, largest first.

    Attributes:
        u: Left singular vectors as columns, (m, r).
        s: Singular values, (r,).
        vh: Right singular vectors as rows, (r, n).
    """

    u: Tensor
    s: Tensor
    vh: Tensor


def truncated_svd(matrix: Tensor, rank: int, method: SVDMethod = "exact", *, seed: int = 0) -> TruncatedSVD:
    r"""Return the best approximation of a matrix of a given rank, as singular triplets.

    $$A \approx U_r\,\mathrm{diag}(s_1 \ge \dots \ge s_r)\,V_r^\top$$

    Args:
        matrix: A, (m, n), of any floating-point type; sharded tensors have to be gathered before.
        rank: r, from 1 to min(m, n).
        method: ``exact`` asks LAPACK or cuSOLVER for all triplets. ``gram`` takes the eigenvectors of the smaller of
            AᵀA and AAᵀ, several times faster, and loses directions below the square root of the precision of s₁.
            ``randomized`` searches a Krylov space of 8 blocks of r + max(8, r/4) directions, faster still where that is
            less than half of the smaller side, and ``gram`` itself elsewhere. Where the spectrum is flat, its last
            directions are approximate.
        seed: Of the random subspace, drawn from a generator of its own.

    Returns:
        Vectors and values in fp32, in fp64 for fp64 matrices, without gradient. Signs are the decomposition's own;
        [`fix_signs`][lightning_weights.functional.low_rank.fix_signs] makes them the same everywhere.

    Raises:
        ValueError: If the matrix holds NaN or infinity, which never reach the decomposition, or an argument is out of
            range.

    Source: Cameron Musco, Christopher Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate
    Singular Value Decomposition", 2015, arXiv:1504.05477, for the randomized method.

    Examples:
        >>> svd = truncated_svd(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), rank=1)
        >>> svd.s, svd.u.abs().squeeze()
        (tensor([3.]), tensor([1., 0., 0.]))
    """
    check_choice("method", method, get_args(SVDMethod))
    if matrix.dim() != 2:
        raise ValueError(f"matrix has {matrix.dim()} dimensions; allowed are 2")
    check_number("rank", rank, low=1, high=min(matrix.shape) + 1, whole=True)
    device_type = "cpu" if matrix.is_meta else matrix.device.type
    with torch.no_grad(), full_precision(), torch.autocast(device_type, enabled=False):
        wide = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
        if not wide.is_meta and not wide.isfinite().all():
            raise ValueError("matrix holds NaN or infinity; there is no decomposition of it")
        if method == "exact":
            return _exact(wide, rank)
        # Squares of small gradients leave the range of fp32; neither method depends on the scale.
        size = wide.abs().amax()
        size = torch.where(size > 0, size, 1.0)
        u, s, vh = _gram(wide / size, rank) if method == "gram" else _randomized(wide / size, rank, seed)
        return TruncatedSVD(u, s * size, vh)


def fix_signs(vectors: Tensor) -> Tensor:
    """Return singular vectors with their largest entry positive, the first of equal ones.

    Args:
        vectors: Singular vectors as rows.

    Returns:
        Vectors whose signs no longer depend on the library that computed them.

    Examples:
        >>> fix_signs(torch.tensor([[0.6, -0.8], [0.8, 0.6]]))
        tensor([[-0.6000,  0.8000],
                [ 0.8000,  0.6000]])
    """
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)


def _exact(matrix: Tensor, rank: int) -> TruncatedSVD:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return TruncatedSVD(u[:, :rank].contiguous(), s[:rank].contiguous(), vh[:rank].contiguous())


def _gram(matrix: Tensor, rank: int) -> TruncatedSVD:
    if matrix.shape[0] < matrix.shape[1]:
        u, s, vh = _gram(matrix.T, rank)
        return TruncatedSVD(vh.T.contiguous(), s, u.T.contiguous())
    vectors = _eigenvectors(matrix.T @ matrix)
    v = vectors[:, -rank:].flip(1)
    # Of directions that the matrix hardly has, its products are noise: orthogonalising keeps them a basis.
    u, r = torch.linalg.qr(matrix @ v)
    diagonal = r.diagonal()
    u = u * torch.where(diagonal < 0, -1.0, 1.0).to(u.dtype)
    return TruncatedSVD(u, diagonal.abs(), v.T.contiguous())


def _eigenvectors(symmetric: Tensor) -> Tensor:
    """Return eigenvectors as columns, those of small eigenvalues first."""
    try:
        vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # hundreds of fp32 eigenvalues that are all but zero
        vectors = torch.linalg.eigh(symmetric.double()).eigenvectors.to(symmetric.dtype)
    return vectors


def _randomized(matrix: Tensor, rank: int, seed: int) -> TruncatedSVD:
    width = rank + max(OVERSAMPLING, rank // 4)
    if 2 * width * BLOCKS >= min(matrix.shape):  # the Krylov space would cost more than all directions
        return _gram(matrix, rank)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same subspace on every device
    sketch = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype, device="cpu").to(
        matrix.device
    )
    blocks = [torch.linalg.qr(matrix @ sketch).Q]
    for _ in range(BLOCKS - 1):
        blocks.append(torch.linalg.qr(matrix @ (matrix.T @ blocks[-1])).Q)
    basis = torch.linalg.qr(torch.cat(blocks, 1)).Q
    u, s, vh = _gram(basis.T @ matrix, rank)
    return TruncatedSVD(basis @ u, s, vh)

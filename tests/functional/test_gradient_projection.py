"""Projections of gradients: sides, orthonormality, what full rank loses, and moments in a new basis."""

import pytest
import torch

from lightning_weights.functional.gradient_projection import (
    Projection,
    gradient_projection,
    gradnorm_lorp_numel,
    projected_numel,
    projected_sides,
    transport_moments,
)

LEFT, RIGHT, BOTH = (True, False), (False, True), (True, True)
TALL_AND_WIDE = {
    "std": (RIGHT, LEFT), "reverse_std": (LEFT, RIGHT), "left": (LEFT, LEFT), "right": (RIGHT, RIGHT),
    "full": (BOTH, BOTH),
}  # fmt: skip


def projected(gradient, projection):
    gradient = gradient if projection.left is None else projection.left.T @ gradient
    return gradient if projection.right is None else gradient @ projection.right.T


def projected_back(reduced, projection):
    reduced = reduced if projection.left is None else projection.left @ reduced
    return reduced if projection.right is None else reduced @ projection.right


@pytest.mark.parametrize("proj_type", TALL_AND_WIDE)
@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_sides_bases_and_sizes(proj_type, shape):
    sides = TALL_AND_WIDE[proj_type][shape[0] < shape[1]]
    assert projected_sides(*shape, proj_type) == sides
    gradient = torch.randn(shape)
    projection = gradient_projection(gradient, 3, proj_type)
    assert tuple(part is not None for part in projection) == sides
    for vectors in (projection.left if projection.left is None else projection.left.T, projection.right):
        if vectors is not None:
            torch.testing.assert_close(vectors @ vectors.T, torch.eye(3), rtol=0, atol=1e-5)
    kept = [part.numel() for part in projection if part is not None]
    assert projected_numel(*shape, 3, proj_type) == sum(kept) + 2 * projected(gradient, projection).numel()


@pytest.mark.parametrize("proj_type", TALL_AND_WIDE)
@pytest.mark.parametrize("svd", ["exact", "gram", "randomized"])
def test_nothing_of_the_leading_directions_is_lost(proj_type, svd):
    gradient = torch.randn(9, 5, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    for rank in (2, 5, 7):
        projection = gradient_projection(gradient, rank, proj_type, svd=svd)
        back = projected_back(projected(gradient, projection), projection)
        torch.testing.assert_close(back, (u[:, :rank] * s[:rank]) @ vh[:rank], rtol=1e-6, atol=1e-6)


def test_transposing_mirrors_the_projection():
    gradient = torch.randn(9, 5)
    ours, mirrored = gradient_projection(gradient, 3), gradient_projection(gradient.T, 3)
    torch.testing.assert_close(ours.right, mirrored.left.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("proj_type", ["left", "right", "full"])
def test_moments_of_the_same_space_turn_without_loss(proj_type):
    gradient = torch.randn(9, 5, dtype=torch.float64)
    old = gradient_projection(gradient, 3, proj_type)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    new = Projection(None if old.left is None else old.left @ turn, None if old.right is None else turn.T @ old.right)
    moments = projected(gradient, old), projected(gradient, old).square()
    turned, squares = transport_moments(*moments, old, new)
    torch.testing.assert_close(turned, projected(gradient, new))
    assert squares.min() >= 0
    torch.testing.assert_close(squares.sum(), moments[1].sum())
    same = transport_moments(*moments, old, old)
    torch.testing.assert_close(same, moments)


def test_layer_numel_is_the_closed_form():
    for m, n, r, p in ((12, 20, 4, 2), (100, 30, 8, 8), (64, 64, 16, 1)):
        weights, states = gradnorm_lorp_numel(m, n, r, p)
        assert (weights, states) == (r * (m + n) + m, 2 * p * (m + n) + 2 * p * r + 2 * m)


def test_bad_input():
    with pytest.raises(ValueError, match="proj_type is 'both'"):
        projected_sides(3, 4, "both")
    with pytest.raises(ValueError, match="rank is 0"):
        projected_numel(3, 4, 0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        gradient_projection(torch.full((3, 4), torch.nan), 2)

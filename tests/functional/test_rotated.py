"""Turned vectors against products of matrices in double precision."""

import torch

from lightning_weights.functional.ponita import random_rotations
from lightning_weights.functional.rotated import rotated


def test_vectors_turn_as_by_products_and_autocast_rounds_nothing():
    generator = torch.Generator().manual_seed(0)
    vectors, rotations = torch.randn(5, 2, 3, generator=generator), random_rotations(5, generator=generator)
    wanted = torch.einsum("nde,nce->ncd", rotations, vectors.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = rotated(vectors, rotations[:, None])
        back = rotated(found, rotations.mT[:, None])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back, vectors, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rotated(vectors.double(), rotations[0]), vectors.double() @ rotations[0].mT)

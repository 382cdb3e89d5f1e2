"""Small networks and graphs for the tests of PONITA."""

import torch

from lightning_weights.functional.ponita import random_rotations
from lightning_weights.modules import Ponita

MODES = ("bundle", "pointcloud", "position")


def network(mode="bundle", **options):
    """A small network in float64 that reads and predicts vectors where it can."""
    vectors = 0 if mode == "position" else 1
    sizes = {"hidden_dim": 8, "basis_dim": 6, "num_layers": 2, "num_orientations": 6, "random_grid": "off"}
    return Ponita(
        **{
            "in_scalars": 2,
            "in_vectors": vectors,
            "out_scalars": 3,
            "out_vectors": vectors,
            "mode": mode,
            **sizes,
            **options,
        }
    ).double()


def graphs(mode="bundle", sizes=(4, 3), dim=3, seed=0):
    """A batch of graphs."""
    generator, count = torch.Generator().manual_seed(seed), sum(sizes)
    draw = {"dtype": torch.float64, "generator": generator}
    batch = {
        "x": torch.randn(count, 2, **draw),
        "pos": torch.randn(count, dim, **draw),
        "batch": torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
    }
    return batch if mode == "position" else {**batch, "vec": torch.randn(count, 1, dim, **draw)}


def turned(batch, rotation):
    """The same batch, rotated and moved."""
    moved = {**batch, "pos": batch["pos"] @ rotation.mT + 2.0}
    return {**moved, "vec": batch["vec"] @ rotation.mT} if "vec" in batch else moved


def some_rotation(dim=3, seed=0):
    """Any rotation."""
    return random_rotations(1, dim, generator=torch.Generator().manual_seed(seed))[0]

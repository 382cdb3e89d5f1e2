"""Tiny molecules and fits for the tests of PONITA's tasks."""

import torch
from torch.utils.data import DataLoader

from lightning_weights.callbacks import ExactResume
from lightning_weights.modules import Ponita
from tests.helpers.tasks import make_trainer

SIZES = {"hidden_dim": 6, "basis_dim": 4, "num_layers": 2, "num_orientations": 4, "random_grid": "off"}


def net(**options):
    """A small network."""
    torch.manual_seed(3)
    return Ponita(**{"in_scalars": 2, **SIZES, **options})


def molecule(size, generator):
    """Springs of length 1 between all atoms; the energy is far from 0."""
    pos = torch.randn(size, 3, dtype=torch.float64, generator=generator).requires_grad_()
    energy = 1000.0 + (torch.pdist(pos) - 1.0).square().sum()
    (slope,) = torch.autograd.grad(energy, pos)
    x = torch.eye(2)[torch.randint(2, (size,), generator=generator)]
    return {"x": x, "pos": pos.detach(), "y": energy.detach(), "forces": -slope}


def molecules(count=6, seed=0):
    """A dataset of molecules of 3 and 4 atoms."""
    generator = torch.Generator().manual_seed(seed)
    return [molecule(3 + index % 2, generator) for index in range(count)]


def collate(graphs, dtype=torch.float32):
    """Make one batch of graphs, energies in double precision."""
    whole = {key: torch.cat([graph[key] for graph in graphs]).to(dtype) for key in ("x", "pos", "forces")}
    sizes = torch.tensor([len(graph["x"]) for graph in graphs])
    batch = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
    return {**whole, "y": torch.stack([graph["y"] for graph in graphs]), "batch": batch}


def loader(count=6, batch_size=2, shuffle=False, make=collate):
    """A loader of molecules."""
    return DataLoader(molecules(count), batch_size=batch_size, shuffle=shuffle, collate_fn=make)


def fit(module, *callbacks, train=None, val=None, ckpt=None, seed=2, **options):
    """Train for two epochs of three batches."""
    torch.manual_seed(seed)
    trainer = make_trainer([ExactResume(), *callbacks], **{"max_epochs": 2, "inference_mode": False, **options})
    trainer.fit(module, loader(shuffle=True) if train is None else train, val, ckpt_path=ckpt)
    return trainer

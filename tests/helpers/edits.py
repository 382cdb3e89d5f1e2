"""A tiny backbone with repeating layers, a generator for it, and batches of a task that needs the condition."""

import torch
from torch import nn

from lightning_weights.modules import FunctionalMemory, ResidualMLP, WeightGenerator

TARGETS = {"fc1": (6, 6), "fc2": (6, 6)}
COND = 3


def backbone(seed=0):
    torch.manual_seed(seed)
    return ResidualMLP(in_features=4, out_features=4, width=6, depth=2)


def generator(seed=1, **change):
    torch.manual_seed(seed)
    options = {"rank": 4, "alpha": 4.0, "token_dim": 6, "dim": 16, "head_dim": 8, "depth": 1, "prefix": "blocks"}
    return WeightGenerator(TARGETS, 2, COND, **{**options, **change})


def awake(made):
    """Give heads that start at zero values, as training would."""
    torch.manual_seed(5)
    for param in made.head_b.parameters():
        nn.init.normal_(param, std=0.3)
    return made


def module(seed=0, **change):
    return FunctionalMemory(backbone(seed), generator(), loss_fn=nn.MSELoss(), **{"lr": 0.02, **change})


def batch(size=6, seed=2, tasks=True):
    """Half of the samples are to be negated: the condition says which."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 4, generator=draw)
    task = torch.arange(size) % 2
    condition = torch.zeros(size, 1, COND)
    condition[torch.arange(size), 0, task] = 1.0
    found = {"condition": condition, "inputs": x, "target": x * (1 - 2 * task[:, None])}
    return {**found, "task": task} if tasks else found

"""Small parameters, gradients of mixed size, and CLASSP trained on them."""

import torch
from torch import nn

from lightning_weights.optimizers import CLASSP

BACKENDS = ({}, {"foreach": True}, {"foreach": False}, {"fused": False})


def make_params(shapes=((4, 6), (5,), (1,)), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def make_gradients(params, steps, scale=1e-2, seed=1):
    """Gradients of mixed size: about half of them below the default threshold's square root of 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    spread = [10.0 ** torch.randint(-3, 1, p.shape, generator=generator) for p in params]
    return [
        [
            (torch.randn(p.shape, generator=generator) * s * scale).to(p.dtype)
            for p, s in zip(params, spread, strict=True)
        ]
        for _ in range(steps)
    ]


def run(optimizer, params, gradients):
    for step in gradients:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.clone()
        optimizer.step()


def train(params, gradients, **arguments):
    params = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = CLASSP(params, **arguments)
    run(optimizer, params, gradients)
    return params, optimizer


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)

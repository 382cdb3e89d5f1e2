"""Small matrices, gradients, and LIFTAdamW trained on them."""

import torch
from torch import nn

from lightning_weights.optimizers import LIFTAdamW

RULE = {"lr": 0.05, "budget_rank": 2, "filter_rank": 3, "update_interval": 4, "eps": 1e-3}
SHAPES = ((20, 12), (10, 24), (6,))


def make_params(shapes=SHAPES, dtype=torch.float32, seed=0):
    """Marked matrices, and vectors."""
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    for param in params:
        if param.dim() == 2:
            param._lw_sparse = True
    return params


def copies(params):
    """Parameters with equal values and marks."""
    made = [nn.Parameter(param.detach().clone()) for param in params]
    for new, old in zip(made, params, strict=True):
        vars(new).update(vars(old))
    return made


def make_gradients(params, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(p.shape, generator=generator).to(p.dtype) for p in params] for _ in range(steps)]


def run(optimizer, params, gradients):
    for step in gradients:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.clone()
        optimizer.step()


def train(params, gradients, **changes):
    """Train copies, and return them with their optimizer."""
    params = copies(params)
    optimizer = LIFTAdamW(params, **{**RULE, **changes})
    run(optimizer, params, gradients)
    return params, optimizer


def gather(optimizer, param, gradient):
    """Give a matrix the gradient of its chosen entries alone, added to what is there."""
    few = gradient.flatten()[optimizer.selection(param).long()].float()
    known = getattr(param, "_lw_sparse_grad", None)
    param._lw_sparse_grad = few if known is None else known + few


def bits_differ(left, right):
    """Where two fp32 tensors differ in any bit."""
    return left.detach().view(torch.int32) != right.detach().view(torch.int32)

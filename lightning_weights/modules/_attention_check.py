"""Whether attention of an unknown class computes what its parts suggest."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

TOKENS = 3
TOLERANCE = 1e-3  # of outputs with a standard deviation of about one


def difference(attention: nn.Module, rebuild: Callable[[nn.Module], nn.Module]) -> str | None:
    """Compare attention with what is to replace it, on random weights and inputs, and say where they differ.

    Args:
        attention: Attention with ``qkv`` and ``proj``; a copy of it is called.
        rebuild: Returns attention without quantizers that has the weights of the copy.

    Returns:
        The difference, or None where there is none, or where weights have no values to try it with.
    """
    tensors = list(attention.parameters())
    if any(param.is_meta or is_lazy(param) or isinstance(param, DTensor) for param in tensors):
        return None
    like = tensors[0]
    generator = torch.Generator(like.device).manual_seed(0)
    try:
        twin: Any = copy.deepcopy(attention).float().eval()
        with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
            for param in twin.parameters():
                width = param.shape[-1] if param.ndim > 1 else 4
                param.normal_(0.0, width**-0.5, generator=generator)
            x = 2.0 * torch.randn(1, TOKENS, twin.qkv.in_features, generator=generator, device=like.device)
            found, expected = twin.forward(x), rebuild(twin).eval()(x)
    except Exception as error:  # any class may raise anything
        return f"it can't be called with tokens alone: {type(error).__name__}: {error}"
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return "it does not return outputs of the shape of its inputs, and nothing else"
    if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        return "it computes something else than softmax(q kᵀ / √d) v of queries, keys and values in this order"
    return None

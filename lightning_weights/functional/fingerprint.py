"""Texts that tell networks apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLES = 256  # entries of each parameter that a fingerprint looks at


def plain_name(name: str) -> str:
    """Return the name of a module or tensor as the user wrote it, without what torch.compile puts into it.

    Args:
        name: Name as in ``named_modules()`` or ``named_parameters()``.

    Examples:
        >>> plain_name("net._orig_mod.weight")
        'net.weight'
    """
    return name.replace("_orig_mod.", "")


@torch.no_grad()
def fingerprint(parameters: Mapping[str, Tensor]) -> str:
    """Return a short text that tells networks apart, from names, shapes and some entries of every parameter.

    The entries are rounded to bfloat16, so that a network of that type counts as the same; one in fp16 does not.
    Parameters without values (on the meta device) give an empty text, which says nothing.

    Args:
        parameters: Parameters by name.

    Examples:
        >>> len(fingerprint({"weight": torch.ones(3)}))
        32
    """
    digest = hashlib.sha256()
    for name, param in sorted(parameters.items()):
        whole: Tensor = param.full_tensor() if hasattr(param, "full_tensor") else param
        if whole.is_meta:
            return ""
        entries = whole.reshape(-1)
        some = entries[:: max(1, len(entries) // SAMPLES)][:SAMPLES]
        digest.update(f"{plain_name(name)}{tuple(whole.shape)}".encode())
        digest.update(some.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]

"""Weights plus signatures times scales, packed signatures and those in fp32."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.rws import bits_of
from lightning_weights.kernels.apply_signature import apply_signature
from lightning_weights.modules.robust_weight_signature import RobustWeightSignature


@dataclass(frozen=True, eq=False)
class Patch:
    """A signature on a network.

    Attributes:
        signature: The signature.
        scale: Its scale, beside its own.
        targets: Tensors of the network by the signature's names.
        parts: Layers that these belong to.
        digest: The signature's.
    """

    signature: RobustWeightSignature
    scale: float
    targets: dict[str, Tensor]
    parts: list[nn.Module]
    digest: str


def check_scale(scale: object) -> None:
    """Check that a scale is a finite number."""
    check_number("scale", scale, low=-math.inf, low_allowed=False)


def scale_list(scales: float | Sequence[float], count: int) -> list[float]:
    """Return one scale for each of several signatures.

    Args:
        scales: One for all, or one for each.
        count: Number of signatures.

    Raises:
        ValueError: If there are more or fewer, or one is no finite number.
    """
    if not isinstance(scales, Sequence) or isinstance(scales, str):
        scales = [scales] * count
    if len(scales) != count:
        raise ValueError(f"scales are {len(scales)} for {count} signatures; allowed is one for all or one for each")
    for scale in scales:
        check_scale(scale)
    return [float(scale) for scale in scales]


@torch.no_grad()
def write_sums(patches: Iterable[Patch], factors: Sequence[float], clean: Mapping[Tensor, Tensor]) -> None:
    """Write clean weights plus signatures times factors into a network's tensors.

    Signatures are summed in the order of their digests, packed ones first, in fp32 or wider, and rounded once.

    Args:
        patches: The signatures on their targets.
        factors: Factor of each.
        clean: Clean values of the targets.
    """
    ordered = sorted(zip(patches, factors, strict=True), key=lambda pair: pair[0].digest)
    targets = list({id(tensor): tensor for patch, _ in ordered for tensor in patch.targets.values()}.values())
    if not targets:
        return
    packed = [pair for pair in ordered if pair[0].signature.levels is not None]
    dense = [pair for pair in ordered if pair[0].signature.levels is None]
    bases = [clean[target] for target in targets]
    if not dense:
        _add_packed(targets, bases, packed, targets)
        return
    sums = {
        t: base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
        for t, base in zip(targets, bases, strict=True)
    }
    _add_packed(list(sums.values()), list(sums.values()), packed, targets)
    for patch, factor in dense:
        for name, target in patch.targets.items():
            if factor != 0:
                value = patch.signature.parts[name].to(sums[target])
                sums[target] += factor * value.view(target.shape)
    for target, total in sums.items():
        target.copy_(total)


def _add_packed(
    outs: Sequence[Tensor], bases: Sequence[Tensor], packed: Sequence[tuple[Patch, float]], targets: Sequence[Tensor]
) -> None:
    if not packed:
        return
    place = {target: t for t, target in enumerate(targets)}
    low, high = (
        torch.zeros(len(packed), len(targets), dtype=torch.float32, device=targets[0].device) for _ in range(2)
    )
    codes: list[list[Tensor | None]] = [[None] * len(targets) for _ in packed]
    for i, (patch, _) in enumerate(packed):
        at = [place[target] for target in patch.targets.values()]
        low[i, at], high[i, at] = patch.signature.low.to(low), patch.signature.high.to(high)
        for t, part in zip(at, patch.signature.parts.values(), strict=True):
            codes[i][t] = part.to(low.device)
    bits = [bits_of(patch.signature.levels or 0) for patch, _ in packed]
    apply_signature(outs, bases, codes, low, high, [factor for _, factor in packed], bits)

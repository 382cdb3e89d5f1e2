"""Statistics-based weight quantization as a module."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.ofq import (
    CodedWeight,
    OscillationCounts,
    OscillationState,
    boundary_mask,
    stats_codes,
    statsq,
    update_oscillation,
)
from lightning_weights.kernels.statsq import statsq_observe
from lightning_weights.modules._saved_bits import save_bits


class StatsQuantizer(nn.Module):
    r"""Quantize a weight on a grid that follows from its own statistics; nothing is learned or stored.

    $$s = 2 \operatorname{mean} |W|, \quad \hat W = \frac{s}{n} \Bigl(\bigl\lfloor n \operatorname{clamp}(W / s, -1,
    1 - 10^{-6}) - \tfrac12 \bigr\rceil + \tfrac12\Bigr), \quad n = 2^{b-1}$$

    The gradient is the identity for every weight. Codes that something else froze (iterative freezing) are held at
    their level, without gradient; they are in the state dict as long as they are held.

    Args:
        bits: b from 2 to 8.
        dim: Dimension of the weight whose indices have a scale s each; the mean is over all others.

    Raises:
        ValueError: If an argument is not a whole number, or ``bits`` is out of range.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> import torch
        >>> quantizer = StatsQuantizer(bits=2)
        >>> quantizer(torch.tensor([[-0.2, 0.6, 1.0, -0.2]]))
        tensor([[-0.2500,  0.7500,  0.7500, -0.2500]])
    """

    frozen: Tensor | None
    frozen_codes: Tensor | None

    def __init__(self, bits: int = 2, dim: int = 0) -> None:
        check_number("bits", bits, low=2, high=9, whole=True)
        check_number("dim", dim, low=-float("inf"), whole=True)
        super().__init__()
        self.bits = int(bits)
        self.dim = int(dim)
        self.register_buffer("frozen", None)
        self.register_buffer("frozen_codes", None)
        self.register_load_state_dict_pre_hook(_make_room)
        save_bits(self)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight, of the shape and dtype of the weight."""
        values = statsq(weight, self.bits, self.dim)
        if self.frozen is None:
            return values
        return torch.where(self.frozen, self.coded(weight).dequantize().to(values.dtype), values)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the integers, int8, of the shape of the weight."""
        return self.coded(weight).codes

    def coded(self, weight: Tensor) -> CodedWeight:
        """Return integers and steps, whose ``dequantize()`` is what ``forward`` returns, bit for bit."""
        coded = stats_codes(weight.detach(), self.bits, self.dim)
        if self.frozen is None:
            return coded
        return coded._replace(codes=torch.where(self.frozen, self.frozen_codes, coded.codes))

    def movable(self, weight: Tensor, boundary_range: float) -> Tensor:
        """Tell which weights are no farther than ``boundary_range`` steps from a threshold between two codes."""
        return boundary_mask(weight, self.bits, boundary_range, self.dim)

    def track(
        self, weight: Tensor, state: OscillationState, momentum: float = 0.01, threshold: float = 0.005
    ) -> OscillationCounts:
        """Advance the history of the codes in place, and count, in one pass over the weight.

        Args:
            weight: Weight as it is now.
            state: As ``start_oscillation`` makes it from the codes.
            momentum: Weight of one oscillation in the average.
            threshold: Average above which a code counts as oscillating.

        Returns:
            How many codes changed, oscillated and are oscillating.
        """
        if self.dim != 0 or self.frozen is not None:
            return update_oscillation(self.codes(weight), state, momentum, threshold)
        rows, *history = (tensor.flatten(1) for tensor in (weight.detach(), *state))
        counts = statsq_observe(rows, self.bits, tracker=history, momentum=momentum, threshold=threshold).counts
        return OscillationCounts(*counts[:3])

    def hold(self, frozen: Tensor, codes: Tensor) -> None:
        """Hold codes at a level, whatever their weights do.

        Args:
            frozen: Which codes are held, bool.
            codes: Their levels, int8; anything for the others.

        Raises:
            ValueError: If the shapes or types do not fit.
        """
        if frozen.shape != codes.shape or frozen.dtype != torch.bool or codes.dtype != torch.int8:
            raise ValueError(
                f"frozen is {frozen.dtype} of shape {tuple(frozen.shape)} and codes {codes.dtype} of shape "
                f"{tuple(codes.shape)}; allowed are torch.bool and torch.int8 of the weight's shape"
            )
        self.frozen, self.frozen_codes = frozen, codes

    def release(self) -> None:
        """Let all codes follow their weights again."""
        self.frozen = self.frozen_codes = None

    def extra_repr(self) -> str:
        """Show the arguments."""
        return f"bits={self.bits}, dim={self.dim}"


def _make_room(quantizer: StatsQuantizer, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
    """Take buffers of what a checkpoint holds, and none if it holds nothing."""
    for name in ("frozen", "frozen_codes"):
        saved = state_dict.get(f"{prefix}{name}")
        setattr(quantizer, name, None if saved is None else torch.empty_like(saved))

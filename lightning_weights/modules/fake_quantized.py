"""What all modules with a quantized weight have in common."""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, check_choice
from lightning_weights.functional.ofq import CodedWeight, OscillationCounts, OscillationState, update_oscillation
from lightning_weights.modules._wide_parameters import NARROW, keeping_width
from lightning_weights.modules.lsq_quantizer import LSQQuantizer
from lightning_weights.modules.stats_quantizer import StatsQuantizer

QUANTIZERS = ("statsq", "lsq")


class FakeQuantized(nn.Module):
    """Hold a weight in full precision, its latent, and compute with what a quantizer makes of it.

    Latents stay in fp32 when the network is converted to a narrow precision: steps below the distance of two narrow
    numbers would never change a code.

    Examples:
        >>> from lightning_weights.modules import FakeQuantLinear
        >>> layer = FakeQuantLinear(4, 4, weight_bits=3)
        >>> isinstance(layer, FakeQuantized), layer.coded_weight().bits
        (True, 3)
    """

    weight_quantizer: StatsQuantizer | LSQQuantizer | None
    weight: Tensor

    def latent_weight(self) -> Tensor:
        """Return the weight in full precision."""
        return self.weight

    def quantized_weight(self) -> Tensor:
        """Return what the layer computes with; the latent if nothing is quantized."""
        latent = self.latent_weight()
        return latent if self.weight_quantizer is None else self.weight_quantizer(latent)

    def coded_weight(self) -> CodedWeight:
        """Return integers and steps, whose ``dequantize()`` is the quantized weight, bit for bit.

        Raises:
            ValueError: If the weight is not quantized.
        """
        if self.weight_quantizer is None:
            raise ValueError("the weight is not quantized: weight_bits is None")
        with torch.no_grad():
            return self.weight_quantizer.coded(self.latent_weight())

    def weight_codes(self) -> Tensor:
        """Return the integers alone."""
        return self.coded_weight().codes

    def track(self, state: OscillationState, momentum: float = 0.01, threshold: float = 0.005) -> OscillationCounts:
        """Advance the history of the weight's codes in place.

        Args:
            state: As ``start_oscillation`` makes it from ``weight_codes()``.
            momentum: Weight of one oscillation in the average.
            threshold: Average above which a code counts as oscillating.

        Returns:
            How many codes changed, oscillated and are oscillating.
        """
        if isinstance(self.weight_quantizer, StatsQuantizer):
            with torch.no_grad():
                return self.weight_quantizer.track(self.latent_weight(), state, momentum, threshold)
        return update_oscillation(self.weight_codes(), state, momentum, threshold)

    def movable(self, boundary_range: float) -> list[tuple[nn.Parameter, Tensor]]:
        """Tell what annealing lets move: pairs of a parameter and a mask, none without statistics-based quantizer.

        Args:
            boundary_range: Distance from a threshold, in quantization steps, up to which a weight may move.
        """
        if not isinstance(self.weight_quantizer, StatsQuantizer):
            return []
        with torch.no_grad():
            mask = self.weight_quantizer.movable(self.latent_weight(), boundary_range)
        return self._masked_parameters(mask)

    def zero_rows(self) -> int:
        """Return how many rows have weights of zero only, so that their scale is zero."""
        if not isinstance(self.weight_quantizer, StatsQuantizer):
            return 0
        return int((self.coded_weight().step == 0).sum())

    def latents(self) -> list[nn.Parameter]:
        """Return the parameters that the latent weight consists of."""
        return [self._parameters["weight"]]  # type: ignore[list-item]

    def _masked_parameters(self, mask: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        return [(self.latents()[0], mask)]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert all tensors, but leave latents their precision."""
        return super()._apply(keeping_width(fn, self.latents(), _warn_about_width), recurse)


def make_weight_quantizer(kind: Literal["statsq", "lsq"], bits: int | None) -> StatsQuantizer | LSQQuantizer | None:
    """Return the quantizer of a weight whose rows have a step each; None for None bits.

    Args:
        kind: ``statsq`` or ``lsq``.
        bits: From 2 to 8, or None.

    Raises:
        ValueError: If an argument is not allowed.
    """
    check_choice("weight_quantizer", kind, QUANTIZERS)
    if bits is None:
        return None
    return StatsQuantizer(bits) if kind == "statsq" else LSQQuantizer(bits, granularity="row")


def fake_quantized(module: nn.Module) -> dict[str, FakeQuantized]:
    """Return all parts of a network with a quantized weight by name, in their order.

    Args:
        module: Where to look.

    Examples:
        >>> from lightning_weights.modules import FakeQuantLinear
        >>> list(fake_quantized(nn.Sequential(FakeQuantLinear(4, 4), nn.ReLU(), nn.Linear(4, 2))))
        ['0']
    """
    found = {name: part for name, part in module.named_modules() if isinstance(part, FakeQuantized)}
    return {name: part for name, part in found.items() if part.weight_quantizer is not None}


def warn_about_zero_rows(module: nn.Module) -> None:
    """Warn about quantized weights with rows of zeros, which come out as zeros and learn nothing about scales.

    Args:
        module: Where to look.

    Warns:
        LightningWeightsWarning: If there are such rows, with the names of their layers.

    Examples:
        >>> from lightning_weights.modules import FakeQuantLinear
        >>> warn_about_zero_rows(nn.Sequential(FakeQuantLinear(4, 4)))
    """
    counts = {name: part.zero_rows() for name, part in fake_quantized(module).items()}
    if any(counts.values()):
        found = ", ".join(f"{name or 'the layer'} ({count})" for name, count in counts.items() if count)
        warnings.warn(
            f"weights have rows of zeros only, which have no scale and are quantized to zero: {found}",
            LightningWeightsWarning,
            stacklevel=2,
        )


def widen(parameter: nn.Parameter) -> None:
    """Give a latent weight of narrow precision fp32, in place."""
    if parameter.dtype in NARROW:
        parameter.data = parameter.data.float()
        _warn_about_width()


def _warn_about_width() -> None:
    warnings.warn(
        "latent weights of quantized layers stay in fp32: most steps are smaller than the distance of two numbers of "
        "the narrow precision and would never change a code",
        LightningWeightsWarning,
        stacklevel=2,
    )

"""How often integer codes of quantized weights go to and fro."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_weights.errors import check_number
from lightning_weights.functional.ofq import OscillationState, update_oscillation

COUNTS = ("flips", "oscillations", "oscillating", "steps")


class OscillationRate(Metric):
    r"""Report how many codes change per step, how many oscillate, and how often codes have turned back.

    $$o_t = [\,k_t \ne k_{t-1},\ \operatorname{sign}(k_{t-1} - k_t) = -D\,], \qquad f_t = m\, o_t + (1 - m) f_{t-1}$$

    D is the last direction in which the code has changed. A weight oscillates if f is above the threshold. The first
    update says where codes begin, and every other one is a step; it may come from any quantizer that has integer codes.
    All processes hold the same weights, so that every one of them knows the result.

    Args:
        momentum: m, the weight of one oscillation in f.
        threshold: f above which a weight oscillates.
        **kwargs: Options of every torchmetrics ``Metric``, such as ``sync_on_compute``.

    Raises:
        ValueError: If an argument is out of range.

    Source: Nagel et al. 2022, arXiv:2203.11086; Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> metric = OscillationRate(momentum=0.5, threshold=0.4)
        >>> for codes in ([0, 0], [1, 0], [0, 0]):
        ...     metric.update(torch.tensor(codes))
        >>> metric.compute()
        {'flips': tensor(0.5000), 'oscillating': tensor(0.5000), 'oscillations': tensor(1.)}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    previous: Tensor
    direction: Tensor
    ema: Tensor
    counts: Tensor

    def __init__(self, momentum: float = 0.01, threshold: float = 0.005, **kwargs: Any) -> None:
        check_number("momentum", momentum, low=0.0, low_allowed=False, high=1.0)
        check_number("threshold", threshold, low=0.0, high=1.0)
        super().__init__(**kwargs)
        self.momentum = momentum
        self.threshold = threshold
        # the mean over processes is the value of any one of them; integers as float64, of which a mean is exact
        for name in ("previous", "direction", "ema"):
            self.add_state(name, torch.zeros(0, dtype=torch.float64), dist_reduce_fx="mean")
        self.add_state("counts", torch.zeros(len(COUNTS), dtype=torch.float64), dist_reduce_fx="mean")

    def update(self, codes: Tensor | Mapping[str, Tensor]) -> None:
        """Take the codes after a step.

        Args:
            codes: Integers of any shape, or several tensors by name, always the same ones.

        Raises:
            ValueError: If there are more or fewer of them than before, or they are no integers.
        """
        tensors = [codes] if isinstance(codes, Tensor) else list(codes.values())
        if not tensors or any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors):
            kinds = ", ".join(str(tensor.dtype) for tensor in tensors) or "nothing"
            raise ValueError(f"codes are {kinds}; allowed are integers, as weight_codes() returns them")
        now = torch.cat([tensor.detach().flatten().to(self.previous.device, torch.float64) for tensor in tensors])
        if not len(self.previous):
            self.previous, self.direction, self.ema = now, torch.zeros_like(now), torch.zeros_like(now)
            return
        if len(now) != len(self.previous):
            raise ValueError(
                f"codes are {len(now)} now and were {len(self.previous)} before; give all of them, or call reset"
            )
        state = OscillationState(self.previous.clone(), self.direction.clone(), self.ema.clone())
        flips, oscillations, oscillating = update_oscillation(now, state, self.momentum, self.threshold)
        self.previous, self.direction, self.ema = state
        before = self.counts
        self.counts = torch.stack([before[0] + flips, before[1] + oscillations, oscillating, before[3] + 1]).double()

    def compute(self) -> dict[str, Tensor]:
        """Return the share of codes that change per step, of those that oscillate now, and all oscillations so far."""
        flips, oscillations, oscillating, steps = self.counts.float()
        size = max(1, len(self.previous))
        return {
            "flips": flips / (size * steps.clamp(min=1)),
            "oscillating": oscillating / size,
            "oscillations": oscillations,
        }

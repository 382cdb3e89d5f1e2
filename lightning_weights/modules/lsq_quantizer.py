"""Quantization with a learned step as a module."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_choice
from lightning_weights.functional.ofq import CodedWeight, lsq, lsq_bounds, lsq_codes, lsq_step
from lightning_weights.modules._saved_bits import save_bits
from lightning_weights.modules._wide_parameters import keeping_width

DIMENSIONS = {"tensor": None, "token": -2, "channel": -1, "row": 0}


class LSQQuantizer(nn.Module):
    r"""Quantize with a learned step that starts from the first values seen.

    $$\hat x = \alpha \lfloor \operatorname{clamp}(x / \alpha, Q_N, Q_P) \rceil$$

    The parameter ``step`` has no elements until the first call, which makes one per index: calibrate before the
    optimizer's first step. It is the same ``Parameter`` object before and after.

    Args:
        bits: b from 2 to 8.
        signed: Whether there are negative codes.
        granularity: What has a step of its own: the ``tensor``; a ``token``, the last dimension but one of (batch, ...,
            tokens, channels), which ties it to that number of tokens; a ``channel``, the last dimension; a ``row``, the
            first one of a weight.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Esser et al. 2020, arXiv:1902.08153, in the form of Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> import torch
        >>> quantizer = LSQQuantizer(bits=2, granularity="tensor")
        >>> quantizer(torch.tensor([-1.0, 1.0, 0.2, -0.2])), quantizer.step
        (tensor([-1.2000,  1.2000,  0.0000, -0.0000], grad_fn=<_LSQBackward>), Parameter containing:
        tensor([1.2000], requires_grad=True))
    """

    def __init__(
        self,
        bits: int = 2,
        signed: bool = True,
        granularity: Literal["tensor", "token", "channel", "row"] = "token",
    ) -> None:
        check_choice("granularity", granularity, tuple(DIMENSIONS))
        lsq_bounds(bits, signed)
        super().__init__()
        self.bits = int(bits)
        self.signed = signed
        self.granularity = granularity
        self.step = nn.Parameter(torch.empty(0))
        self._batches: int | None = None  # seen so far while steps are averaged over several
        self.register_load_state_dict_pre_hook(_take_size_of)
        save_bits(self)

    @property
    def calibrated(self) -> bool:
        """Whether the step has values."""
        return self.step.numel() > 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized values, of the shape and dtype of ``x``."""
        if self._batches is not None or not self.calibrated:
            self._calibrate(x)
        return lsq(x, self.step, self.bits, self.signed, self._dimension(x))

    def codes(self, x: Tensor) -> Tensor:
        """Return the integers, int8 with sign and uint8 without."""
        return self.coded(x).codes

    def coded(self, x: Tensor) -> CodedWeight:
        """Return integers and steps, whose ``dequantize()`` is what ``forward`` returns, bit for bit."""
        return lsq_codes(x, self.step, self.bits, self.signed, self._dimension(x))

    def _dimension(self, x: Tensor) -> int | None:
        if self.granularity == "token" and x.dim() < 3:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; a step per token needs (batch, ..., tokens, channels). Choose "
                f"granularity 'tensor' or 'channel' where inputs have no tokens"
            )
        return DIMENSIONS[self.granularity]

    def _calibrate(self, x: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            step = lsq_step(x, self.bits, self.signed, self._dimension(x))
            if self._batches:
                step = (self.step * self._batches + step) / (self._batches + 1)
            self.step.data = step
        if self._batches is not None:
            self._batches += 1

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert all tensors, but leave the step its precision."""
        return super()._apply(keeping_width(fn, [self.step]), recurse)

    def extra_repr(self) -> str:
        """Show the arguments and the number of steps."""
        return f"bits={self.bits}, signed={self.signed}, granularity={self.granularity!r}, steps={self.step.numel()}"


@contextmanager
def calibrating(module: nn.Module) -> Iterator[None]:
    """Let the steps of all learned-step quantizers become the mean of what each batch suggests.

    Args:
        module: Network; run batches through it inside the ``with`` block, before it has an optimizer.

    Examples:
        >>> import torch
        >>> quantizer = LSQQuantizer(granularity="tensor")
        >>> with calibrating(quantizer):
        ...     y = quantizer(torch.ones(2)), quantizer(torch.full((2,), 3.0))
        >>> quantizer.step.detach()
        tensor([4.])
    """
    quantizers = [part for part in module.modules() if isinstance(part, LSQQuantizer)]
    for quantizer in quantizers:
        quantizer._batches = 0
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer._batches = None


def _take_size_of(quantizer: LSQQuantizer, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
    saved = state_dict.get(f"{prefix}step")
    if saved is not None and saved.shape != quantizer.step.shape and 0 in (saved.numel(), quantizer.step.numel()):
        quantizer.step.data = quantizer.step.new_empty(saved.shape)

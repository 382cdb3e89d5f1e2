"""Raw inputs to normalised ones, with the box of all inputs that are allowed instead of them."""

from collections.abc import Sequence
from numbers import Real

from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.ibp_warmup import input_box, normalize


class InputBox(nn.Module):
    """Normalise raw inputs and surround each with all valid inputs within ε of it.

    Args:
        mean: Mean per channel. ``None``: 0.
        std: Standard deviation per channel, above 0. ``None``: 1.
        input_range: Smallest and largest valid raw input, such as (0, 1) for pixels; boxes end there.

    Raises:
        ValueError: If a number is out of range or the lengths differ; when called, if ε or
            inputs are outside the range or NaN, not of as many channels, or in half precision.

    Source: Shi, Wang, Zhang, Yi, Hsieh, 2021, arXiv:2103.17268.

    Examples:
        >>> import torch
        >>> z, lower, upper = InputBox(mean=[0.5], std=[0.25])(torch.tensor([[0.5], [1.0]]), eps=0.1)
        >>> z.flatten().tolist(), [round(end, 2) for end in (*lower.flatten().tolist(), *upper.flatten().tolist())]
        ([0.0, 2.0], [-0.4, 1.6, 0.4, 2.0])
    """

    def __init__(
        self,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        for name, values, low in (("mean", mean, -float("inf")), ("std", std, 0.0)):
            if values is not None and (not isinstance(values, Sequence) or isinstance(values, str) or not len(values)):
                raise ValueError(f"{name} is {values!r}; allowed is a list with one number per channel, or None")
            for index, value in enumerate(values or ()):
                check_number(f"{name}[{index}]", value, low=low, low_allowed=False)
        if mean is not None and std is not None and len(mean) != len(std):
            raise ValueError(f"mean has {len(mean)} entries and std {len(std)}; allowed is one of each per channel")
        numbers = isinstance(input_range, Sequence) and all(isinstance(end, Real) for end in input_range)
        if not numbers or len(input_range) != 2 or not input_range[0] < input_range[1]:
            raise ValueError(f"input_range is {input_range!r}; allowed are two numbers, the smaller one first")
        super().__init__()
        self.mean = None if mean is None else list(mean)
        self.std = None if std is None else list(std)
        self.low, self.high = map(float, input_range)

    def forward(self, x: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised inputs, lower and upper ends of their boxes.

        Args:
            x: Raw inputs, shape (N, C, ...), or (N, ...) without mean and std.
            eps: Radius in units of the raw inputs, a number or a 0-dim tensor.
        """
        return input_box(x, eps, self.mean, self.std, self.low, self.high)

    def normalize(self, x: Tensor) -> Tensor:
        """Return normalised inputs, in their precision; the valid range is not checked, since nothing is proved.

        Args:
            x: Raw inputs.
        """
        return normalize(x, self.mean, self.std)

"""Inputs on which kernels usually go wrong, for the tests of every kernel."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Empty, single, odd, one vector, many vectors with a tail, one element more than a block, and several ragged blocks.
SHAPES = ((0,), (1,), (7,), (16,), (1000,), (1025,), (3, 1111))
MARGIN = 64  # elements on either side; a multiple of 16 bytes in every dtype


class Guarded:
    """A tensor cut out of a larger buffer of NaN, which tells whether somebody wrote beside it.

    ``shift`` moves its start by that many elements, which ends the alignment to 16 bytes.
    """

    def __init__(self, values: Tensor, shift: int = 0) -> None:
        start, count = MARGIN + shift, values.numel()
        self._buffer = torch.full((count + 2 * MARGIN + shift,), torch.nan, dtype=values.dtype, device=values.device)
        self.tensor = self._buffer[start : start + count].view(values.shape)
        self.tensor.copy_(values)
        self._outside = torch.cat([torch.arange(start), torch.arange(start + count, len(self._buffer))])

    def untouched(self) -> bool:
        return bool(self._buffer[self._outside].isnan().all())


def guarded(tensors: Iterable[Tensor], shift: int = 0) -> tuple[list[Tensor], Callable[[], bool]]:
    """Copies of tensors inside NaN, and a function that tells whether everything around them is still NaN."""
    guards = [Guarded(tensor, shift) for tensor in tensors]
    return [guard.tensor for guard in guards], lambda: all(guard.untouched() for guard in guards)


def strided(values: Tensor) -> Tensor:
    """The same values in every second element of a buffer."""
    return torch.stack([values, torch.full_like(values, torch.nan)], dim=-1)[..., 0]


def ulps(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance from each value to the next representable one in ``dtype``, in fp32."""
    here = value.to(dtype)
    return (torch.nextafter(here, torch.full_like(here, torch.inf)).float() - here.float()).abs()

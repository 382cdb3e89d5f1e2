"""What layers and norms of growing networks share: half a width for each member, the whole one after growth."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number

MODES = ("member0", "member1", "grown")

Mode = Literal["member0", "member1", "grown"]


class MixturePart(nn.Module):
    """A module with three modes, of which checkpoints know the current one."""

    phase: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phase", torch.zeros((), dtype=torch.int8))
        self._mode: str = MODES[0]
        self._chosen = False  # whether somebody has asked for this mode

    @property
    def mode(self) -> str:
        """``member0``, ``member1`` or ``grown``."""
        return self._mode

    @mode.setter
    def mode(self, value: Mode) -> None:
        check_choice("mode", value, MODES)
        self.phase.fill_(MODES.index(value))
        self._mode = value
        self._chosen = True

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._follow_phase()
        self._chosen = True

    def train(self, mode: bool = True) -> Any:
        """Switch between training and evaluation, and follow a phase that was copied from another network."""
        self._follow_phase()  # averaged copies of a network get the values of its buffers, and nothing else
        return super().train(mode)

    def _follow_phase(self) -> None:
        if not self.phase.is_meta:
            # forward passes look at the string: a graph of torch.compile for each mode, and no value to wait for
            self._mode = MODES[int(self.phase)]

    def _half(self, whole: int) -> slice:
        """Return which of so many channels belong to the member whose mode this is."""
        member = MODES.index(self._mode)
        return slice(member * whole // 2, (member + 1) * whole // 2)


def half_of(name: str, channels: int, split: bool) -> int:
    """Return a member's share of some channels.

    Args:
        name: Argument that tells their number, for the message.
        channels: Number of channels.
        split: Whether members have half of them.

    Raises:
        ValueError: If the number is no whole number from 1, or odd where it is to be split.
    """
    check_number(name, channels, low=1, whole=True)
    if split and channels % 2:
        raise ValueError(
            f"{name} is {channels}, which is odd; allowed is an even number, of which each member has half"
        )
    return channels // 2 if split else channels

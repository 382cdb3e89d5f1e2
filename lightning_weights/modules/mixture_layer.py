"""The weight of a mixture layer: templates, coefficients, and the block that a mode needs."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, check_choice
from lightning_weights.functional.mixture_growth import (
    block_layout,
    check_template_sets,
    initial_coefficients,
    new_coefficients,
)
from lightning_weights.kernels.mix_templates import mix_templates
from lightning_weights.modules.mixture_part import MODES, MixturePart
from lightning_weights.modules.template_bank import TemplateBank

STARTS = ("orthogonal", "normal", "ones")


class MixtureLayer(MixturePart):
    """Base of layers whose weight is mixed from templates; a subclass says what is done with it."""

    def _configure(
        self,
        block_shape: tuple[int, ...],
        split: tuple[bool, bool],
        grouped: bool,
        bias: bool,
        num_templates: int,
        template_sets: Sequence[int],
        init: str,
        start: str,
        bank: TemplateBank | None,
    ) -> None:
        """Make templates, coefficients and biases: all that there will ever be, so that growth adds nothing."""
        check_choice("start", start, STARTS)
        self.split_in, self.split_out = split
        self.template_sets = check_template_sets(template_sets)
        self.order, self.columns = block_layout(*split, grouped)
        if bank is not None and bank.block_shape != block_shape:
            raise ValueError(
                f"bank has blocks of shape {bank.block_shape}, and this layer's are {block_shape}; allowed is a bank "
                f"of the same shape, or None"
            )
        self.bank = TemplateBank(block_shape, num_templates, init) if bank is None else bank
        blocks, count = len(self.order), self.bank.num_templates
        make = {"orthogonal": initial_coefficients, "normal": torch.randn, "ones": torch.ones}[start]
        # one parameter per block: those of an idle member have no gradient, so that no optimizer touches them
        self.coefficients = nn.ParameterList(
            nn.Parameter(row.clone(), requires_grad=start != "ones") for row in make(blocks, count)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(block_shape[0])) for _ in range(2)) if bias else None

    @property
    def grows(self) -> bool:
        """Whether growth adds blocks between the members."""
        return len(self.order) > 2

    @property
    def weight(self) -> Tensor:
        """The weight of the current mode: a member's, or the whole one."""
        return self._weight(self.bank.sets[0].dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the current mode: a member's, both side by side, or, where outputs are not split, their sum."""
        if self.biases is None:
            return None
        if self._mode != "grown":
            return self.biases[MODES.index(self._mode)]
        return torch.cat(list(self.biases)) if self.split_out else self.biases[0] + self.biases[1]

    def _weight(self, dtype: torch.dtype) -> Tensor:
        if self._mode == "grown":
            factors = torch.stack([self.coefficients[block] for block in self.order])
            sets = [self.template_sets[block] for block in self.order]
            return mix_templates(list(self.bank.sets), factors, sets, self.columns, dtype=dtype)
        member = MODES.index(self._mode)
        return mix_templates([self.bank.sets[member]], self.coefficients[member].unsqueeze(0), (0,), dtype=dtype)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias for an input: mixed in fp32, and rounded at once where autocast would do it next."""
        if self.training and not self._chosen and not torch.compiler.is_compiling():
            self._warn_unless_chosen()
        kind, dtype = x.device.type, self.bank.sets[0].dtype
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # none for kind "meta"
        if autocast and dtype != torch.float64:  # which autocast leaves alone, too
            dtype = torch.get_autocast_dtype(kind)
        return self._weight(dtype), self.bias

    def _warn_unless_chosen(self) -> None:
        self._chosen = True
        if not self.split_in:  # of the first layer only
            warnings.warn(
                "a network with mixture layers is trained in mode 'member0' without anybody having asked for it, and "
                "will stay half as wide: give the Trainer the callback MixtureGrowth, or use set_mode and grow",
                LightningWeightsWarning,
                stacklevel=5,
            )

    def _check_channels(self, channels: int, whole: int) -> None:
        wanted = whole if self._mode == "grown" or not self.split_in else whole // 2
        if channels != wanted:
            raise ValueError(
                f"{type(self).__name__} in mode {self._mode!r} takes {wanted} of its {whole} input channels and got "
                f"{channels}; a forward pass must not have numbers of channels in it, such as those of a reshape"
            )

    def new_coefficients(
        self, init: str, scale: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return what the blocks between the members will be mixed with; ``None`` if there are none.

        Args:
            init: As of the function of this name in ``functional.mixture_growth``, as are the others.
            scale: Length.
            generator: Source of noise.
        """
        if not self.grows:
            return None
        return new_coefficients(list(self.coefficients), init, scale, self.template_sets, generator)

    def _describe(self) -> str:
        return f"mode={self._mode!r}, split_in={self.split_in}, split_out={self.split_out}"

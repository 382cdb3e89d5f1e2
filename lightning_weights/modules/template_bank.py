"""Sets of templates, which layers of one shape may share."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.mixture_growth import initial_templates


class TemplateBank(nn.Module):
    """Hold two sets of templates, of which the weights of mixture layers are linear combinations.

    Every layer makes one of its own unless it is given one, which several layers of one block shape may share.

    Args:
        block_shape: Shape of a block, half of the layer's weight in every dimension that is split.
        num_templates: K, templates of each set.
        init: ``kaiming`` for the variance 2 / fan-in of a block, ``official`` for the authors' much smaller one.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251.

    Examples:
        >>> bank = TemplateBank((8, 4, 3, 3), num_templates=3)
        >>> bank.sets[0].shape
        torch.Size([3, 8, 4, 3, 3])
    """

    def __init__(
        self,
        block_shape: Sequence[int],
        num_templates: int = 2,
        init: Literal["kaiming", "official"] = "kaiming",
    ) -> None:
        check_number("num_templates", num_templates, low=1, whole=True)
        for size in block_shape:
            check_number("block_shape", size, low=1, whole=True)
        super().__init__()
        # two parameters: the set of an idle member has no gradient, so that no optimizer touches it
        self.sets = nn.ParameterList(
            nn.Parameter(initial_templates(num_templates, tuple(block_shape), init)) for _ in range(2)
        )

    @property
    def num_templates(self) -> int:
        """K, templates of each set."""
        return len(self.sets[0])

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of a block."""
        return tuple(self.sets[0].shape[1:])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # a stack of templates is one dimension deeper than a weight, and memory formats mean nothing to it
        return super()._apply(lambda stack: fn(stack.flatten(1)).view(stack.shape), recurse)

    def extra_repr(self) -> str:
        """Describe the bank in one line."""
        return f"2 sets of {self.num_templates} templates {self.block_shape}"

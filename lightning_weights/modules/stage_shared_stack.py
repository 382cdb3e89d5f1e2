"""Blocks that are applied several times in a row."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.learngene_sws import stages_of_layers
from lightning_weights.functional.stochastic_depth import drop_path, layer_probabilities
from lightning_weights.modules._wrapped import plain


class StageSharedStack(nn.ModuleList):
    """Apply every block of a list several times in a row, with the same weights every time.

    The list has one block per stage, and so have parameters and state dict, however many layers there are. A block
    takes hidden states and returns hidden states, or a tuple that begins with them, as layers of transformers do.
    Whatever else the stack is called with goes to every block.

    Blocks whose ``forward`` has an argument ``drop_path``, as that of
    [`TransformerBlock`][lightning_weights.modules.TransformerBlock], leave out their branches one by one; of others all
    that they add is left out together.

    Args:
        blocks: One block per stage.
        repeats: How often every block is applied, at least once each. ``None``: once each, an ordinary stack.
        drop_path: Probability of leaving out what the last layer adds to a sample in training, at least 0 and below 1;
            over the layers it grows in equal steps from 0. Layers of one stage differ in nothing else.

    Raises:
        ValueError: If a number is out of range, or ``repeats`` has not one number per block.

    Source: Xia et al. 2024, arXiv:2404.16897.

    Examples:
        >>> import torch
        >>> stack = StageSharedStack([nn.Linear(4, 4), nn.Linear(4, 4)], repeats=[3, 1])
        >>> x, (a, b) = torch.randn(2, 4), stack
        >>> torch.equal(stack(x), b(a(a(a(x))))), stack.stage_of_layer, len(list(stack.parameters()))
        (True, [0, 0, 0, 1], 4)
    """

    def __init__(
        self, blocks: Sequence[nn.Module] | nn.ModuleList, repeats: Sequence[int] | None = None, drop_path: float = 0.0
    ) -> None:
        check_number("drop_path", drop_path, low=0.0, high=1.0)
        super().__init__(blocks)
        counts = [1] * len(self) if repeats is None else repeats
        self.stage_of_layer = stages_of_layers(counts)
        if len(counts) != len(self):
            raise ValueError(
                f"repeats is {list(counts)}, and there are {len(self)} blocks; allowed is one number for every block"
            )
        self.repeats = [int(count) for count in counts]
        self.drop_path = drop_path
        forwards = [inspect.signature(plain(block).forward) for block in self]
        self._takes_probability = ["drop_path" in forward.parameters for forward in forwards]

    @property
    def layer_of_stage(self) -> list[list[int]]:
        """Layers of every stage."""
        layers = range(len(self.stage_of_layer))
        return [[layer for layer in layers if self.stage_of_layer[layer] == stage] for stage in range(len(self))]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what comes out of the last layer.

        Args:
            x: Hidden states of shape (batch, ...).
            *args: What every block gets besides.
            **kwargs: What every block gets besides, by name.
        """
        probabilities = layer_probabilities(len(self.stage_of_layer), self.drop_path if self.training else 0.0)
        for stage, probability in zip(self.stage_of_layer, probabilities, strict=True):
            block = self[stage]
            if probability > 0.0 and self._takes_probability[stage]:
                x = _hidden(block(x, *args, drop_path=probability, **kwargs))
            else:
                out = _hidden(block(x, *args, **kwargs))
                x = out if probability == 0.0 else x + drop_path(out - x, probability, True)
        return x

    def extra_repr(self) -> str:
        """Return what the constructor was given besides the blocks."""
        return f"repeats={self.repeats}, drop_path={self.drop_path}"


def _hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]

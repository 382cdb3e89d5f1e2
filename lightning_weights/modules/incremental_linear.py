"""A linear layer that gains outputs."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError, check_number


class IncrementalLinear(nn.Linear):
    """Apply a linear layer that can be given more outputs, for classes that arrive later.

    Everything else is ``nn.Linear``, with which it shares its state dict. It may start without outputs. Loading a state
    dict with another number of outputs resizes the layer first. The weight remains the same ``Parameter`` object, so
    that an optimizer made before still holds it; state that an optimizer has for it (momentum) must be made anew.

    Args:
        in_features: Length of the inputs.
        out_features: Number of outputs to begin with, 0 for none.
        bias: Whether the outputs have a bias.

    Raises:
        ValueError: If a size is not a whole number, or negative.

    Examples:
        >>> import torch
        >>> head = IncrementalLinear(8, out_features=2)
        >>> old = head.weight.detach().clone()
        >>> head.grow(3)
        >>> head(torch.zeros(4, 8)).shape, torch.equal(head.weight[:2], old)
        (torch.Size([4, 5]), True)
    """

    def __init__(self, in_features: int, out_features: int = 0, bias: bool = False) -> None:
        check_number("in_features", in_features, low=1, whole=True)
        check_number("out_features", out_features, low=0, whole=True)
        super().__init__(in_features, out_features, bias)
        # a function, not a method: copies and pickles of the layer must resize themselves, not the original
        self.register_load_state_dict_pre_hook(_take_size_of)

    def reset_parameters(self) -> None:
        """Draw all weights anew, as ``nn.Linear`` does."""
        if self.out_features:  # nn.Linear warns about a weight without elements
            super().reset_parameters()

    def grow(self, n: int) -> None:
        """Add outputs behind those that exist, whose weights keep every bit.

        The new weights are drawn as those of a fresh ``nn.Linear``, from the global generator.

        Args:
            n: Number of outputs to add, at least 1.

        Raises:
            ValueError: If ``n`` is not a whole number from 1.
            ShardedParameterError: If the weight is sharded.
        """
        check_number("n", n, low=1, whole=True)
        self._refuse_shards()
        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        fresh = nn.Linear(self.in_features, n, bias=self.bias is not None, **like)
        for name, param in self.named_parameters(recurse=False):
            param.data = torch.cat([param.data, getattr(fresh, name).data])
            param.grad = None
        self.out_features += n

    def _resize(self, out_features: int) -> None:
        self._refuse_shards()
        for param in self.parameters(recurse=False):
            param.data = param.data.new_zeros(out_features, *param.shape[1:])
            param.grad = None
        self.out_features = out_features

    def _refuse_shards(self) -> None:
        if hasattr(self.weight, "placements"):
            raise ShardedParameterError(
                "IncrementalLinear cannot change its size while its weight is sharded; grow it, and load checkpoints "
                "of other sizes, before fully_shard"
            )


def _take_size_of(layer: IncrementalLinear, state_dict: dict[str, Tensor], prefix: str, *unused: Any) -> None:
    """Give a layer as many outputs as the weight that is about to be loaded."""
    weight = state_dict.get(f"{prefix}weight")
    # of another width: left to nn.Linear, which says so
    fits = weight is not None and weight.ndim == 2 and weight.shape[1] == layer.in_features
    if fits and len(weight) != layer.out_features:
        layer._resize(len(weight))

"""What operators really read and write, to hold cost models against."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MOVES_NOTHING = (
    *(
        "view",
        "_unsafe_view",
        "t",
        "permute",
        "split",
        "split_with_sizes",
        "slice",
        "unbind",
        "detach",
        "detach_",
        "alias",
        "expand",
        "unsqueeze",
        "lift_fresh",
    ),
    *("empty", "empty_like", "empty_strided", "new_empty", "_local_scalar_dense"),
)
GATHERS = ("nll_loss_forward", "nll_loss_backward")  # read one element of each row


class Traffic(TorchDispatchMode):
    """Adds up the bytes of what operators read and write; one tensor in two places is read once."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = str(function).split(".")[1]
        first = result[0] if isinstance(result, tuple) else result
        if name not in MOVES_NOTHING and getattr(first, "numel", int)() != 0:
            destination = (kwargs or {}).get("out", first)
            reads = {id(t): t for t in args if isinstance(t, torch.Tensor) and t.dim() and t is not destination}
            if name.endswith("_"):
                reads[id(args[0])] = args[0]
            self.read += sum(
                tensor.nbytes for tensor in reads.values() if name not in GATHERS and 0 not in tensor.stride()
            )
            self.written += destination.nbytes if destination.dim() else 0
        return result

"""LoRA matrices that a generator made, one set per sample."""

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from lightning_weights.errors import check_number

PREFIX = "base_model.model."  # in front of the names in peft's files


class GeneratedLoRA(Mapping[str, tuple[Tensor, Tensor]]):
    r"""Matrices A and B by the name of the linear layer that they adapt, one pair for every sample of a batch.

    $$\Delta W_n = s \, B_n A_n$$

    Args:
        matrices: A (N, r, in) and B (N, out, r) by the name of the layer in its backbone.
        scale: s = α / r.
        optional: Names of layers that may go without a call, such as experts that no token is sent to.

    Raises:
        ValueError: If there are none, or their shapes don't fit together.

    Examples:
        >>> lora = GeneratedLoRA({"fc": (torch.ones(3, 2, 4), torch.ones(3, 5, 2))}, scale=0.5)
        >>> lora.batch_size, lora.rank, lora.select(1).delta_weight("fc").shape
        (3, 2, torch.Size([1, 5, 4]))
    """

    def __init__(
        self, matrices: Mapping[str, tuple[Tensor, Tensor]], scale: float, optional: Collection[str] = ()
    ) -> None:
        check_number("scale", scale, low=0.0)
        if not matrices:
            raise ValueError("matrices has none; allowed are A and B of one layer at least")
        for name, (a, b) in matrices.items():
            if a.dim() != 3 or b.dim() != 3 or len(a) != len(b) or a.shape[1] != b.shape[2]:
                raise ValueError(
                    f"{name} has A of shape {tuple(a.shape)} and B of shape {tuple(b.shape)}; allowed are (N, r, in) "
                    f"and (N, out, r)"
                )
        if len(sizes := {len(a) for a, _ in matrices.values()}) > 1:
            raise ValueError(f"matrices are of {sorted(sizes)} samples; allowed is one number for all")
        self._matrices = dict(matrices)
        self.scale = float(scale)
        self.optional = frozenset(optional)

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        return self._matrices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)

    def __repr__(self) -> str:
        return f"GeneratedLoRA({len(self)} layers, {self.batch_size} samples, r={self.rank}, scale={self.scale:g})"

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return len(next(iter(self._matrices.values()))[0])

    @property
    def rank(self) -> int:
        """Rank of the first layer."""
        return next(iter(self._matrices.values()))[0].shape[1]

    def map(self, function: Callable[[Tensor], Tensor]) -> "GeneratedLoRA":
        """Return the same with a function applied to every A and every B.

        Args:
            function: From a tensor (N, ...) to one of the same kind.
        """
        changed = {name: (function(a), function(b)) for name, (a, b) in self.items()}
        return GeneratedLoRA(changed, self.scale, self.optional)

    def detach(self) -> "GeneratedLoRA":
        """Return the same without gradients."""
        return self.map(torch.Tensor.detach)

    def select(self, index: int | Tensor) -> "GeneratedLoRA":
        """Return those of one sample, as a batch of one, or of several in any order.

        Args:
            index: Number of a sample, or several as a tensor of integers or of truth values.
        """
        places = torch.tensor([index]) if isinstance(index, int) else index
        return self.map(lambda tensor: tensor[places.to(tensor.device)])

    def mean(self) -> "GeneratedLoRA":
        """Return the mean of A and of B over the samples, as a batch of one."""
        return self.map(lambda tensor: tensor.mean(0, keepdim=True))

    def interpolate(self, other: "GeneratedLoRA", weight: float) -> "GeneratedLoRA":
        """Return a mixture of A and of B with those of others; the update is quadratic in it.

        Args:
            other: Matrices for the same layers, of as many samples or of one.
            weight: Share of the others; 0 and 1 are the ends.

        Raises:
            ValueError: If the others are for other layers or of another scale.
        """
        if other.keys() != self.keys() or other.scale != self.scale:
            raise ValueError(f"{other} is for other layers or of another scale than {self}")
        return GeneratedLoRA(
            {
                name: (torch.lerp(a, other[name][0], weight), torch.lerp(b, other[name][1], weight))
                for name, (a, b) in self.items()
            },
            self.scale,
            self.optional,
        )

    def flatten(self) -> Tensor:
        """Return all numbers of every sample in a row (N, numbers)."""
        return torch.cat([part.flatten(1) for pair in self.values() for part in pair], dim=1)

    def delta_weight(self, name: str) -> Tensor:
        """Return s B A of every sample for one layer (N, out, in).

        Args:
            name: Name of the layer.
        """
        a, b = self[name]
        return self.scale * (b @ a)

    def to_peft_state_dict(self, index: int) -> dict[str, Tensor]:
        """Return the matrices of one sample under the names that peft gives them.

        Args:
            index: Number of the sample.
        """
        found = {}
        for name, (a, b) in self.items():
            found[f"{PREFIX}{name}.lora_A.weight"] = a[index].detach().cpu().contiguous()
            found[f"{PREFIX}{name}.lora_B.weight"] = b[index].detach().cpu().contiguous()
        return found

"""LoRA matrices of one backbone layer as a sequence of tokens of equal size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.hy_wu import from_sheets, sheet_count, to_sheets

Sizes = tuple[int, int]


@dataclass(frozen=True)
class ExpertGroup:
    """Experts of equal shape whose matrices are cut into tokens together.

    Args:
        experts: Number E of experts.
        weights: Inputs and outputs of every linear layer in an expert, by its name there.

    Raises:
        ValueError: If a number is out of range or there is no weight.

    Examples:
        >>> ExpertGroup(64, {"w1": (4096, 3072), "w2": (3072, 4096)}).experts
        64
    """

    experts: int
    weights: Mapping[str, Sizes]

    def __post_init__(self) -> None:
        check_number("experts", self.experts, low=1, whole=True)
        if not isinstance(self.weights, Mapping) or not self.weights:
            raise ValueError(f"weights is {self.weights!r}; allowed are inputs and outputs by the name of a layer")
        sizes = {name: _sizes(name, value) for name, value in self.weights.items()}
        object.__setattr__(self, "weights", sizes)


class LoRATokenizer:
    r"""Cut the LoRA matrices of a layer's targets into tokens, sheets of r × d numbers, and put them together again.

    A token is a sheet because its r rows share one position on one axis and the sheets another, which lets attention
    and rotary positions treat them as a plane. All A come first, in the order of the targets, then all B. No two
    matrices share a sheet; the end of the last one of each is filled up.

    In layout ``flat`` a matrix is cut row by row as it lies in memory, which is the published one: the rows of a sheet
    are ranks only where a target's inputs are d. In layout ``rank`` they always are. Both have the same counts.

    Args:
        targets: Inputs and outputs of every target by its name within a layer; a group of experts is an ``ExpertGroup``
            or a mapping with ``experts`` and ``weights``.
        rank: Rank r.
        token_dim: Width d of a token.
        layout: ``flat`` or ``rank``.

    Raises:
        ValueError: If an argument is out of range.

    Source: Wu et al. 2026, arXiv:2603.07236.

    Examples:
        >>> tokenizer = LoRATokenizer({"fc": (20, 16)}, rank=4, token_dim=8)
        >>> tokenizer.shapes, tokenizer.counts
        ({'fc.lora_A': (4, 20), 'fc.lora_B': (16, 4)}, (3, 2))
        >>> {name: tuple(part.shape) for name, part in tokenizer.detokenize(torch.zeros(5, 4, 8)).items()}
        {'fc.lora_A': (4, 20), 'fc.lora_B': (16, 4)}
    """

    def __init__(
        self,
        targets: Mapping[str, Sizes | ExpertGroup | Mapping[str, Any]],
        rank: int,
        token_dim: int,
        layout: Literal["flat", "rank"] = "flat",
    ) -> None:
        check_number("rank", rank, low=1, whole=True)
        check_number("token_dim", token_dim, low=1, whole=True)
        check_choice("layout", layout, ("flat", "rank"))
        if not isinstance(targets, Mapping) or not targets:
            raise ValueError(
                f"targets is {targets!r}; allowed are inputs and outputs by the name of a layer, such as "
                f"{{'attn.qkv': (16, 48)}}"
            )
        self.targets = {str(name): _target(name, value) for name, value in targets.items()}
        self.rank, self.token_dim, self.layout = rank, token_dim, layout
        halves: list[dict[str, tuple[int, ...]]] = [{}, {}]
        for name, experts, (inputs, outputs) in self._weights():
            halves[0][f"{name}.lora_A"] = (*experts, rank, inputs)
            halves[1][f"{name}.lora_B"] = (*experts, outputs, rank)
        self.shapes: dict[str, tuple[int, ...]] = {**halves[0], **halves[1]}
        first, second = (sum(sheet_count(shape, rank, token_dim) for shape in half.values()) for half in halves)
        self.counts: tuple[int, int] = (first, second)

    def _weights(self) -> list[tuple[str, tuple[int, ...], Sizes]]:
        found: list[tuple[str, tuple[int, ...], Sizes]] = []
        for name, target in self.targets.items():
            if isinstance(target, ExpertGroup):
                found += [(f"{name}.{part}", (target.experts,), sizes) for part, sizes in target.weights.items()]
            else:
                found.append((name, (), target))
        return found

    def _rank_axis(self, name: str) -> int | None:
        if self.layout == "flat":
            return None
        return -2 if name.endswith("lora_A") else -1

    @property
    def numbers(self) -> int:
        """How many numbers the matrices of a layer have, fillings not counted."""
        sizes = [((len(experts) and experts[0]) or 1) * (i + o) for _, experts, (i, o) in self._weights()]
        return self.rank * sum(sizes)

    def tokenize(self, matrices: Mapping[str, Tensor], fill: float = 0.0) -> Tensor:
        """Cut matrices into tokens.

        Args:
            matrices: All tensors of ``shapes`` by name, each with the same leading dimensions.
            fill: What the ends are filled with. NaN marks them: a loss on tokens has to leave them out.

        Returns:
            Tokens (..., H, r, d), those of A first.

        Raises:
            ValueError: If a tensor is missing, unknown or of another shape.
        """
        if matrices.keys() != self.shapes.keys():
            raise ValueError(f"matrices has {', '.join(matrices)}; allowed are {', '.join(self.shapes)}")
        sheets = []
        for name, shape in self.shapes.items():
            if tuple(matrices[name].shape)[-len(shape) :] != shape:
                raise ValueError(f"{name} has shape {tuple(matrices[name].shape)}; allowed is (..., {shape})")
            options = {"rank_axis": self._rank_axis(name), "fill": fill}
            sheets.append(to_sheets(matrices[name], len(shape), self.rank, self.token_dim, **options))
        return torch.cat(sheets, dim=-3)

    def detokenize(self, tokens: Tensor) -> dict[str, Tensor]:
        """Put matrices together from tokens.

        Args:
            tokens: Tokens (..., H, r, d).

        Returns:
            All tensors of ``shapes`` by name, with the leading dimensions of the tokens.

        Raises:
            ValueError: If the tokens have another shape.
        """
        wanted = (sum(self.counts), self.rank, self.token_dim)
        if tuple(tokens.shape[-3:]) != wanted:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}; allowed is (..., {str(wanted)[1:-1]})")
        sizes = [sheet_count(shape, self.rank, self.token_dim) for shape in self.shapes.values()]
        pieces = tokens.split(sizes, dim=-3)
        return {
            name: from_sheets(piece, shape, rank_axis=self._rank_axis(name))
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def layers_of(self, matrices: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return A and B of every linear layer, the experts of a group as layers of their own.

        Args:
            matrices: What ``detokenize`` returned.

        Returns:
            A (..., r, in) and B (..., out, r) by name; expert 2 of group ``experts`` has ``experts.2.w1``.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, target in self.targets.items():
            if not isinstance(target, ExpertGroup):
                found[name] = matrices[f"{name}.lora_A"], matrices[f"{name}.lora_B"]
                continue
            for expert in range(target.experts):
                for part in target.weights:
                    pair = (matrices[f"{name}.{part}.lora_{half}"].select(-3, expert) for half in "AB")
                    found[f"{name}.{expert}.{part}"] = next(pair), next(pair)
        return found


def _target(name: str, value: Any) -> Sizes | ExpertGroup:
    if isinstance(value, ExpertGroup):
        return value
    if isinstance(value, Mapping):
        if set(value) != {"experts", "weights"}:
            raise ValueError(f"targets[{name!r}] has {', '.join(map(str, value))}; a group has experts and weights")
        return ExpertGroup(value["experts"], value["weights"])
    return _sizes(name, value)


def _sizes(name: str, value: Any) -> Sizes:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"the sizes of {name!r} are {value!r}; allowed is a pair of inputs and outputs")
    for size in value:
        check_number(f"sizes of {name!r}", size, low=1, whole=True)
    return int(value[0]), int(value[1])

"""A fitted stack as numbers, and its file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_weights.functional._safetensors import read_described, safetensors
from lightning_weights.functional.regularized_stacking import meta_features
from lightning_weights.functional.whole_files import replacing_file

PURPOSE = "Reading and writing stacks"
KEY, FORMAT = "regularized_stacking", 1


@dataclass(frozen=True, eq=False)
class StackOutput:
    """The stack of one output: M linear models of p features of k selected columns, and their weights.

    Attributes:
        selected: Numbers of the selected columns, ascending, int64 of shape (k,).
        mean: Means of the features, fp64 of shape (p,).
        scale: Standard deviations of the features, of shape (p,).
        coefficients: Weights of the standardised features, of shape (M, p).
        intercepts: Constants, of shape (M,).
        blend: Weights of the models, with sum 1, of shape (M,).
        penalties: Penalties of the models, of shape (M,).
        l1_ratios: Shares of the ℓ1 norm, of shape (M,); NaN for ridge.
        condition: Condition number of the correlation matrix of all columns, and of the selected ones, of shape (2,).

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> output = StackOutput(torch.tensor([0]), 2 * one, 4 * one, one[None], 3 * one, one, one, one, one.repeat(2))
        >>> [part.tolist() for part in output.folded()]
        [[0.25], 2.5]
    """

    selected: Tensor
    mean: Tensor
    scale: Tensor
    coefficients: Tensor
    intercepts: Tensor
    blend: Tensor
    penalties: Tensor
    l1_ratios: Tensor
    condition: Tensor

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return standardisation, all linear models and their blend as one linear layer of the features.

        Returns:
            Weight of shape (p,) and bias of shape (), fp64.
        """
        # sums, since products round by where their operands lie in memory, and those of a file lie elsewhere
        weight = (self.blend[:, None] * self.coefficients).sum(0) / self.scale
        return weight, (self.blend * self.intercepts).sum() - (weight * self.mean).sum()


@dataclass(frozen=True, eq=False)
class StackState:
    """Everything that a fitted [`RegularizedStacking`][] needs in order to predict.

    Attributes:
        names: Names of all columns that it was fitted to, in their order.
        outputs: The stack of each output.
        statistics: Whether statistics over the models are features.
        interactions: Whether products of statistics are features.
        flat: Whether the target had no dimension of outputs, so that predictions have none either.
        settings: Arguments and grids that it was fitted with, as plain values.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469.

    Examples:
        >>> from lightning_weights.modules import RegularizedStacking
        >>> y = torch.randn(60, generator=torch.Generator().manual_seed(0))
        >>> noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
        >>> state = RegularizedStacking(learners=["ridge"]).fit(y[:, None] + noise, y).state_
        >>> state.names, state.retained, state.outputs[0].mean.shape
        (['model_0', 'model_1', 'model_2'], [0, 1, 2], torch.Size([9]))
    """

    names: list[str]
    outputs: list[StackOutput]
    statistics: bool
    interactions: bool
    flat: bool
    settings: dict[str, Any]

    @property
    def retained(self) -> list[int]:
        """Numbers of the columns that any output needs, ascending."""
        return sorted({int(column) for output in self.outputs for column in output.selected})

    def check_names(self, names: Sequence[str]) -> None:
        """Check that columns are those that the stack was fitted to, in the same order.

        Args:
            names: Names of the columns.

        Raises:
            ValueError: If they are not.
        """
        if list(names) == self.names:
            return
        if sorted(names) == sorted(self.names):
            first = next(i for i, pair in enumerate(zip(names, self.names, strict=True)) if len(set(pair)) == 2)
            raise ValueError(
                f"column {first} is {names[first]!r}, in fit it was {self.names[first]!r}: the columns are in another "
                "order; give them in the order of fit"
            )
        missing, odd = sorted(set(self.names) - set(names)), sorted(set(names) - set(self.names))
        raise ValueError(f"the columns are not those of fit: {missing or 'none'} are missing, {odd or 'none'} are new")

    def predict(self, predictions: Tensor) -> Tensor:
        """Stack predictions of the models.

        Args:
            predictions: One column per model, of shape (N, K), or, of several outputs, (N, K, outputs). With the former
                and several outputs, all of them stack the same columns.

        Returns:
            Predictions in fp64, of shape (N,), or (N, outputs).

        Raises:
            ValueError: If the numbers of columns or outputs are others than in fit.
        """
        table = predictions.double()
        some = ", ".join(self.names[:5]) + (" ..." if len(self.names) > 5 else "")
        allowed = (len(self.names),), (len(self.names), len(self.outputs))
        if tuple(table.shape[1:]) not in allowed:
            raise ValueError(
                f"predictions have shape {tuple(table.shape)}; allowed is (N, {len(self.names)}) or "
                f"(N, {len(self.names)}, {len(self.outputs)}), a column for each of {some}"
            )
        if table.ndim == 2:
            table = table[:, :, None].expand(-1, -1, len(self.outputs))
        stacked = []
        for index, output in enumerate(self.outputs):
            weight, bias = (part.to(table.device) for part in output.folded())
            columns = table[:, output.selected.to(table.device), index]
            stacked.append(meta_features(columns, self.statistics, self.interactions) @ weight + bias)
        return stacked[0] if self.flat else torch.stack(stacked, 1)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file.

        Args:
            path: File, which is replaced whole; its folder is made if it is not there.

        Raises:
            MissingDependencyError: If the package safetensors is not installed.
        """
        save_file = safetensors("safetensors", PURPOSE).save_file
        described = {name: value for name, value in vars(self).items() if name != "outputs"}
        text = json.dumps({"format": FORMAT, "outputs": len(self.outputs), **described}, sort_keys=True)
        tensors = {
            f"{index}.{name}": tensor.clone(memory_format=torch.contiguous_format)
            for index, output in enumerate(self.outputs)
            for name, tensor in vars(output).items()
        }
        with replacing_file(path) as part:
            save_file(tensors, part, {KEY: text})

    @classmethod
    def load(cls, path: str | Path) -> "StackState":
        """Read a file that ``save`` has written.

        Args:
            path: The file.

        Raises:
            ValueError: If there is no such file, it is no stack, or tensors are missing or too many.
            MissingDependencyError: If the package safetensors is not installed.
        """
        package = safetensors("safetensors", PURPOSE)
        if not Path(path).is_file():
            raise ValueError(f"{path} is not there; give the file that RegularizedStacking.save has written")
        text, tensors = read_described(package, path, KEY, "a stack")
        described = {} if text is None else json.loads(text)
        if described.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no stack of format {FORMAT}; write one with RegularizedStacking.save")
        fields = StackOutput.__dataclass_fields__
        count = described.pop("outputs", 0)
        if odd := tensors.keys() ^ {f"{index}.{name}" for index in range(count) for name in fields}:
            raise ValueError(f"{path} is not whole: {sorted(odd)} are missing or unexpected")
        outputs = [StackOutput(**{name: tensors[f"{index}.{name}"] for name in fields}) for index in range(count)]
        return cls(outputs=outputs, **described)

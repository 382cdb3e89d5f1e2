"""Predictions of samples that a model did not see, with the numbers of the samples, and their file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_weights.functional.indexed_rows import SHOWN, missing_numbers, unique_rows
from lightning_weights.functional.whole_files import replacing_file

FORMAT = 1


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions of samples by a model that did not see them, ordered by the samples' numbers.

    Attributes:
        indices: Numbers of the samples, shape (n,), int64, ascending, each once.
        predictions: A row per sample, shape (n, outputs).
        targets: What should come out, shape (n, ...); None if nobody said.
        epoch: Epoch of the fit in whose validation they were made; None outside of a fit.
        score: The monitored metric then; None if none was.

    Raises:
        ValueError: If rows of one sample contradict each other, or numbers of rows differ.

    Examples:
        >>> import torch
        >>> first = OutOfFold.of(torch.tensor([2, 0]), torch.tensor([0.2, 0.0]))
        >>> second = OutOfFold.of(torch.tensor([1]), torch.tensor([0.1]))
        >>> OutOfFold.join([first, second], num_rows=3).predictions.flatten()
        tensor([0.0000, 0.1000, 0.2000])
    """

    indices: Tensor
    predictions: Tensor
    targets: Tensor | None = None
    epoch: int | None = None
    score: float | None = None

    @classmethod
    def of(
        cls,
        indices: Tensor,
        predictions: Tensor,
        targets: Tensor | None = None,
        epoch: int | None = None,
        score: float | None = None,
    ) -> "OutOfFold":
        """Put rows in order, and keep one of those that a sampler served to several processes.

        Args:
            indices: Numbers of the samples, in any order, shape (n,).
            predictions: A row per sample, shape (n, ...); what follows n becomes one dimension.
            targets: What should come out.
            epoch: Epoch of training.
            score: The monitored metric.

        Raises:
            ValueError: If rows of one sample contradict each other, or numbers of rows differ.
        """
        counts = {"predictions": len(predictions), "targets": len(indices) if targets is None else len(targets)}
        for name, count in counts.items():
            if count != len(indices):
                raise ValueError(f"there are {len(indices)} sample numbers and {count} {name}; each needs one")
        indices = indices.to(torch.int64)
        rows = predictions.reshape(len(predictions), -1) if len(predictions) else predictions.reshape(0, 1)
        found, rows = unique_rows(indices, rows)
        if targets is not None:
            _, targets = unique_rows(indices, targets, "targets")
        return cls(found, rows, targets, epoch, score)

    @classmethod
    def join(cls, parts: "Sequence[OutOfFold]", num_rows: int | None = None) -> "OutOfFold":
        """Put the predictions of all folds together.

        Args:
            parts: Predictions of different samples, as of the models of different folds.
            num_rows: Number of all samples, each of which has to be there once. ``None``: those that are there.

        Raises:
            ValueError: If there are no parts, a sample is missing, or rows of one contradict each other.
        """
        if not parts:
            raise ValueError("parts is empty; allowed is at least one OutOfFold")
        targets = [part.targets for part in parts if part.targets is not None]
        joined = cls.of(
            torch.cat([part.indices for part in parts]),
            torch.cat([part.predictions for part in parts]),
            torch.cat(targets) if len(targets) == len(parts) else None,
            max((part.epoch for part in parts if part.epoch is not None), default=None),
        )
        if num_rows is not None:
            joined.check_complete(torch.arange(num_rows))
        return joined

    def check_complete(self, expected: Tensor) -> None:
        """Check that these samples are there, and no others.

        Args:
            expected: Their numbers.

        Raises:
            ValueError: If one is missing, or there is another.
        """
        missing = missing_numbers(self.indices, expected)
        if len(missing):
            raise ValueError(
                f"predictions of {len(missing)} of {len(expected)} samples are missing ({_some(missing)}): every "
                f"sample needs one. Take away limit_val_batches, limit_predict_batches and drop_last"
            )
        if len(surplus := missing_numbers(expected, self.indices)):
            raise ValueError(
                f"there are predictions of {len(surplus)} samples that are not among the {len(expected)} expected "
                f"({_some(surplus)}): sample numbers are those of the data set under all subsets"
            )

    def save(self, path: str | Path) -> None:
        """Write a file for ``torch.load(path, weights_only=True)``, which is replaced whole.

        Args:
            path: File; its folder is made if it is not there.
        """
        content = {"format": FORMAT, **{name: value for name, value in vars(self).items() if value is not None}}
        with replacing_file(path) as part:
            torch.save(content, part)

    @classmethod
    def load(cls, path: str | Path) -> "OutOfFold":
        """Read a file that ``save`` has written.

        Args:
            path: The file.

        Raises:
            ValueError: If there is no such file, or it is another.
        """
        if not Path(path).is_file():
            raise ValueError(f"{path} is not there; give the file that callbacks.CollectOOF has written")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} does not hold predictions; give the file that callbacks.CollectOOF has written")
        return cls(**content)


def _some(numbers: Tensor) -> str:
    named = ", ".join(map(str, numbers[:SHOWN].tolist()))
    return named if len(numbers) <= SHOWN else f"{named}, …"

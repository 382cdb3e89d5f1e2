"""Several configurations and seeds, each trained once per fold, as the columns of one matrix."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_weights.data import OutOfFold
from lightning_weights.errors import check_number
from lightning_weights.runners.k_fold import OOF, TEST, KFoldRunner


@dataclass(frozen=True, eq=False)
class CrossFit:
    """What several models predict for rows that they have not seen: what a `modules.RegularizedStacking` is fitted on.

    Attributes:
        names: Names of the K models.
        predictions: Out-of-fold predictions of all rows, shape (N, K), or (N, K, outputs) of several.
        targets: Targets of the rows, shape (N,) or (N, outputs); None if nobody said.
        test: Predictions of the test rows, (M, K) or (M, K, outputs); None if there are none.
        test_targets: Targets of the test rows.
        folders: Folder of every model, for `modules.StackingEnsemble`.

    Examples:
        >>> import torch
        >>> from lightning_weights.data import OutOfFold
        >>> import tempfile
        >>> folders = {name: tempfile.mkdtemp() for name in ("small", "large")}
        >>> for folder in folders.values():
        ...     OutOfFold.of(torch.arange(5), torch.rand(5), torch.zeros(5)).save(f"{folder}/oof.pt")
        >>> CrossFit.read(folders).predictions.shape
        torch.Size([5, 2])
    """

    names: list[str]
    predictions: Tensor
    targets: Tensor | None
    test: Tensor | None
    test_targets: Tensor | None
    folders: list[str]

    @classmethod
    def read(cls, folders: Mapping[str, str | Path]) -> "CrossFit":
        """Put together what `KFoldRunner` has left in several folders, as the runs of a sweep.

        Args:
            folders: Folder of every model, by the name that its column gets.

        Raises:
            ValueError: If a folder holds no finished run, or runs are of different rows.
        """
        if not folders:
            raise ValueError("folders is empty; give at least one folder of a KFoldRunner")
        rows = {name: OutOfFold.load(Path(folder, OOF)) for name, folder in folders.items()}
        tested = {name: Path(folder, TEST) for name, folder in folders.items()}
        found = {name: OutOfFold.load(path) for name, path in tested.items() if path.is_file()}
        predictions, targets = _columns(rows)
        test, test_targets = _columns(found) if len(found) == len(rows) else (None, None)
        places = [str(folder) for folder in folders.values()]
        return cls(list(folders), predictions, targets, test, test_targets, places)


def cross_fit(
    makers: Mapping[str, Callable[[], LightningModule]],
    data: Any,
    trainer_kwargs: dict[str, Any] | None = None,
    folder: str = "results/cross_fit",
    seeds: Sequence[int] = (0,),
    **options: Any,
) -> CrossFit:
    """Train every configuration with every seed once per fold, and return the matrix of all predictions.

    All have the same folds. What is finished is not trained again: a call that was ended goes on when it is repeated.

    Args:
        makers: Functions that return a new module, by names that become those of columns.
        data: As for `KFoldRunner`.
        trainer_kwargs: Arguments of the Trainers.
        folder: Folder, in which every configuration and seed gets one.
        seeds: Different seeds, each of which is a column of its own.
        **options: More arguments of `KFoldRunner`, without ``seed``.

    Returns:
        The matrix, with names, targets and what the models predict for test rows.

    Raises:
        ValueError: If a seed is out of range or there twice, there is nothing to train, or a folder was begun with
            other settings.

    Examples:
        >>> import tempfile, torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_weights.modules import MLP, Regressor
        >>> x = torch.linspace(0, 1, 16)[:, None]
        >>> loader = DataLoader(TensorDataset(x, 2 * x), batch_size=8)
        >>> quick = {"max_epochs": 1, "barebones": True, "accelerator": "cpu"}
        >>> makers = {"linear": lambda: Regressor(MLP(1, (), num_classes=1))}
        >>> cross_fit(makers, loader, quick, tempfile.mkdtemp(), seeds=[0, 1], n_folds=2).names
        ['linear, seed 0', 'linear, seed 1']
    """
    if not makers or not seeds:
        raise ValueError("nothing to train: makers and seeds need at least one entry each")
    for seed in seeds:
        check_number("seeds", seed, low=0, high=2**20, whole=True)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {list(seeds)!r}; allowed are different ones: equal seeds give equal models")
    if "seed" in options:
        raise ValueError(f"seed is {options['seed']!r}; those of folds follow from seeds, give it there")
    folders = {}
    for name, make in makers.items():
        for seed in seeds:
            place = Path(folder, name, f"seed_{seed}")
            runner = KFoldRunner(make, data, trainer_kwargs, str(place), **options)
            runner.seed = seed * (runner.n_folds + 1)  # no model begins where one of another seed does
            runner.run()
            folders[name if len(seeds) == 1 else f"{name}, seed {seed}"] = place
    return CrossFit.read(folders)


def _columns(rows: Mapping[str, OutOfFold]) -> tuple[Tensor, Tensor | None]:
    """Return predictions as columns, and the targets; outputs are a third dimension if there are several."""
    first_name, first = next(iter(rows.items()))
    for name, row in rows.items():
        if not torch.equal(row.indices, first.indices):
            raise ValueError(
                f"{name} has predictions of {len(row.indices)} rows and {first_name} of {len(first.indices)}, not of "
                f"the same ones; cross-fit all on the same data"
            )
        if row.predictions.shape != first.predictions.shape:
            raise ValueError(
                f"{name} has {row.predictions.shape[1]} outputs and {first_name} {first.predictions.shape[1]}; only "
                f"models of the same outputs can be combined"
            )
    columns = torch.stack([row.predictions.double() for row in rows.values()], dim=1)
    single = columns.shape[2] == 1
    targets = first.targets
    if targets is not None and single and targets.numel() == len(columns):
        targets = targets.reshape(len(columns))
    return columns.squeeze(2) if single else columns, targets

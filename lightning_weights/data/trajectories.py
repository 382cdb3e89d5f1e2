"""Histories of weights, from networks that were recorded while they forgot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from lightning_weights.data.classification import BatchDataset
from lightning_weights.errors import check_choice, check_number, name_list
from lightning_weights.modules.snapshots import read_snapshots
from lightning_weights.modules.weight_kinds import KINDS, ROUTES, Kind, Route, weight_kinds

SNAPSHOTS = "session_*.safetensors"


class TrajectoryDataModule(LightningDataModule):
    """Serve what happened to single weights from session to session, to train a hyper-model with.

    A folder holds the snapshots of one run of
    [`ProgressiveForgetting`][lightning_weights.callbacks.ProgressiveForgetting]. Every weight of the wanted kind has a
    history there, the most forgotten value first, and every ``window`` values in a row predict the one that follows: 7
    sessions make 2 windows of 5. Batches are (histories of shape (N, window); what followed, of shape (N,)), float32.

    Validation serves runs of which nothing is trained on, since weights of one network are alike.

    Args:
        files: Folders of runs, or folders with such folders in them.
        kind: Which weights: ``conv``, ``fc`` or ``bias``, told apart as a
            [`KNOWNBank`][lightning_weights.modules.KNOWNBank] does it.
        window: Length S of a history.
        batch_size: Weights per batch.
        validation_share: Share of the runs, drawn at random, that validation serves; none if it rounds to no run.
        max_weights: Largest number of weights of one run, drawn at random, so that large networks don't outweigh small
            ones. ``None``: all.
        route: What counts as a convolution: ``paper``, all tensors of more than two dimensions, or ``shape3x3``.
        exclude: Regular expressions of the names of tensors that are left out, beside normalisation layers. ``None``:
            those of embeddings, positions and tokens.
        seed: Seed of the order, of the runs for validation and of the weights.
        num_workers: Processes per loader; 0 loads in the main process.

    Raises:
        ValueError: If an argument is out of range; when the data is set up, if a folder has no snapshots or too few
            sessions, or no run has weights of this kind.

    Source: Jang, Kim, Kim 2026, arXiv:2508.05059.

    Examples:
        >>> import tempfile
        >>> from lightning_weights.modules import write_snapshot
        >>> folder = tempfile.mkdtemp()
        >>> run = {"sessions": 4, "rate": 0.5, "subset_seed": 0}
        >>> for session, samples in enumerate([80, 40, 20, 10]):
        ...     _ = write_snapshot(folder, {"fc.weight": torch.rand(3, 2)}, session=session, samples=samples, **run)
        >>> data = TrajectoryDataModule([folder], window=2, validation_share=0.0)
        >>> histories, following = next(iter(data.train_dataloader()))
        >>> histories.shape, following.shape
        (torch.Size([12, 2]), torch.Size([12]))
    """

    def __init__(
        self,
        files: list[str],
        kind: Literal["conv", "fc", "bias"] = "fc",
        window: int = 5,
        batch_size: int = 4096,
        validation_share: float = 0.2,
        max_weights: int | None = None,
        route: Literal["paper", "shape3x3"] = "paper",
        exclude: list[str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        check_choice("kind", kind, KINDS)
        check_number("window", window, low=2, whole=True)
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("validation_share", validation_share, low=0.0, high=1.0)
        if max_weights is not None:
            check_number("max_weights", max_weights, low=1, whole=True)
        check_choice("route", route, ROUTES)
        check_number("seed", seed, low=0, high=2**32, whole=True)
        check_number("num_workers", num_workers, low=0, whole=True)
        super().__init__()
        self.files = name_list("files", files)
        self.kind = kind
        self.window = window
        self.batch_size = batch_size
        self.validation_share = validation_share
        self.max_weights = max_weights
        self.route = route
        self.exclude = None if exclude is None else name_list("exclude", exclude, " or None")
        self.seed = seed
        self.num_workers = num_workers
        self._train: BatchDataset | None = None
        self._validation: BatchDataset | None = None
        self.save_hyperparameters()

    def setup(self, stage: str | None = None) -> None:
        """Read the runs, once for all stages; loaders requested before do it themselves.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        if self._train is not None:
            return
        runs = run_folders(self.files)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(runs), generator=generator, device="cpu").tolist()
        held = set(order[: round(self.validation_share * len(runs))])
        parts: dict[bool, list[Tensor]] = {False: [], True: []}
        for index, folder in enumerate(runs):
            histories = weight_histories(folder, self.kind, self.route, self.exclude)
            if histories.shape[1] <= self.window:
                raise ValueError(
                    f"{folder} has {histories.shape[1]} sessions; window={self.window} needs at least {self.window + 1}"
                )
            if self.max_weights is not None and len(histories) > self.max_weights:
                chosen = torch.randperm(len(histories), generator=generator, device="cpu")[: self.max_weights]
                histories = histories[chosen]
            parts[index in held].append(histories.unfold(1, self.window + 1, 1).flatten(0, 1))
        if not sum(map(len, parts[False])):
            raise ValueError(
                f"kind is {self.kind!r}, and none of {len(runs) - len(held)} runs to train on has such weights; record "
                f"networks that have, or give another kind or validation_share"
            )
        self._order = torch.Generator().manual_seed(self.seed)
        self._evaluation = torch.Generator().manual_seed(self.seed)
        self._train = _dataset(parts[False])
        self._validation = _dataset(parts[True]) if sum(map(len, parts[True])) else None

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader of the runs that are trained on, in random order."""
        self.setup()
        return self._loader(self._train, self._order, True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]] | list[DataLoader[tuple[Tensor, Tensor]]]:
        """Return the loader of the other runs; no loader if there are none."""
        self.setup()
        return [] if self._validation is None else self._loader(self._validation, self._evaluation, False)

    def _loader(
        self, dataset: BatchDataset | None, generator: torch.Generator, shuffle: bool
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=default_convert,
            generator=generator,
        )


def weight_histories(
    folder: str | Path, kind: Kind, route: Route = "paper", exclude: Sequence[str] | None = None
) -> Tensor:
    """Return what happened to the weights of one kind in one run.

    Args:
        folder: Folder that ``callbacks.ProgressiveForgetting`` has filled.
        kind: ``conv``, ``fc`` or ``bias``.
        route: What counts as a convolution.
        exclude: As in `TrajectoryDataModule`.

    Returns:
        Weights by sessions, float32, the most forgotten value first; without rows if the network has no such weights.
    """
    snapshots = read_snapshots(folder)
    kinds = weight_kinds(snapshots[0], route, exclude)
    names = [name for name, found in kinds.items() if found == kind]
    values = [torch.cat([snapshot[name].flatten().float() for name in names]) for snapshot in snapshots if names]
    return torch.stack(values, dim=1) if values else torch.empty(0, len(snapshots))


def run_folders(files: Sequence[str]) -> list[Path]:
    """Return the folders that hold snapshots of one run each.

    Args:
        files: Such folders, or folders with such folders in them.

    Raises:
        ValueError: If there is none.
    """
    found = []
    for file in files:
        folder = Path(file).expanduser()
        inside = sorted({path.parent for path in folder.glob(f"*/{SNAPSHOTS}")})
        runs = [folder] if any(folder.glob(SNAPSHOTS)) else inside
        if not runs:
            raise ValueError(
                f"{file} has no snapshots, nor has a folder in it; give folders that callbacks.ProgressiveForgetting "
                f"has filled (snapshot_dir)"
            )
        found += runs
    if not found:
        raise ValueError("files is empty; give folders that callbacks.ProgressiveForgetting has filled (snapshot_dir)")
    return found


def _dataset(windows: list[Tensor]) -> BatchDataset:
    rows = torch.cat(windows)
    return BatchDataset(rows[:, :-1].contiguous(), rows[:, -1].contiguous())

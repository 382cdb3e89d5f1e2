"""One configuration trained once per fold, so that every row is predicted by a model that has not seen it."""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_weights.callbacks import CollectOOF
from lightning_weights.data import OutOfFold
from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.regularized_stacking.folds import fold_ids
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.runners._fold_data import FoldData
from lightning_weights.runners._save_every_epoch import SaveEveryEpoch

SETTINGS, LAST, OOF, TEST = "settings.json", "last.ckpt", "oof.pt", "test.pt"
REFIT = "refit"


@dataclass(frozen=True, eq=False)
class KFoldResults:
    """What the models of all folds predict.

    Attributes:
        oof: For every row, what the model that has not seen it predicts.
        test: For rows that no model has seen, the mean over the folds' models, or what the model of all rows predicts;
            None if there are no such rows.
        folds: Fold of every row, shape (N,).

    Examples:
        >>> import torch
        >>> rows = OutOfFold.of(torch.arange(2), torch.tensor([0.1, 0.9]), torch.tensor([0.0, 1.0]))
        >>> round(KFoldResults(rows, None, torch.tensor([0, 1])).rmse, 3)
        0.1
    """

    oof: OutOfFold
    test: OutOfFold | None
    folds: Tensor

    @property
    def rmse(self) -> float:
        """Root of the mean squared error over all rows; NaN without targets of the predictions' shape."""
        rows, targets = self.oof.predictions, self.oof.targets
        if targets is None or targets.numel() != rows.numel():
            return float("nan")
        return float((rows.double() - targets.double().reshape(rows.shape)).square().mean().sqrt())


class KFoldRunner:
    """Predict every row of a data set by a model that was trained without it: a fit per fold, from one configuration.

    Fold i seeds all generators with ``seed + i``, makes a module, a Trainer and with it an optimizer, fits on the rows
    of the other folds with its own rows as validation, and predicts these and the test rows. The folder gets
    ``fold_<i>.ckpt``, the weights, ``fold_<i>.pt`` and ``fold_<i>_test.pt``, the predictions, and in the end
    ``oof.pt`` and ``test.pt`` of all folds, files of `data.OutOfFold`.

    A run that was ended at any point goes on when the same program is started again with the same folder, from the last
    epoch that was complete; with ``callbacks.ExactResume`` among the Trainer's callbacks it ends in the same bits.

    The folds are those of `modules.RegularizedStacking` with the same numbers of rows and folds, seed and groups.

    Args:
        make_module: Returns a new module each time it is called; generators are seeded before.
        data: LightningDataModule with a training loader over a map-style data set, or that loader. The loader's batch
            size, order, workers and collation are those of every fold.
        trainer_kwargs: Arguments of the Trainers. Callbacks are copied for every fold; ``default_root_dir`` is by
            default the fold's own folder.
        folder: Folder of the run.
        n_folds: Number of folds, at least 2.
        fold_seed: Seed of the shuffle that makes the folds.
        seed: Seed of the first fold.
        groups: A number per row; rows of one group are in one fold. ``None``: every row is a group of its own.
        stage: Who predicts: ``predict_step``, which gets batches as training does, or ``validation_step``, which
            returns predictions or a dict with them under ``preds``.
        weights: Whether the weights after the last epoch predict, or the best ones, for which there is a
            ``ModelCheckpoint`` with a ``monitor`` among the callbacks. Choosing them by the rows that they predict
            flatters these predictions. A model of all rows, which has no others to choose by, keeps the last ones.
        test: Whether test rows get the mean over the models of all folds, or are predicted by one more model, trained
            on all rows with the seed ``seed + n_folds``; ``None``: they are left out.
        test_loader: Loader of the test rows. ``None``: the data module's.

    Raises:
        ValueError: If an argument is out of range, the data can't be divided, the Trainer would train in processes that
            it spawns itself, or the folder holds a run with other settings.

    Examples:
        >>> import tempfile, torch
        >>> from lightning_weights.modules import MLP, Regressor
        >>> x = torch.linspace(0, 1, 24)[:, None]
        >>> loader = DataLoader(torch.utils.data.TensorDataset(x, 2 * x), batch_size=8, shuffle=True)
        >>> options = {"max_epochs": 1, "barebones": True, "accelerator": "cpu"}
        >>> make = lambda: Regressor(MLP(1, (4,), num_classes=1))
        >>> runner = KFoldRunner(make, loader, options, tempfile.mkdtemp(), n_folds=3)
        >>> runner.run().oof.predictions.shape
        torch.Size([24, 1])
    """

    def __init__(
        self,
        make_module: Callable[[], LightningModule],
        data: LightningDataModule | DataLoader[Any],
        trainer_kwargs: dict[str, Any] | None = None,
        folder: str = "results/folds",
        n_folds: int = 10,
        fold_seed: int = 42,
        seed: int = 0,
        groups: Sequence[int] | Tensor | None = None,
        stage: Literal["predict", "validate"] = "predict",
        weights: Literal["last", "best"] = "last",
        test: Literal["mean", "refit"] | None = "mean",
        test_loader: DataLoader[Any] | None = None,
    ) -> None:
        check_number("n_folds", n_folds, low=2, whole=True)
        check_number("fold_seed", fold_seed, low=0, high=2**32, whole=True)
        check_number("seed", seed, low=0, high=2**31, whole=True)
        check_choice("stage", stage, ["predict", "validate"])
        check_choice("weights", weights, ["last", "best"])
        check_choice("test", test, ["mean", REFIT, None])
        trainer_kwargs = trainer_kwargs or {}
        strategy = trainer_kwargs.get("strategy")
        start = strategy if isinstance(strategy, str) else getattr(strategy, "_start_method", "")  # of objects
        if start.endswith(("spawn", "fork", "forkserver", "notebook")):
            raise ValueError(f"strategy is {strategy!r}, whose processes end with each fit; use 'ddp', or a device")
        self.make_module = make_module
        self.data = data
        self.trainer_kwargs = trainer_kwargs
        self.folder = Path(folder)
        self.n_folds = n_folds
        self.fold_seed = fold_seed
        self.seed = seed
        self.groups = None if groups is None else torch.as_tensor(groups)
        self.stage = stage
        self.weights = weights
        self.test = test
        self.test_loader = test_loader

    def run(self) -> KFoldResults:
        """Fit the folds that are not finished yet, and put their predictions together.

        Returns:
            Predictions of all rows, and of the test rows.

        Raises:
            ValueError: If the folder holds a run with other settings, or a fold misses rows.
        """
        data = FoldData(self.data, self.test_loader, tested=self.test is not None)
        folds = fold_ids(len(data), self.n_folds, self.fold_seed, self.groups)
        self._check_settings(folds)
        for fold in range(self.n_folds):
            self._run_part(f"fold_{fold}", self.seed + fold, data, folds != fold, folds == fold)
        if self.test == REFIT and data.test is not None:
            everything = torch.ones_like(folds, dtype=torch.bool)
            self._run_part(REFIT, self.seed + self.n_folds, data, everything, ~everything)
        return self._join(folds, data.test is not None)

    def _run_part(self, name: str, seed: int, data: FoldData, trained: Tensor, held: Tensor) -> None:
        """Fit a module, and predict; the file that is written last says that all is done."""
        held_rows, weights = held.nonzero().flatten(), self.folder / f"{name}.ckpt"
        todo = {f"{name}.pt": data.evaluation(held_rows)} if len(held_rows) else {}
        if data.test is not None and (self.test == "mean" or name == REFIT):
            todo = {f"{name}_test.pt": data.test, **todo}
        if all((self.folder / file).exists() for file in todo):
            return
        seed_everything(seed, verbose=False)
        module, trainer = self.make_module(), self._trainer(self.folder / name)
        if not weights.exists():
            loaders = data.training(trained.nonzero().flatten(), seed), todo.get(f"{name}.pt")
            self._fit(trainer, module, loaders, weights)
        trainer.limit_val_batches = trainer.limit_predict_batches = 1.0
        given = trainer.callbacks
        for file, loader in todo.items():
            trainer.callbacks = [*given, CollectOOF(str(self.folder / file), stage=self.stage)]
            found = {"model": module, "dataloaders": loader, "ckpt_path": weights, "weights_only": True}
            if self.stage == "predict":
                trainer.predict(**found, return_predictions=False)
            else:
                trainer.validate(**found, verbose=False)
        rank_zero_info(f"{name} of {self.folder} is finished")

    def _fit(self, trainer: Trainer, module: LightningModule, loaders: tuple[Any, Any], weights: Path) -> None:
        last = self.folder / weights.stem / LAST
        trainer.fit(module, *loaders, ckpt_path=last if last.exists() else None, weights_only=True)
        monitoring = [callback for callback in trainer.callbacks if getattr(callback, "monitor", None)]
        best = [path for callback in monitoring if (path := getattr(callback, "best_model_path", ""))]
        if self.weights == "best" and loaders[1] is not None:
            if not best:
                raise ValueError(
                    "weights is 'best', and no callback has kept any; put a ModelCheckpoint with a monitor among the "
                    "callbacks, or use 'last'"
                )
            if trainer.is_global_zero:
                with replacing_file(weights) as part:
                    shutil.copyfile(best[0], part)
        else:
            trainer.save_checkpoint(weights, weights_only=True)
        trainer.strategy.barrier("weights")
        if trainer.is_global_zero:
            last.unlink(missing_ok=True)

    def _trainer(self, place: Path) -> Trainer:
        options = {"default_root_dir": place, **self.trainer_kwargs}
        options["strategy"] = copy.deepcopy(options.get("strategy", "auto"))  # an object serves one Trainer
        given = options.pop("callbacks", None) or []
        callbacks = copy.deepcopy(list(given) if isinstance(given, (list, tuple)) else [given])
        keeping = [callback for callback in callbacks if hasattr(callback, "best_model_path")]
        for callback in keeping:
            # the folder of a logger has another number in a run that is resumed
            callback.dirpath = callback.dirpath or str(place / "checkpoints")
        if not keeping:
            options.setdefault("enable_checkpointing", False)
        trainer = Trainer(**options, callbacks=callbacks)
        trainer.callbacks = [*trainer.callbacks, SaveEveryEpoch(place / LAST)]
        return trainer

    def _check_settings(self, folds: Tensor) -> None:
        """Refuse a folder that was begun otherwise."""
        names = ("n_folds", "fold_seed", "seed", "stage", "weights", "test")
        groups = self.groups is not None and hashlib.sha256(bytes(str(folds.tolist()), "ascii")).hexdigest()[:16]
        now = {"rows": len(folds), "groups": groups, **{name: getattr(self, name) for name in names}}
        path = self.folder / SETTINGS
        before = json.loads(path.read_text()) if path.exists() else now
        changed = [
            f"{name} was {before.get(name)!r} and is {value!r}"
            for name, value in now.items()
            if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"the run in {self.folder} was begun with other settings: {'; '.join(changed)}. Give another folder, "
                f"or remove this one"
            )
        with replacing_file(path) as part:
            part.write_text(json.dumps(now, indent=1))

    def _join(self, folds: Tensor, tested: bool) -> KFoldResults:
        parts = [OutOfFold.load(self.folder / f"fold_{fold}.pt") for fold in range(self.n_folds)]
        oof, test = OutOfFold.join(parts, len(folds)), None
        oof.save(self.folder / OOF)
        if tested:
            names = [f"fold_{fold}" for fold in range(self.n_folds)] if self.test == "mean" else [REFIT]
            found = [OutOfFold.load(self.folder / f"{name}_test.pt") for name in names]
            mean = torch.stack([part.predictions for part in found]).mean(dim=0)
            test = OutOfFold(found[0].indices, mean, found[0].targets, found[0].epoch)
            test.save(self.folder / TEST)
        return KFoldResults(oof, test, folds)

"""From one configuration to a stack of its seeds: cross-fit, combine, measure, save."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules import RegularizedStacking
from lightning_weights.runners.cross_fit import CrossFit, cross_fit
from lightning_weights.runners.k_fold import KFoldRunner

STACK, REPORT = "stack.safetensors", "report.json"


class StackingRunner:
    """Train a configuration with several seeds once per fold, and fit a stack to what the models predict.

    The folder gets a folder of `KFoldRunner` per seed, ``stack.safetensors``, the fitted stack, and ``report.json``:
    where the models are, which of them are kept, and the root mean squared errors of each, of their mean and of the
    stack, on rows that they have not seen. `modules.StackingEnsemble` takes the two. A run that was ended goes on when
    it is started again.

    Args:
        make_module: Returns a new module each time it is called.
        data: LightningDataModule with a training loader over a map-style data set.
        trainer_kwargs: Arguments of the Trainers.
        folder: Folder of the run.
        seeds: Seeds, each of which gives a model; at least 2.
        n_folds: Number of folds of the models, at least 2.
        fold_seed: Seed of the shuffle that makes these folds.
        stage: Who predicts: ``predict_step``, or ``validation_step``, which returns ``preds``.
        weights: Whether the weights after the last epoch predict, or the best ones of a ``ModelCheckpoint``.
        test: Whether test rows get the mean over the models of all folds, or are predicted by one more model, trained
            on all rows; ``None``: they are left out.
        stacking: The stack to fit. ``None``: one with its defaults.

    Raises:
        ValueError: If there are fewer than two seeds, one is there twice, an argument is out of range, or the data has
            no targets that predictions can be compared with.

    Examples:
        >>> import tempfile
        >>> from lightning_weights.data import StudentScores
        >>> from lightning_weights.modules import MLP, Regressor
        >>> options = {"max_epochs": 1, "barebones": True, "accelerator": "cpu"}
        >>> make = lambda: Regressor(MLP(10, (), num_classes=1), mean=62.0, std=19.0)
        >>> stacking = RegularizedStacking(learners=["ridge"], n_folds=3)
        >>> folder, data = tempfile.mkdtemp(), StudentScores(num_rows=90, test_rows=30)
        >>> report = StackingRunner(make, data, options, folder, [0, 1], 2, stacking=stacking).run()
        >>> sorted(report["rmse"])
        ['mean of the models', 'seed 0', 'seed 1', 'stack']
    """

    def __init__(
        self,
        make_module: Callable[[], LightningModule],
        data: LightningDataModule,
        trainer_kwargs: dict[str, Any] | None = None,
        folder: str = "results/stack",
        seeds: Sequence[int] = (0, 1, 2, 3),
        n_folds: int = 5,
        fold_seed: int = 42,
        stage: Literal["predict", "validate"] = "predict",
        weights: Literal["last", "best"] = "last",
        test: Literal["mean", "refit"] | None = "mean",
        stacking: RegularizedStacking | None = None,
    ) -> None:
        if len(seeds) < 2 or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds is {list(seeds)!r}; allowed are at least 2, all different: each gives a model")
        self.make_module = make_module
        self.data = data
        self.trainer_kwargs = trainer_kwargs
        self.folder = folder
        self.seeds = list(seeds)
        self.options = {"n_folds": n_folds, "fold_seed": fold_seed, "stage": stage, "weights": weights, "test": test}
        KFoldRunner(make_module, data, trainer_kwargs, folder, **self.options)  # refuses what can't be run, at once
        self.stacking = RegularizedStacking() if stacking is None else stacking
        self.fitted: RegularizedStacking | None = None

    def run(self) -> dict[str, Any]:
        """Train what is not trained yet, fit the stack, and write what came of it.

        Returns:
            The report.

        Raises:
            ValueError: If there are no targets to fit to.
        """
        makers = {"seeds": self.make_module}
        found = cross_fit(makers, self.data, self.trainer_kwargs, self.folder, self.seeds, **self.options)
        names = [f"seed {seed}" for seed in self.seeds]
        if found.targets is None:
            raise ValueError("batches hold no targets: their second part, or what validation_step returns as 'target'")
        self.fitted = copy.deepcopy(self.stacking).fit(found.predictions, found.targets, names=names)
        report = {
            "members": dict(zip(names, found.folders, strict=True)),
            "kept": [names[column] for column in self.fitted.state_.retained],
            "rmse": _errors(names, found.predictions, found.targets, self.fitted.oof_),
            **self._tested(names, found),
        }
        if rank_zero_only.rank == 0:
            self.fitted.save(Path(self.folder, STACK))
            with replacing_file(Path(self.folder, REPORT)) as part:
                part.write_text(json.dumps(report, indent=1), "utf-8")
        errors = ", ".join(f"{name} {value:.4g}" for name, value in report["rmse"].items())
        rank_zero_info(f"kept {', '.join(report['kept'])}; error on rows not seen: {errors}")
        return report

    def _tested(self, names: list[str], found: CrossFit) -> dict[str, Any]:
        if found.test is None or found.test_targets is None:
            return {}
        targets = found.test_targets.reshape(-1, *found.targets.shape[1:])
        return {"test_rmse": _errors(names, found.test, targets, self.fitted.predict(found.test))}


def _errors(names: list[str], columns: Tensor, targets: Tensor, stacked: Tensor) -> dict[str, float]:
    """Return root mean squared errors over all outputs, of rows that the stack predicts."""
    rows = {name: columns[:, column] for column, name in enumerate(names)}
    rows |= {"mean of the models": columns.mean(dim=1), "stack": stacked}
    there = ~stacked.isnan()  # a splitter may leave rows out
    return {name: float((row - targets)[there].square().mean().sqrt()) for name, row in rows.items()}

"""One fit after another: a class-incremental run from its first group of classes to its last."""

import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from lightning_weights.callbacks import WeightAligning
from lightning_weights.data import ClassIncremental
from lightning_weights.errors import check_number
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules import ClassIncrementalModule
from lightning_weights.runners._save_every_epoch import SaveEveryEpoch

START, LAST, RESULTS = "start.ckpt", "last.ckpt", "results.json"  # in the folder of a run, LAST in that of a step


@dataclass
class IncrementalResults:
    """Accuracies after every step of a class-incremental run.

    Args:
        matrix: Row i holds the accuracies on the groups 0 to i after step i.
        accuracy: Accuracy on the test samples of all classes seen, after each step.
        old: Accuracy on those of earlier groups; None at the first step.
        new: Accuracy on those of the step's own group.
        gamma: Factor that the new rows were aligned by; None where nothing was aligned.

    Examples:
        >>> results = IncrementalResults([[1.0], [0.5, 1.0]], [1.0, 0.75], [None, 0.5], [1.0, 1.0], [None, 0.8])
        >>> results.average_incremental_accuracy
        0.875
    """

    matrix: list[list[float]] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    old: list[float | None] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    gamma: list[float | None] = field(default_factory=list)

    @property
    def average_incremental_accuracy(self) -> float:
        """Mean over the steps of the accuracy on all classes seen."""
        return sum(self.accuracy) / len(self.accuracy)

    def add(self, logits: Tensor, targets: Tensor, increments: list[int], gamma: float | None) -> None:
        """Add a step.

        Args:
            logits: Of the test samples of all classes seen, shape (N, C).
            targets: Their labels, shape (N,).
            increments: Number of classes of each group seen.
            gamma: Factor of the alignment, if there was one.
        """
        right = (logits.argmax(dim=1) == targets).double()
        bounds = torch.tensor(increments).cumsum(0)
        group = torch.bucketize(targets, bounds, right=True)
        last = len(increments) - 1
        self.matrix.append([right[group == index].mean().item() for index in range(len(increments))])
        self.accuracy.append(right.mean().item())
        self.old.append(right[group < last].mean().item() if last else None)
        self.new.append(self.matrix[-1][-1])
        self.gamma.append(gamma)

    def describe_last(self) -> str:
        """Return one line about the last step."""
        old = "" if self.old[-1] is None else f", old ones {self.old[-1]:.1%}, new ones {self.new[-1]:.1%}"
        gamma = "" if self.gamma[-1] is None else f", γ {self.gamma[-1]:.3f}"
        return f"step {len(self.accuracy) - 1}: accuracy on all classes seen {self.accuracy[-1]:.1%}{old}{gamma}"


class IncrementalRunner:
    """Train on one group of classes after another, a fresh Trainer and optimizer for each, with a memory in between.

    A step seeds all generators with ``seed + step``, grows the head, fits, aligns if there is a ``WeightAligning``
    among the callbacks, measures, and puts exemplars into the memory. Then ``step_<i>.ckpt``, a checkpoint of the
    aligned model with the memory, is written to the folder, and the accuracies to ``results.json``. Within a step the
    model is saved after every epoch.

    A run that was ended at any point goes on when the same program is started again with the same folder, from the last
    epoch that was complete; with ``callbacks.ExactResume`` it ends in the same bits. Files are replaced whole, and read
    with ``weights_only=True``.

    Args:
        trainer_kwargs: Arguments of the Trainer. Callbacks are copied for every step; ``default_root_dir`` is by
            default the step's own folder. Leave ``logger=True``, which makes a logger per step: a logger that you made
            yourself gets the metrics of all steps, and each of them counts its optimizer steps from 0.
        module: Module to train, with an empty head.
        datamodule: Groups of classes, and their memory.
        folder: Folder of the run. ``None``: nothing is written, and nothing can be resumed.
        seed: Seed of the first step; step i takes ``seed + i``.

    Raises:
        ValueError: If the Trainer would train in processes that it spawns itself, or the seed is out of range.

    Examples:
        >>> from lightning_weights.data import Digits, ExemplarMemory
        >>> from lightning_weights.modules import MLP
        >>> data = ClassIncremental(Digits(), increments=[2, 2], memory=ExemplarMemory(size=20))
        >>> module = ClassIncrementalModule(MLP(64, (32,), num_classes=None), feature_dim=32, lr=0.05)
        >>> options = {"max_epochs": 2, "barebones": True, "accelerator": "cpu", "callbacks": [WeightAligning()]}
        >>> results = IncrementalRunner(options, module, data, folder=None).run()
        >>> [len(row) for row in results.matrix]
        [1, 2]
    """

    def __init__(
        self,
        trainer_kwargs: dict[str, Any],
        module: ClassIncrementalModule,
        datamodule: ClassIncremental,
        folder: str | None = "results/increments",
        seed: int = 0,
    ) -> None:
        check_number("seed", seed, low=0, high=2**31, whole=True)
        strategy = str(trainer_kwargs.get("strategy"))
        if strategy.endswith(("spawn", "fork", "notebook")):
            raise ValueError(
                f"strategy is {strategy!r}, whose processes end with each fit and take the callbacks' state along; "
                f"use 'ddp'"
            )
        self.trainer_kwargs = trainer_kwargs
        self.module = module
        self.datamodule = datamodule
        self.folder = None if folder is None else Path(folder)
        self.seed = seed
        self.results = IncrementalResults()

    def run(self) -> IncrementalResults:
        """Train the steps that are not finished yet.

        Returns:
            The accuracies after every step.

        Raises:
            ValueError: If the folder holds a run with other groups or another memory.
        """
        first, steps = self._restore(), len(self.datamodule.increments)
        if first == steps:
            rank_zero_info(f"the run in {self.folder} is finished already; {self.results.describe_last()}")
        for step in range(first, steps):
            self._run_step(step)
        return self.results

    def _run_step(self, step: int) -> None:
        seed_everything(self.seed + step, verbose=False)
        self.datamodule.step = step
        self.module.begin_step(self.datamodule.num_new)
        trainer, aligning = self._trainer(step)
        unfinished = None if self.folder is None else self.folder / f"step_{step}" / LAST
        resume = unfinished if unfinished is not None and unfinished.exists() else None
        trainer.fit(self.module, datamodule=self.datamodule, ckpt_path=resume, weights_only=True)
        self.module.to(trainer.strategy.root_device)
        for callback in aligning:
            # a run that was ended between its last epoch and the alignment has nothing left to fit
            callback.finish(trainer, self.module)
        self._measure(trainer, aligning)
        self._remember(trainer)
        self._save(trainer, step)

    def _trainer(self, step: int) -> tuple[Trainer, list[WeightAligning]]:
        options = {**self.trainer_kwargs}
        given = options.pop("callbacks", None) or []
        callbacks = copy.deepcopy(list(given) if isinstance(given, (list, tuple)) else [given])
        place = None if self.folder is None else self.folder / f"step_{step}"
        if place is not None:
            options = {"default_root_dir": place, **{k: v for k, v in options.items() if v is not None}}
        trainer = Trainer(**options, callbacks=callbacks)
        if place is not None:
            trainer.callbacks = [*trainer.callbacks, SaveEveryEpoch(place / LAST)]
        return trainer, [callback for callback in callbacks if isinstance(callback, WeightAligning)]

    def _measure(self, trainer: Trainer, aligning: list[WeightAligning]) -> None:
        logits, targets = self._collect(trainer, self.datamodule.val_dataloader(), self.module)
        gammas = [gamma for callback in aligning for gamma in callback.gammas]
        self.results.add(logits, targets, self.module.increments, gammas[-1] if gammas else None)
        rank_zero_info(self.results.describe_last())

    def _remember(self, trainer: Trainer) -> None:
        features, _ = self._collect(trainer, self.datamodule.new_dataloader(), self.module.features)
        # replicas may differ in the running statistics of their batch normalization
        self.datamodule.remember(trainer.strategy.broadcast(features))

    def _collect(self, trainer: Trainer, loader: Any, apply: Any) -> tuple[Tensor, Tensor]:
        """Return what `apply` makes of all inputs in eval mode, and the labels."""
        training, precision = self.module.training, trainer.precision_plugin
        self.module.eval()
        with torch.no_grad(), precision.forward_context():
            parts = [(apply(precision.convert_input(x.to(trainer.strategy.root_device))), y) for x, y in loader]
        self.module.train(training)
        outputs, targets = zip(*parts, strict=True)
        return torch.cat([output.float().cpu() for output in outputs]), torch.cat(targets)

    def _save(self, trainer: Trainer, step: int) -> None:
        if self.folder is None:
            return
        if trainer.is_global_zero:
            with replacing_file(self.folder / RESULTS) as path:
                path.write_text(json.dumps(asdict(self.results), indent=1))
        # written last: with this file the step is finished
        trainer.save_checkpoint(self.folder / f"step_{step}.ckpt", weights_only=True)
        if trainer.is_global_zero:
            (self.folder / f"step_{step}" / LAST).unlink(missing_ok=True)

    def _restore(self) -> int:
        """Load what the last finished step left, or the first began with, and return the number of the next step."""
        key, finished = type(self.datamodule).__qualname__, 0
        if self.folder is not None:
            steps = range(len(self.datamodule.increments))
            finished = max((step + 1 for step in steps if (self.folder / f"step_{step}.ckpt").exists()), default=0)
            path = self.folder / (f"step_{finished - 1}.ckpt" if finished else START)
            if path.exists():
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
                self.datamodule.load_state_dict(checkpoint[key])
                self.module.on_load_checkpoint(checkpoint)
                self.module.load_state_dict(checkpoint["state_dict"])
                self._restore_results(finished)
                return finished
        if self.module.increments:
            raise ValueError(
                f"the module has learned groups of {self.module.increments} classes already; give a fresh module, or "
                f"the folder of its run"
            )
        if self.folder is not None and rank_zero_only.rank == 0:
            checkpoint = {key: self.datamodule.state_dict(), "state_dict": self.module.state_dict()}
            self.module.on_save_checkpoint(checkpoint)
            with replacing_file(self.folder / START) as path:
                torch.save(checkpoint, path)
        return 0

    def _restore_results(self, finished: int) -> None:
        self.results = IncrementalResults()
        if finished:
            saved = json.loads((self.folder / RESULTS).read_text())
            # the file may know of a step whose checkpoint was not written any more
            self.results = IncrementalResults(**{name: values[:finished] for name, values in saved.items()})

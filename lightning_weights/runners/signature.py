"""From one pre-trained network to a clean and a robust one, trained alike: what a signature is extracted from."""

import copy
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor

from lightning_weights.data import Corrupted
from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.fingerprint import fingerprint
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.runners._save_every_epoch import SaveEveryEpoch

SETTINGS, LAST = "settings.json", "last.ckpt"
# arguments of the Trainer that decide what is trained
TRAINING = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
)


class SignatureNetworks(NamedTuple):
    """Weights that `extract_rws` takes: ``extract_rws(*networks[:3])``.

    Attributes:
        pretrained: Weights before both trainings, on the CPU.
        standard: Weights after the clean training.
        robust: Weights of the robust training's best validation.
        score: The monitored metric of that validation.

    Examples:
        >>> networks = SignatureNetworks({}, {}, {}, score=0.9)
        >>> networks[:3]
        ({}, {}, {})
    """

    pretrained: dict[str, Tensor]
    standard: dict[str, Tensor]
    robust: dict[str, Tensor]
    score: float


class SignatureTrainer:
    """Fine-tune a network twice from the same weights with the same seed and order: on clean and on corrupted data.

    Both trainings begin with copies of module, data module and callbacks and seed all generators; corruptions draw from
    generators of their own. The standard network is that of the last epoch. The robust one is that of the epoch with
    the best validation, on corrupted data: the data module needs validation samples that are no test samples.

    With a folder, a run that was ended at any point goes on when the same program is started again, from the last epoch
    that was complete; with ``callbacks.ExactResume`` among the Trainer's callbacks it ends in the same bits.

    Args:
        trainer_kwargs: Arguments of the Trainer, for each of the two. Callbacks are copied.
        module: Module with the pre-trained weights; it is left as it is.
        datamodule: Clean data, not used before; it is left as it is.
        corruption: Name of a corruption, or several, each of which gets a share of the images.
        severity: Severity from 1 to 5.
        strength: Numbers instead of those of the severity, by the corruptions' names.
        seed: Seed of both trainings and of the corruptions.
        monitor: What the module logs in validation and the best epoch is chosen by.
        mode: Whether the largest (``max``) or the smallest (``min``) is best.
        ckpt_path: Checkpoint whose weights are the pre-trained ones. ``None``: those of the module.
        folder: Folder of the run, which gets ``pretrained.ckpt``, ``standard.ckpt`` and ``robust.ckpt``. ``None``:
            nothing is written.
        corrupted_options: Further arguments of `data.Corrupted`, such as ``key`` and ``value_range``.

    Raises:
        ValueError: If an argument is out of range, or the corruption unknown.

    Source: Cai, Zhang, Wang, 2023, arXiv:2302.12480.

    Examples:
        >>> from lightning_weights.data import Digits
        >>> from lightning_weights.modules import CNN7, Classifier, extract_rws
        >>> module = Classifier(CNN7(1, 8, width=2, linear_size=8, batch_norm=False))
        >>> data = Digits(batch_size=256, as_images=True, validation_size=100)
        >>> options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
        >>> options |= {"enable_progress_bar": False, "enable_model_summary": False}
        >>> networks = SignatureTrainer(options, module, data, "gaussian_noise").run()
        >>> extract_rws(*networks[:3], corruption="gaussian_noise", severity=5).name
        'gaussian_noise-5'
    """

    def __init__(
        self,
        trainer_kwargs: dict[str, Any],
        module: LightningModule,
        datamodule: LightningDataModule,
        corruption: str | list[str],
        severity: int = 5,
        strength: dict[str, float | list[float]] | None = None,
        seed: int = 0,
        monitor: str = "val/accuracy",
        mode: Literal["max", "min"] = "max",
        ckpt_path: str | None = None,
        folder: str | None = None,
        corrupted_options: dict[str, Any] | None = None,
    ) -> None:
        check_number("seed", seed, low=0, high=2**32, whole=True)
        check_choice("mode", mode, ("max", "min"))
        if trainer_kwargs.get("barebones"):
            raise ValueError(
                "trainer_kwargs has barebones=True, with which nothing is logged and no epoch can be chosen; take "
                "logger=False, enable_checkpointing=False and enable_progress_bar=False instead"
            )
        if str(trainer_kwargs.get("strategy")).endswith(("spawn", "fork", "notebook")):
            raise ValueError(
                f"strategy is {trainer_kwargs['strategy']!r}, whose processes end with each fit; use 'ddp', or a device"
            )
        self.trainer_kwargs = trainer_kwargs
        self.module = module
        self.datamodule = datamodule
        self.corruption = {"corruption": corruption, "severity": severity, "strength": strength, "seed": seed}
        self.corruption |= {"parts": ["train", "val"], **(corrupted_options or {})}
        self.seed = seed
        self.monitor = monitor
        self.mode = mode
        self.ckpt_path = ckpt_path
        self.folder = None if folder is None else Path(folder)
        Corrupted(datamodule, **self.corruption)  # says now what is wrong with its arguments

    def run(self) -> SignatureNetworks:
        """Train both networks.

        Returns:
            The weights before and after, under the names that the module's ``state_dict`` has.

        Raises:
            ValueError: If validation does not log the monitored metric, or never a number, or the folder holds a run
                with other settings.
        """
        module = copy.deepcopy(self.module)
        if self.ckpt_path is not None:
            checkpoint = torch.load(self.ckpt_path, map_location="cpu", weights_only=True)
            module.load_state_dict(checkpoint["state_dict"])
        pretrained = _weights(module)
        if self.folder is not None:
            self._begin(self.folder, pretrained)
        best = _KeepBest(self.monitor, self.mode)
        standard = self._part("standard", copy.deepcopy(module), copy.deepcopy(self.datamodule), None)
        robust = self._part("robust", module, Corrupted(copy.deepcopy(self.datamodule), **self.corruption), best)
        return SignatureNetworks(pretrained, standard, robust, best.score)

    def _part(
        self, name: str, module: LightningModule, datamodule: LightningDataModule, best: "_KeepBest | None"
    ) -> dict[str, Tensor]:
        """Train one network, or what is left of its training; its file says that it is finished."""
        finished = None if self.folder is None else self.folder / f"{name}.ckpt"
        last = None if self.folder is None else self.folder / name / LAST
        if finished is not None and finished.exists():
            found = torch.load(finished, map_location="cpu", weights_only=True)
            if best is not None:
                best.load_state_dict(found)
            return dict(found["state_dict"])
        seed_everything(self.seed, verbose=False)
        trainer = self._trainer([] if best is None else [best], last)
        resumed = last if last is not None and last.exists() else None
        trainer.fit(module, datamodule=datamodule, ckpt_path=resumed, weights_only=True)
        result = {"state_dict": _weights(module)} if best is None else best.state_dict()
        if best is not None and not result["state_dict"]:
            raise ValueError(f"validation has never given a number for monitor={self.monitor!r}: is there any?")
        if finished is not None and last is not None and trainer.is_global_zero:
            _write(result, finished)
            last.unlink(missing_ok=True)
        trainer.strategy.barrier(name)
        return dict(result["state_dict"])

    def _trainer(self, own: list[Callback], last: Path | None) -> Trainer:
        options = dict(self.trainer_kwargs)
        options["strategy"] = copy.deepcopy(options.get("strategy", "auto"))  # an object serves one Trainer
        given = options.pop("callbacks", None) or []
        callbacks = copy.deepcopy(list(given) if isinstance(given, (list, tuple)) else [given])
        trainer = Trainer(**options, callbacks=[*callbacks, *own])
        if last is not None:
            trainer.callbacks = [*trainer.callbacks, SaveEveryEpoch(last)]
        return trainer

    def _begin(self, folder: Path, pretrained: dict[str, Tensor]) -> None:
        """Refuse a folder that was begun otherwise."""
        training = {name: self.trainer_kwargs[name] for name in TRAINING if name in self.trainer_kwargs}
        own = {"monitor": self.monitor, "mode": self.mode, "pretrained": fingerprint(pretrained)}
        text = json.dumps({**self.corruption, **own, **training}, indent=1, default=str)
        now, path = json.loads(text), folder / SETTINGS
        before = json.loads(path.read_text()) if path.exists() else now
        if changed := sorted(name for name in now | before if now.get(name) != before.get(name)):
            raise ValueError(
                f"the run in {folder} was begun with other settings: {', '.join(changed)}. Give another folder, or "
                f"remove this one"
            )
        with replacing_file(path) as part:
            part.write_text(text)
        _write({"state_dict": pretrained}, folder / "pretrained.ckpt")


class _KeepBest(Callback):
    """Keeps the weights of the best validation."""

    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor = monitor
        self.sign = 1 if mode == "max" else -1
        self.score = float("nan")
        self.weights: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"state_dict": self.weights, "score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights, self.score = dict(state_dict["state_dict"]), state_dict["score"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"monitor is {self.monitor!r}, which validation does not log; allowed are "
                f"{', '.join(map(repr, trainer.callback_metrics))}"
            )
        # processes may have logged different numbers, and have to agree
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        if self.sign * score > self.sign * self.score or (not self.weights and score == score):
            self.score, self.weights = score, _weights(pl_module)


def _weights(module: LightningModule) -> dict[str, Tensor]:
    values = {name: value.detach() for name, value in module.state_dict().items()}
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in values.items()}
    return {name: value.to("cpu", copy=True) for name, value in whole.items()}


def _write(content: dict[str, Any], path: Path) -> None:
    with replacing_file(path) as part:
        torch.save(content, part)

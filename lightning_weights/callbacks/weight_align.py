"""When the classifier's weights are clipped and aligned."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lightning_weights.callbacks._shards import laid_out_like, whole
from lightning_weights.errors import LightningWeightsWarning, check_number
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.functional.weight_align import align_weights, mean_norms
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.kernels import local_shards


class WeightAligning(Callback):
    """Clip a classifier's weights at 0 after every optimizer step and align those of the new classes after training.

    The rows of the new classes are multiplied by γ, so that their mean norm is that of the old rows, which keep every
    bit. With clipping and features that are not negative a row's norm says how strongly its class is favoured; without,
    alignment often harms. A fit whose classes are all new is clipped only.

    Every ``log_every_n_steps`` steps it logs ``weights/weight_align/`` ``norm_old`` and ``norm_new``, the mean norms,
    and ``gamma``, their ratio; after the alignment the loggers get them once more, with the γ that was applied.

    ``ModelCheckpoint`` saves before the alignment, which comes last in a fit: save with ``trainer.save_checkpoint``
    after it, or call ``align_checkpoint``.

    Args:
        classifier: Dotted path of the linear layer in the module, whose rows are the classes, old ones first.
        num_old: Number of old classes. ``None``: the ``num_old`` of the module, or of the layer, where 0 means none.
        clip: Whether weights below 0 become 0. Turn it off for features that may be negative.
        align: Whether the rows are aligned.
        include_bias: Whether a bias is clipped too, and multiplied by the same γ.

    Raises:
        ValueError: If the layer is not found or not linear, shares its weights with another, has no old or no new rows,
            or its rows are all zero.

    Source: Zhao, Xiao, Gan, Zhang, Xia, 2020, arXiv:1911.07053.

    Examples:
        >>> WeightAligning(classifier="net.fc", num_old=50).state_key
        "WeightAligning{'classifier': 'net.fc'}"

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.WeightAligning
              init_args: {classifier: head}
        ```
    """

    def __init__(
        self,
        classifier: str = "head",
        num_old: int | None = None,
        clip: bool = True,
        align: bool = True,
        include_bias: bool = False,
    ) -> None:
        if not isinstance(classifier, str) or not classifier:
            raise ValueError(f"classifier is {classifier!r}; allowed is the dotted path of a layer, such as 'head'")
        if num_old is not None:
            check_number("num_old", num_old, low=1, whole=True)
        self.classifier = classifier
        self.num_old = num_old
        self.clip = clip
        self.align = align
        self.include_bias = include_bias
        self.old_classes: int | None = None
        self.aligned_at = -1
        self.gammas: list[float] = []
        self._reset()

    def _reset(self) -> None:
        self._layer: Any = None
        self._watch: Any = None
        self._restored = False
        self._last_step = -1

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    @property
    def state_key(self) -> str:
        """Key in checkpoints, one per classifier."""
        return self._generate_state_key(classifier=self.classifier)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of old classes, the step of the last alignment (-1: none) and all γ so far."""
        return {"num_old": self.old_classes, "aligned_at": self.aligned_at, "gammas": list(self.gammas)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.old_classes, self.aligned_at = state_dict["num_old"], state_dict["aligned_at"]
        self.gammas = list(state_dict["gammas"])
        self._restored = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what another run restored."""
        self._stop_watching()
        self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layer and check that it can be clipped and aligned."""
        self._layer = self._find(pl_module)
        if not self._restored:
            self.old_classes, self.aligned_at = self._count_old(pl_module, self._layer), -1
        self._restored = False
        self._last_step = trainer.global_step
        if self._layer.bias is not None and not self.include_bias and (self.clip or self.align):
            self._warn(
                f"{self.classifier!r} has a bias, which is neither clipped nor aligned and may favour new classes all "
                f"the same; use bias=False, or include_bias=True"
            )
        if self.clip:
            self._watch = self._layer.register_forward_pre_hook(self._look_at_features, with_kwargs=True)

    def _find(self, pl_module: LightningModule) -> Any:
        modules: dict[str, Any] = {plain_name(name): module for name, module in pl_module.named_modules()}
        layer = modules.get(self.classifier)
        found = [name for name, module in modules.items() if _is_linear(module)]
        if layer is None or not _is_linear(layer):
            what = "is not there" if layer is None else f"is a {type(layer).__name__}, without a plain 2-d weight"
            raise ValueError(
                f"classifier is {self.classifier!r}, but this layer of {type(pl_module).__name__} {what}; layers that "
                f"can be aligned: {', '.join(found) or 'none'}"
            )
        for name, module in modules.items():
            if module is not layer and any(
                part is own for part in self._parts(layer) for own in module._parameters.values()
            ):
                raise ValueError(
                    f"{self.classifier!r} shares its weights with {name!r}, which would change too; give each its own"
                )
        return layer

    def _count_old(self, pl_module: LightningModule, layer: Any) -> int:
        known = [owner.num_old for owner in (self, pl_module, layer) if getattr(owner, "num_old", None) is not None]
        if not known and self.align:
            raise ValueError(
                f"num_old is None, and neither {type(pl_module).__name__} nor its layer {self.classifier!r} has a "
                f"num_old; say how many classes are old ones: WeightAligning(num_old=...)"
            )
        old = known[0] if known else 0
        if self.align and old >= len(layer.weight):
            raise ValueError(
                f"num_old is {old}, but {self.classifier!r} has {len(layer.weight)} outputs: nothing to align; allowed "
                f"are 1 to {len(layer.weight) - 1}"
            )
        return old

    def _look_at_features(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        features = (*inputs, *named.values())[0]
        if bool((features < 0).any()):
            self._warn(
                f"features that reach {self.classifier!r} are negative, so that the norm of a clipped row does not say "
                f"how strongly its class is favoured; end the backbone with a ReLU, or use clip=False"
            )

    def _warn(self, text: str) -> None:
        warnings.warn(text, LightningWeightsWarning, stacklevel=3)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Clip after a real step, and log."""
        self._stop_watching()
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if self.clip:
            for (shard,) in [local_shards([tensor])[0] for tensor in self._parts(self._layer)]:
                shard.detach().clamp_(min=0.0)
        if self.old_classes and trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(self._norms(), on_epoch=False)

    def _parts(self, layer: Any) -> list[Tensor]:
        return [layer.weight] if layer.bias is None or not self.include_bias else [layer.weight, layer.bias]

    def _norms(self) -> dict[str, float]:
        old, new = mean_norms(whole(self._layer.weight), self.old_classes or 0)
        values = {"gamma": old / new if new else float("nan"), "norm_old": old, "norm_new": new}
        return {f"weights/weight_align/{name}": value for name, value in values.items()}

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._stop_watching()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        self._stop_watching()
        self._layer = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Align."""
        self.finish(trainer, pl_module)

    @torch.no_grad()
    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Align the classifier, unless that was done after the last optimizer step.

        The end of a fit calls it. Lightning skips that end if a checkpoint of a run whose epochs are over is resumed:
        then call it after the fit.

        Args:
            trainer: The Trainer of the fit.
            pl_module: Its module.
        """
        for module in pl_module.modules():  # FSDP2 leaves whole copies of the weights in place after a validation
            if isinstance(module, FSDPModule):
                module.reshard()
        layer = self._layer = self._find(pl_module)
        if self.old_classes is None:
            self.old_classes = self._count_old(pl_module, layer)
        if not self.align or not self.old_classes or self.aligned_at == trainer.global_step:
            return
        parts = self._parts(layer)
        aligned, gamma = self._aligned([whole(part) for part in parts], self.old_classes)
        for part, new in zip(parts, aligned, strict=True):
            part.copy_(laid_out_like(part, new))
        self.aligned_at = trainer.global_step
        self.gammas.append(gamma)
        for logger in trainer.loggers:
            values = {**self._norms(), "weights/weight_align/gamma": gamma}
            logger.log_metrics(values, step=trainer.global_step)

    def _aligned(self, parts: list[Tensor], num_old: int) -> tuple[list[Tensor], float]:
        weight, gamma = align_weights(parts[0], num_old)
        bias = [torch.cat([part[:num_old], part[num_old:] * gamma]) for part in parts[1:]]
        return [weight, *bias], gamma

    def align_checkpoint(self, path: str | Path) -> float:
        """Align the classifier in a checkpoint that was saved before the end of a fit.

        The file is replaced. A run that resumes from it knows that it was aligned at that step.

        Args:
            path: A checkpoint of a module that was trained with this callback, or any other if ``num_old`` is given.

        Returns:
            The γ that the new rows were multiplied by.

        Raises:
            ValueError: If the classifier is not in it, or the number of old classes is not known or 0.
        """
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        weights, saved = checkpoint["state_dict"], checkpoint.setdefault("callbacks", {}).get(self.state_key, {})
        wanted = [f"{self.classifier}.{part}" for part in (("weight", "bias") if self.include_bias else ("weight",))]
        keys = {plain_name(name): name for name in weights}
        names = [keys[name] for name in wanted if name in keys]
        if not names:
            matrices = ", ".join(name for name, value in weights.items() if value.ndim == 2)
            raise ValueError(f"classifier is {self.classifier!r}, but the matrices in {path} are: {matrices or 'none'}")
        num_old = self.num_old if self.num_old is not None else saved.get("num_old")
        if num_old is None:
            raise ValueError(f"num_old is None, and {path} was trained without this callback; give num_old")
        aligned, gamma = self._aligned([weights[name] for name in names], num_old)
        weights.update(zip(names, aligned, strict=True))
        step, gammas = checkpoint["global_step"], [*saved.get("gammas", []), gamma]
        checkpoint["callbacks"][self.state_key] = {"num_old": num_old, "aligned_at": step, "gammas": gammas}
        with replacing_file(path) as part:
            torch.save(checkpoint, part)
        return gamma


def _is_linear(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and hasattr(module, "bias") and not isinstance(module, nn.Embedding)

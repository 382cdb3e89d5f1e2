"""When and where a network gets weights of a few bits, and what its checkpoints say about that."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_weights.callbacks import _ofq_checks as checks
from lightning_weights.callbacks._adapter_checkpoints import check_when_loading
from lightning_weights.callbacks._calibration import broadcast_scales, calibrate, first_batches, uncalibrated
from lightning_weights.callbacks._distillation import Teacher, begin_to_teach, check_teacher, teacher_of
from lightning_weights.callbacks._injection import check_trained, inject_when_built, release
from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._ofq_layers import parts_to_quantize, quantize_parts
from lightning_weights.callbacks._oscillation import Oscillation
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.callbacks.oscillation_tracker import OscillationTracker
from lightning_weights.errors import check_choice, check_number, name_list
from lightning_weights.functional.fingerprint import fingerprint
from lightning_weights.modules import export_codes, fake_quantized, merge_quantized
from lightning_weights.modules.fake_quantized import warn_about_zero_rows

SETTINGS = ("weight_bits", "act_bits", "edge_bits", "weight_quantizer", "granularity")
PLACES = ("modules", "skip", "qkr", "keep_query_bias")
THRESHOLD = 0.005


class OFQ(LeanCallback):
    r"""Train a transformer with weights of 2 to 4 bits whose scale follows from their statistics.

    $$\hat W = \frac{s}{n} (k + \tfrac12), \quad k = \lfloor n\, \mathrm{clamp}(W / s) - \tfrac12 \rceil, \quad
    s = 2 \operatorname{mean} |W|, \quad n = 2^{b-1}$$

    It works with any LightningModule, unchanged: before the optimizer exists, linear layers and the attentions of
    ``nn.MultiheadAttention``, transformers' ViT and DeiT and ``CompactViT`` are replaced by quantized ones that hold
    the same parameters. Start from a trained network: a copy of it as it was is the teacher, and the cross-entropy of
    the student's logits against its probabilities is added to the loss. The copy is in no checkpoint; to resume, build
    the module with the same weights.

    Learned scales of inputs take their first values from dry batches of the training data, in evaluation mode and
    without drawing from random generators; process 0 decides. If the batches are not for the module's forward, give it
    a method ``calibration_step(batch)``.

    ``validate``, ``test`` and ``predict`` quantize the network if they load a checkpoint of a quantized one; otherwise
    they measure it as it is. Every ``log_every_n_steps`` steps it logs ``weights/ofq/`` ``distillation`` and, see
    OscillationTracker, ``flips``, ``oscillating`` and ``oscillations``.

    Args:
        weight_bits: Bits of weights, from 2 to 8.
        act_bits: Bits of the inputs of layers and of what attentions compute; ``None`` leaves them.
        modules: What gets ``weight_bits``: names, or last parts of names, with ``*`` and ``?``, of layers, attentions
            or what holds some. ``None``: every attention and linear layer (no convolution) but the edges.
        skip: Edges, named as in ``modules``. ``None``: linear layers called ``head``, ``head_dist``, ``classifier`` or
            ``..._classifier``, or else the last one. The first layer is one, too, unless ``modules`` names it.
        edge_bits: Bits of the edges, with learned scales, and of their inputs if there are ``act_bits``; ``None``
            leaves them plain.
        qkr: Whether attentions quantize the product of query and key weights, not the factors; or names of those that
            do.
        keep_query_bias: Whether such an attention keeps the query's bias, as a vector; the key's has no effect.
        weight_quantizer: ``statsq``, or ``lsq`` for learned scales, the baseline.
        granularity: Which inputs of a layer share a scale: those of a ``token`` position, which ties the network to one
            sequence length, of a ``channel``, or the whole ``tensor``.
        distillation: Weight of the loss that the teacher adds; 0 for none, and no copy.
        temperature: Divides the logits in that loss.
        network: Name of the submodule that returns the logits, which the teacher is a copy of; empty for the module
            itself, ``None`` for its only child with weight matrices.
        track_oscillation: Whether codes are watched. An OscillationTracker among the callbacks does it instead.
        momentum: Weight of one oscillation in its average.
        calibration_batches: Number of dry batches.
        force: Whether products of query and key weights may be huge.

    Raises:
        ValueError: If an argument is out of range or names nothing; if a layer cannot be quantized; if a checkpoint has
            other bits or another teacher.
        MisconfigurationException: If nothing is left to quantize.
        ShardedParameterError: If weights are sharded (FSDP2).

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210. Differs from the released code: scales per channel or tensor are
    offered, and the query's bias may stay.

    Examples:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> ofq = OFQ(weight_bits=2)
        >>> ofq.attach(network)
        >>> sorted(OFQ.export(network)["2"]["codes"].unique().tolist())
        [-2, -1, 0, 1]

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.OFQ
              init_args: {weight_bits: 2, act_bits: 2, qkr: true}
        ```
    """

    def __init__(
        self,
        weight_bits: int = 2,
        act_bits: int | None = None,
        modules: list[str] | None = None,
        skip: list[str] | None = None,
        edge_bits: int | None = 8,
        qkr: bool | list[str] = False,
        keep_query_bias: bool = False,
        weight_quantizer: Literal["statsq", "lsq"] = "statsq",
        granularity: Literal["token", "channel", "tensor"] = "token",
        distillation: float = 1.0,
        temperature: float = 1.0,
        network: str | None = None,
        track_oscillation: bool = True,
        momentum: float = 0.01,
        calibration_batches: int = 1,
        force: bool = False,
    ) -> None:
        for name, bits in (("weight_bits", weight_bits), ("act_bits", act_bits), ("edge_bits", edge_bits)):
            if bits is not None or name == "weight_bits":
                check_number(name, bits, low=2, high=9, whole=True)
        check_choice("weight_quantizer", weight_quantizer, ("statsq", "lsq"))
        check_choice("granularity", granularity, ("token", "channel", "tensor"))
        check_number("distillation", distillation, low=0.0)
        check_number("temperature", temperature, low=0.0, low_allowed=False)
        check_number("momentum", momentum, low=0.0, low_allowed=False, high=1.0)
        check_number("calibration_batches", calibration_batches, low=1, whole=True)
        self.weight_bits = weight_bits
        self.act_bits = act_bits
        self.modules = None if modules is None else name_list("modules", modules, " or None")
        self.skip = None if skip is None else name_list("skip", skip, " or None")
        self.edge_bits = edge_bits
        self.qkr = qkr if isinstance(qkr, bool) else name_list("qkr", qkr, ", True or False")
        self.keep_query_bias = keep_query_bias
        self.weight_quantizer = weight_quantizer
        self.granularity = granularity
        self.distillation = distillation
        self.temperature = temperature
        self.network = network
        self.track_oscillation = track_oscillation
        self.momentum = momentum
        self.calibration_batches = calibration_batches
        self.force = force
        self._reset()

    def _reset(self) -> None:
        self._teacher: Teacher | None = None
        self._base = ""
        self._watches = False
        self._oscillation = Oscillation(self.momentum, THRESHOLD)
        self._saved: dict[str, Any] | None = None
        self._steps = RealSteps()
        self._unwrap: Callable[[], None] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return how the network was quantized, the teacher's fingerprint, and the state of the oscillation."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        tracked = self._oscillation.state_dict() if self._saved is None else self._saved
        return {"settings": settings, "layers": self._layers, "teacher": self._base, "oscillation": tracked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the oscillation until the training goes on."""
        self._saved = state_dict["oscillation"]

    def attach(self, module: nn.Module, batches: Sequence[Any] = ()) -> None:
        """Quantize a network, which keeps its parameters; one that is quantized already stays as it is.

        A Trainer does this itself. It is for loops of one's own, before the optimizer is made, and for loading a
        checkpoint without a Trainer.

        Args:
            module: Network or LightningModule, changed in place.
            batches: What learned scales take their first values from; without any, from the first forward.
        """
        self._attach(module, teach=self.distillation > 0.0)
        calibrate(module, batches)

    def _attach(self, module: nn.Module, teach: bool) -> None:
        given = {name: getattr(self, name) for name in (*SETTINGS, *PLACES)}
        if fake_quantized(module):
            checks.check_same(module, given)
            if self._teacher is not None and not self._teacher.knows(module):
                self._teacher, self._base = None, ""
        else:
            parts = parts_to_quantize(module, self.modules, self.skip, self.qkr)
            self._teacher = teacher_of(module, self.network) if teach else None
            options = {name: getattr(self, name) for name in (*SETTINGS, "keep_query_bias", "force")}
            quantize_parts(module, parts, **options)
            checks.remember(module, given)
            warn_about_zero_rows(module)
            self._base = "" if self._teacher is None else fingerprint(self._teacher.meet(module))
        self._layers = checks.described(module)

    @staticmethod
    def export(module: nn.Module) -> dict[str, dict[str, Any]]:
        """Return integer codes and scales of every quantized weight by name: plain values that ``torch.save`` takes.

        ``(codes + offset) * step``, a step per row, has the bits of the weight that the forward uses.

        Args:
            module: Quantized network.

        Returns:
            ``codes`` (int8), ``step``, ``offset`` and ``bits`` of every weight. Where query and key weights are
            quantized as a product, that is the weight.
        """
        return {name: dict(coded._asdict()) for name, coded in export_codes(module).items()}

    @staticmethod
    def merge(module: nn.Module) -> None:
        """Replace quantized layers by plain ones with the quantized values, in place.

        Args:
            module: Quantized network.
        """
        merge_quantized(module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for quantization as soon as the network is built, or a checkpoint of a quantized one comes."""
        self._take_hooks_off()
        self._saved = None
        if stage == "fit":
            inject_when_built(pl_module, partial(self._quantize, trainer))
        self._unwrap = check_when_loading(pl_module, partial(self._look_at, pl_module, stage))

    def _quantize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(pl_module, teach=self.distillation > 0.0)
        if uncalibrated(pl_module):
            calibrate(pl_module, first_batches(trainer, self.calibration_batches))
            broadcast_scales(trainer, pl_module)

    def _look_at(self, pl_module: LightningModule, stage: str, checkpoint: Mapping[str, Any]) -> None:
        """Check a checkpoint that is about to be loaded, and make room for what it holds."""
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved is None:
            checks.refuse_plain(checkpoint, stage)
            return
        checks.check_settings(saved["settings"], {name: getattr(self, name) for name in SETTINGS})
        if stage == "fit":
            check_teacher(saved["teacher"], self._base)
        else:
            self._attach(pl_module, teach=False)
        checks.check_layers(saved["layers"], self._layers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizers, and begin to teach."""
        check_trained(trainer, checks.added_parameters(pl_module), "OFQ")
        if self.distillation:
            begin_to_teach(self._teacher, trainer, pl_module, self.network)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the codes, unless an OscillationTracker does."""
        self._steps.watch(trainer.optimizers)
        others = [callback for callback in trainer.callbacks if isinstance(callback, OscillationTracker)]
        self._watches = self.track_oscillation and not others
        if self._watches:
            self._oscillation.start(pl_module, self._saved or None)
        self._saved = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forget what the teacher has not been asked about."""
        if self._teacher is not None:
            self._teacher.forget()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the teacher's loss."""
        if self.distillation and self._teacher is not None:
            self._teacher.add_loss(trainer, pl_module, loss, self.distillation, self.temperature)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the codes and log, after real steps only."""
        if not self._steps.taken():
            return
        if self._watches:
            self._oscillation.step(pl_module)
        taught = None if self._teacher is None else self._teacher.mean_loss()
        if not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        values = self._oscillation.values() if self._watches else {}
        pl_module.log_dict({f"weights/ofq/{name}": value for name, value in values.items()}, on_epoch=False)
        if taught is not None:
            pl_module.log("weights/ofq/distillation", taught, on_epoch=False, sync_dist=True)

    def _take_hooks_off(self) -> None:
        self._steps.stop()
        if self._teacher is not None:
            self._teacher.stop()
        if self._unwrap is not None:
            self._unwrap()
        self._unwrap = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._take_hooks_off()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module with its own methods."""
        release(pl_module)
        self._take_hooks_off()

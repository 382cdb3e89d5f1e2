"""What certified training does around a fit, for `CertifiedClassifier` and for `IBPWarmup` alike."""

import math
import warnings
from typing import Any

import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.functional.ibp_init import ibp_init_
from lightning_weights.modules.certified_loss import BATCH_NORM
from lightning_weights.modules.certifier import Certifier

MONITOR = "val/verified_error"  # at ε_max in every epoch


def prepare_fit(
    trainer: Any, certifier: Certifier, net: nn.Module, init: str, force_init: bool, resumed: dict[str, Any] | None
) -> None:
    """Check the run, then initialise the network if the run is a fresh one.

    Args:
        trainer: The Trainer, in ``on_fit_start``.
        certifier: Has the schedule.
        net: The network to train.
        init: ``ibp`` or ``keep``.
        force_init: Whether a network that was trained may be initialised.
        resumed: `Certifier.progress` of the checkpoint that the module or callback was loaded from.

    Raises:
        ValueError: If ε would never reach ε_max, steps cannot be counted by epochs, a resumed schedule is another or a
            trained network would be lost.
        ShardedParameterError: If the weights are sharded.
    """
    if any(hasattr(param, "placements") for param in net.parameters()):
        raise ShardedParameterError(
            "bounds need whole weights, but the parameters are sharded (FSDP2); use strategy='ddp'"
        )
    _check_steps(trainer)
    schedule = certifier.schedule
    limited = trainer.max_epochs not in (None, -1) and not trainer.fast_dev_run
    if limited and schedule.full_epoch >= trainer.max_epochs:
        raise ValueError(
            f"eps reaches max_eps after {schedule.full_epoch} epochs (start_epoch - 1 + ramp_epochs), but max_epochs "
            f"is {trainer.max_epochs}; shorten the ramp or train for at least {schedule.full_epoch + 1} epochs"
        )
    fresh = trainer.ckpt_path is None and trainer.global_step == 0
    if not fresh:
        if resumed is not None:
            certifier.check_schedule(resumed)
    elif init == "ibp":
        trained = resumed is not None or certifier.step is not None or _has_seen_batches(net)
        if trained and not force_init:
            raise ValueError(
                "init='ibp' would overwrite a network that was trained or loaded before; use init='keep' to go on "
                "with its weights, fit(ckpt_path=...) to resume its run, or force_init=True to start again"
            )
        _initialise(trainer, net)
    _warn_about(trainer)


def _check_steps(trainer: Any) -> None:
    """Raise where an epoch has another number of optimizer steps than its length tells."""
    if len(trainer.optimizers) > 1:
        raise ValueError(
            f"there are {len(trainer.optimizers)} optimizers, whose steps the Trainer counts together, so that eps "
            f"would grow too fast; allowed is one: give it all parameters, in groups"
        )
    for callback in trainer.callbacks:
        # told by its attributes, since there is one class in each of Lightning's packages
        scheduling = callback.scheduling if hasattr(callback, "get_accumulate_grad_batches") else None
        if scheduling is not None and set(scheduling.values()) != {trainer.accumulate_grad_batches}:
            raise ValueError(
                f"{type(callback).__name__} changes the optimizer steps of an epoch ({scheduling}), by which eps "
                f"grows; use Trainer(accumulate_grad_batches=...) with one number instead"
            )


def _has_seen_batches(net: nn.Module) -> bool:
    return any(
        isinstance(module, BATCH_NORM) and module.num_batches_tracked is not None and module.num_batches_tracked > 0
        for module in net.modules()
    )


def _initialise(trainer: Any, net: nn.Module) -> None:
    # one seed for all processes: weights were made equal before, and nobody would make them equal again
    seed = trainer.strategy.broadcast(torch.randint(2**31, ()).item())
    device = next(net.parameters()).device
    ibp_init_(net, generator=torch.Generator(device).manual_seed(seed))


def _warn_about(trainer: Any) -> None:
    if not trainer.is_global_zero:
        return
    if not trainer.gradient_clip_val:
        _warn("gradient_clip_val is unset; bounds make gradients large while eps grows: use gradient_clip_val=10.0")
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor != MONITOR and not monitor.startswith(f"{MONITOR}/dataloader_idx_"):
            _warn(
                f"{type(callback).__name__} monitors {monitor!r}: a value taken before eps is max_eps wins over later "
                f"ones unjustly. Monitor the verified error at max_eps, 'val/verified_error' of CertifiedClassifier"
            )


def start_training(trainer: Any, certifier: Certifier, resumed: dict[str, Any] | None) -> int:
    """Return the optimizer steps of an epoch, in ``on_train_start``, when the data is known.

    Args:
        trainer: The Trainer.
        certifier: Has the schedule.
        resumed: As in `prepare_fit`.

    Raises:
        ValueError: If an epoch has no known length, another one than the resumed run's, or ends before ε_max.
    """
    batches, schedule = trainer.num_training_batches, certifier.schedule
    if math.isinf(batches):
        raise ValueError("the training data has no known length; set limit_train_batches to the batches of an epoch")
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    if trainer.ckpt_path is not None and resumed is not None and resumed["steps_per_epoch"] not in (None, steps):
        raise ValueError(
            f"an epoch has {steps} optimizer steps, but the resumed run had {resumed['steps_per_epoch']}, which "
            f"would move eps; resume with the same data, batch size and accumulate_grad_batches"
        )
    if trainer.max_steps != -1 and not trainer.fast_dev_run and schedule.full_epoch * steps >= trainer.max_steps:
        raise ValueError(
            f"eps reaches max_eps at step {schedule.full_epoch * steps}, but max_steps is {trainer.max_steps}; "
            f"shorten the ramp or train for longer"
        )
    return steps


def start_batch(trainer: Any, certifier: Certifier, net: nn.Module, steps_per_epoch: int) -> None:
    """Set ε for the optimizer step that the batch belongs to; watch the first batch of a run for frozen statistics."""
    first = certifier.last is None
    certifier.advance(trainer.global_step, steps_per_epoch)
    if first and trainer.is_global_zero:
        frozen = [n for n, m in net.named_modules() if isinstance(m, BATCH_NORM) and not m.training]
        if frozen:
            _warn(
                f"batch normalisation is in eval mode during training ({', '.join(frozen)}): its statistics will not "
                f"follow the weights, and the bounds widen; leave it in train mode"
            )


def finish_training(trainer: Any, certifier: Certifier) -> None:
    """Warn in ``on_train_end`` if training ended below ε_max."""
    if not certifier.at_max_eps and not trainer.fast_dev_run and trainer.is_global_zero:
        _warn(
            f"training ended at step {certifier.step} with eps {certifier.eps.item():.3g}, below max_eps "
            f"{certifier.schedule.max_eps:g}: it stopped early, or took fewer optimizer steps than its epochs have "
            f"batches (accumulation in training_step); train on, or shorten the ramp"
        )


def log_progress(trainer: Any, module: Any, certifier: Certifier) -> None:
    """Log radius, regularisers and the states of the ReLUs of the last batch, every ``log_every_n_steps`` steps."""
    if not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
        return
    values = {"eps": certifier.eps.clone()}
    if certifier.last is not None:
        names = ("tightness", "relu", "active_fraction", "inactive_fraction")
        values |= {name: getattr(certifier.last, name) for name in names}
    logged = {f"weights/ibp_warmup/{name}": value for name, value in values.items()}
    module.log_dict(logged, on_epoch=False, sync_dist=True)


def _warn(text: str) -> None:
    warnings.warn(text, LightningWeightsWarning, stacklevel=4)

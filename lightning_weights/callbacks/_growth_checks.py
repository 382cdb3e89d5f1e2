"""What has to hold before a network is trained to grow."""

import warnings

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from lightning_weights.callbacks._fresh_start import epochs_of_schedule
from lightning_weights.callbacks._injection import weight_layers
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.functional.mixture_growth import GROWN
from lightning_weights.modules import mixture_parts
from lightning_weights.modules.growing import mixture_layers
from lightning_weights.modules.mixture_part import MODES


def check_network(pl_module: LightningModule) -> None:
    """Check that a module has mixture layers.

    Raises:
        MisconfigurationException: If it has none.
    """
    if not mixture_layers(pl_module):
        raise MisconfigurationException(
            f"{type(pl_module).__name__} has no mixture layers, so that nothing can grow; make them of the plain "
            f"network with lightning_weights.modules.mixturize (Linear and Conv layers with plain weights: "
            f"{', '.join(weight_layers(pl_module)) or 'none'})"
        )


def check_epochs(trainer: Trainer, grown_from: int) -> None:
    """Check that there are epochs left for the grown network.

    Args:
        trainer: The Trainer.
        grown_from: Epochs of both members.

    Raises:
        ValueError: If there are none, or nobody knows how many.
    """
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    if epochs <= grown_from and not trainer.fast_dev_run:
        raise ValueError(
            f"max_epochs is {epochs}, and the members take {grown_from} epochs, so that the network would never be "
            f"grown; give max_epochs of more than that, or fewer member_epochs"
        )


def check_strategy(trainer: Trainer) -> None:
    """Check that a strategy puts up with parameters that have no gradient for a while.

    Args:
        trainer: The Trainer, with its strategy set up.

    Raises:
        ValueError: Under DDP without a search for unused parameters.
        ShardedParameterError: Under FSDP.
    """
    model = trainer.strategy.model
    if isinstance(model, DistributedDataParallel) and (not model.find_unused_parameters or model.static_graph):
        raise ValueError(
            "the strategy expects a gradient for every parameter (or a graph that never changes), and an idle member "
            "has none; use strategy='ddp_find_unused_parameters_true'"
        )
    flat = any(isinstance(part, FullyShardedDataParallel) for part in model.modules())
    if flat or any(hasattr(param, "placements") for param in model.parameters()):
        raise ShardedParameterError(
            "parameters are sharded (FSDP), and a member that waits has no optimizer state, without which sharded "
            "optimizers cannot be resumed; use strategy='ddp_find_unused_parameters_true', or one device"
        )


def warn_about_plan(trainer: Trainer, pl_module: LightningModule, coefficient_init: str, member_epochs: int) -> None:
    """Tell of coefficients that cannot be what they are called, and of schedules that step over the growth.

    Args:
        trainer: The Trainer, with its schedules.
        pl_module: Its module.
        coefficient_init: As of the callback.
        member_epochs: Of the member that is trained longer.

    Warns:
        LightningWeightsWarning: If there is something to tell.
    """
    layers = [layer for layer in mixture_layers(pl_module) if layer.grows]
    few = min((layer.bank.num_templates for layer in layers), default=4)
    texts = []
    if coefficient_init == "orthogonal" and few <= 3:
        texts.append(
            f"with {few} templates per set the coefficients of a fourth block cannot be orthogonal to those of three "
            f"others; they get the direction that overlaps least. Take more than 3 templates, or another "
            f"coefficient_init, such as 'zero'"
        )
    longest = epochs_of_schedule(trainer)
    if longest > member_epochs > 0:
        texts.append(
            f"a learning-rate schedule takes {longest:g} epochs and begins anew with each member, which is trained for "
            f"at most {member_epochs}: it would step over the growth without ending; make it as long as a member"
        )
    if texts and trainer.is_global_zero:
        warnings.warn("; ".join(texts), LightningWeightsWarning, stacklevel=3)


def warn_unless_grown(trainer: Trainer, phase: int) -> None:
    """Tell of a run that ended before the network has grown: by a limit of steps or time, or by early stopping.

    Args:
        trainer: The Trainer.
        phase: Phase in which it ended.

    Warns:
        LightningWeightsWarning: If it is that of a member.
    """
    if phase != GROWN and not trainer.fast_dev_run and trainer.is_global_zero:
        warnings.warn(
            f"training ended after {trainer.global_step} steps, in mode {MODES[phase]!r}, before the network has "
            f"grown: it is half as wide as planned; go on with ckpt_path, or let nothing stop a member early",
            LightningWeightsWarning,
            stacklevel=2,
        )


def reached_phase(pl_module: LightningModule, planned: int, epoch: int) -> int:
    """Return the phase that a network is in, at the start of a run, maybe a resumed one.

    Args:
        pl_module: A module with mixture layers.
        planned: Phase of the epoch that begins or goes on.
        epoch: Its number, for the message.

    Raises:
        ValueError: If the network is further than the plan, or its layers differ.
    """
    reached = {MODES.index(part.mode) for part in mixture_parts(pl_module).values()}
    if len(reached) > 1 or max(reached) > planned:
        raise ValueError(
            f"the mixture layers are in mode {', '.join(MODES[phase] for phase in sorted(reached))}, and epoch {epoch} "
            f"is for {MODES[planned]}; call set_mode(network, 'member0') to begin anew, materialize to train a grown "
            f"network as a plain one, or resume with ckpt_path"
        )
    return max(reached)

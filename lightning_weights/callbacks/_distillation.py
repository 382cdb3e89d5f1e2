"""A full-precision copy of a network that teaches the network what it has become."""

import copy
import warnings
import weakref
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_weights.callbacks._penalties import add_to_loss, refuse_manual_ddp
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.untrained import look_untrained
from lightning_weights.modules import fake_quantized
from lightning_weights.modules._logits import find_logits
from lightning_weights.modules._wide_parameters import NARROW


class Teacher:
    """A frozen copy of a network, and what the network itself was given and has answered since the last step.

    It belongs to no module, so that no checkpoint and no optimizer has its weights.

    Args:
        network: The network, copied as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._losses: list[Tensor] = []
        self._layers: list[weakref.ref[nn.Module]] = []
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        self._asked = False
        self._hook: Any = None

    def meet(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Remember the network that the copied one has become.

        Args:
            module: The quantized network, or what it is part of.

        Returns:
            The teacher's parameters by name.
        """
        self._layers = [weakref.ref(layer) for layer in fake_quantized(module).values()]
        return dict(self.network.named_parameters())

    def knows(self, module: nn.Module) -> bool:
        """Tell whether a quantized network is the one that was met."""
        layers = fake_quantized(module).values()
        return [id(layer) for layer in layers] == [id(layer()) for layer in self._layers]

    def watch(self, student: nn.Module, trainer: Trainer) -> None:
        """Begin to note what goes through the student in training; the teacher moves to where it is."""
        self.stop()
        params = list(student.parameters())
        narrow = [param.dtype for param in params if param.dtype in NARROW]  # of all but latents, which stay wide
        self.network.to(device=params[0].device, dtype=narrow[0] if narrow else params[0].dtype)
        trainer.precision_plugin.convert_module(self.network)
        self._hook = student.register_forward_hook(self._note, with_kwargs=True)

    def stop(self) -> None:
        """Take the hook off."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._losses = None, []
        self.forget()

    def forget(self) -> None:
        """Drop what was noted, at the start of a batch."""
        self._calls, self._asked = [], False

    def _note(self, student: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        # under DDP the root module is also called with a whole batch, and answers with its loss
        if torch.is_grad_enabled() and _logits(output, teacher=False) is not None:
            self._calls.append((inputs, named, output))

    def add_loss(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor, weight: float, temperature: float
    ) -> None:
        """Add the cross-entropy of what was noted against the teacher's probabilities, a mean over the calls.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            loss: The loss that is about to go backward.
            weight: Factor of what is added.
            temperature: Divides both logits; what is added is multiplied by its square.

        Raises:
            ValueError: If nothing was noted in this batch.
        """
        calls, self._calls = self._calls, []
        if not calls and not self._asked:
            raise ValueError(
                f"the training step of {type(pl_module).__name__} did not call its network, or got no logits from it, "
                f"so that there is nothing to distil; name the submodule that returns logits in network, or use "
                f"distillation=0"
            )
        self._asked = True
        with trainer.precision_plugin.train_step_context():  # inputs may have the type that autocast gave them
            losses = [self._loss(*call, temperature) for call in calls]
        if losses:
            taught = torch.stack(losses).mean()
            self._losses.append(taught.detach())
            add_to_loss(trainer, pl_module, loss, weight * taught, retain_graph=True)

    def mean_loss(self) -> Tensor | None:
        """Return the mean of what was added since the last call, before it was weighted; ``None`` if nothing was."""
        losses, self._losses = self._losses, []
        return torch.stack(losses).mean() if losses else None

    def _loss(self, inputs: tuple[Any, ...], named: dict[str, Any], output: Any, temperature: float) -> Tensor:
        with torch.no_grad():
            wanted = _logits(self.network(*inputs, **named), teacher=True)
        given = _logits(output, teacher=False)
        wide = torch.promote_types(given.dtype, torch.float32)
        given, wanted = (logits.flatten(0, -2).to(wide) / temperature for logits in (given, wanted))
        return F.cross_entropy(given, wanted.softmax(-1)) * temperature**2


def _logits(output: Any, teacher: bool) -> Any:
    """Find the logits in what a network returns; a student's distillation head counts before the other."""
    if not teacher and isinstance(getattr(output, "distillation_logits", None), Tensor):
        return output.distillation_logits
    return find_logits(output)


def teacher_of(module: nn.Module, network: str | None) -> Teacher:
    """Copy the part of a module that returns the logits.

    Args:
        module: A LightningModule, or the network itself.
        network: As of ``network_to_teach``.

    Raises:
        ValueError: If there is no such part, or not only one.
    """
    # no isinstance: there are two roots of LightningModule
    student = network_to_teach(module, network) if hasattr(module, "training_step") else module
    return Teacher(getattr(student, "_orig_mod", student))


def begin_to_teach(teacher: Teacher | None, trainer: Trainer, pl_module: LightningModule, network: str | None) -> None:
    """Let a teacher watch its student, at the start of a fit.

    Args:
        teacher: The teacher, if there is one.
        trainer: The Trainer.
        pl_module: Its module.
        network: As of ``network_to_teach``.

    Raises:
        ValueError: In manual optimization under DDP.

    Warns:
        LightningWeightsWarning: If there is none, or it looks untrained.
    """
    refuse_manual_ddp(trainer, pl_module, "OFQ", "the teacher's loss")
    problem = None
    if teacher is None:
        problem = (
            "the network was quantized before by somebody else, so that OFQ has no full-precision copy of it and "
            "nothing is distilled; use distillation=0, or the OFQ that has quantized it"
        )
    elif look_untrained(param for param in teacher.network.parameters() if param.ndim == 2):
        problem = (
            "OFQ distils from a copy of the network as it was, and that looks untrained; load trained weights before "
            "the fit, or use distillation=0"
        )
    if problem is not None and trainer.is_global_zero:
        warnings.warn(problem, LightningWeightsWarning, stacklevel=3)
    if teacher is not None:
        teacher.watch(network_to_teach(pl_module, network), trainer)


def check_teacher(saved: str, here: str) -> None:
    """Check that a checkpoint's network was taught by the same network.

    Args:
        saved: Fingerprint of the teacher in the checkpoint; an empty one says nothing.
        here: Fingerprint of the teacher that is here.

    Raises:
        ValueError: If it was not.
    """
    if saved and here and saved != here:
        raise ValueError(
            f"the checkpoint's network was taught by another one: the teacher's fingerprint is {here} here and {saved} "
            f"there; build the module with the same full-precision weights, or use distillation=0"
        )


def network_to_teach(pl_module: Any, network: str | None) -> nn.Module:
    """Return the part of a module whose outputs are the logits.

    Args:
        pl_module: The module.
        network: Its name; empty for the module itself, ``None`` for the only child with weight matrices.

    Raises:
        ValueError: If there is no such part, or not only one.
    """
    modules = dict(pl_module.named_modules())
    children = [name for name, part in pl_module.named_children() if any(p.ndim >= 2 for p in part.parameters())]
    name = children[0] if network is None and len(children) == 1 else network
    if name not in modules:
        raise ValueError(
            f"network is {network!r}; to learn from the full-precision copy, give the name of the submodule of "
            f"{type(pl_module).__name__} that returns the logits ('' for itself): its children with weight matrices "
            f"are {', '.join(children) or 'none'}; or use distillation=0"
        )
    return modules[name]

"""What certified training keeps between steps: the loss, the schedule, and the radius of the moment."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.modules.certified_loss import CertifiedLoss, CertifiedLossOutput
from lightning_weights.modules.epsilon_schedule import EpsilonSchedule
from lightning_weights.modules.input_box import InputBox


class Certifier(nn.Module):
    """Train and judge a network with certified bounds, at the radius that the schedule is at: ``eps``, ε_max at first.

    `CertifiedClassifier` has one and `IBPWarmup` gives one to any LightningModule, as ``certifier``; both move it on.
    In a loop of your own, call `advance` before every step. It has no parameters, and nothing of it is in
    ``state_dict``.

    Args:
        loss: The loss.
        schedule: The radius as a function of the step.
        box: Normalisation and valid range of the inputs.

    Raises:
        ValueError: If the schedule's radius is larger than the range of the inputs.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import MLP
        >>> certifier = Certifier(CertifiedLoss(), EpsilonSchedule(max_eps=0.1, kind="fixed"), InputBox())
        >>> certifier.advance(step=0, steps_per_epoch=10)
        >>> net, x, y = MLP(in_features=4, num_classes=3), torch.full((2, 4), 0.5), torch.tensor([0, 2])
        >>> certifier.loss(net, x, y).backward()
        >>> certifier.margins(net, x, y).shape
        torch.Size([2, 2])
    """

    eps: Tensor

    def __init__(self, loss: CertifiedLoss, schedule: EpsilonSchedule, box: InputBox) -> None:
        if schedule.max_eps > box.high - box.low:
            raise ValueError(
                f"max_eps is {schedule.max_eps}, more than the whole range of inputs from {box.low} to {box.high}; "
                f"give it in units of the raw inputs: did you mean {schedule.max_eps:g}/255?"
            )
        super().__init__()
        self.criterion = loss
        self.schedule = schedule
        self.box = box
        self.register_buffer("eps", torch.tensor(schedule.max_eps, dtype=torch.float32), persistent=False)
        self.at_max_eps = True  # without asking the device
        self.step: int | None = None
        self.steps_per_epoch: int | None = None
        self.last: CertifiedLossOutput | None = None

    def advance(self, step: int, steps_per_epoch: int) -> None:
        """Set ``eps`` to what the schedule says after ``step`` optimizer steps.

        Args:
            step: Optimizer steps done, from 0.
            steps_per_epoch: Optimizer steps in an epoch.

        Raises:
            ValueError: If a number is out of range.
        """
        check_number("step", step, low=0, whole=True)
        check_number("steps_per_epoch", steps_per_epoch, low=1, whole=True)
        self.step, self.steps_per_epoch = step, steps_per_epoch
        eps = self.schedule(step, steps_per_epoch)
        self.eps.fill_(eps)
        self.at_max_eps = eps == self.schedule.max_eps

    def loss(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch of raw inputs to minimise, and keep all of its parts in ``last``."""
        output = self.criterion(net, x, y, self.eps, self.schedule.max_eps, box=self.box)
        self.last = CertifiedLossOutput(*(part.detach() for part in output))
        return output.loss

    def margins(self, net: nn.Module, x: Tensor, y: Tensor, eps: float | Tensor | None = None) -> Tensor:
        """Return lower bounds of the margins, shape (N, K-1), at ``eps`` (None: ε_max), for `VerifiedError`."""
        return self.criterion.margins(net, x, y, self.schedule.max_eps if eps is None else eps, box=self.box)

    def progress(self) -> dict[str, Any]:
        """Return schedule and position as plain values, for a checkpoint."""
        return {"schedule": self.schedule.settings(), "step": self.step, "steps_per_epoch": self.steps_per_epoch}

    def check_schedule(self, progress: dict[str, Any]) -> None:
        """Raise ValueError if ``progress`` was taken with another schedule."""
        own, saved = self.schedule.settings(), progress["schedule"]
        changed = [f"{name} was {saved[name]!r}, is {own[name]!r}" for name in own if saved[name] != own[name]]
        if changed:
            raise ValueError(
                f"the schedule of the resumed run differs: {'; '.join(changed)}. Resume with the values of the "
                f"checkpoint, or load its weights and start a new fit with init='keep'"
            )

    def resume(self, progress: dict[str, Any]) -> None:
        """Go back to where ``progress`` was taken, so that ε is what it was.

        Raises:
            ValueError: If it was taken with another schedule.
        """
        self.check_schedule(progress)
        if progress["step"] is not None:
            self.advance(progress["step"], progress["steps_per_epoch"])

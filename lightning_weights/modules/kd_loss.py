"""Learning from labels and from a teacher's outputs."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.kernels.distillation_loss import distillation_loss


class KDLoss(nn.Module):
    r"""Add cross-entropy with the labels to cross-entropy with a teacher's probabilities.

    $$L = h \operatorname{CE}(z, y) + s \operatorname{CE}(z / T, \operatorname{softmax}(z_\text{teacher} / T))$$

    The teacher is in evaluation mode, gets no gradients, is in no state dict and among no parameters, and follows the
    inputs to their device.

    Args:
        teacher: Network that turns inputs into logits.
        hard: Weight h of the labels.
        soft: Weight s of the teacher.
        temperature: T > 0.

    Raises:
        ValueError: If a number is out of range, or both weights are zero.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210, with weights and temperature of 1.

    Examples:
        >>> import torch
        >>> loss = KDLoss(nn.Linear(4, 3))
        >>> loss(torch.zeros(2, 4), torch.zeros(2, 3), torch.tensor([0, 2])).shape, list(loss.parameters())
        (torch.Size([]), [])
    """

    def __init__(self, teacher: nn.Module, hard: float = 1.0, soft: float = 1.0, temperature: float = 1.0) -> None:
        check_number("hard", hard, low=0.0)
        check_number("soft", soft, low=0.0)
        check_number("temperature", temperature, low=0.0, low_allowed=False)
        if hard + soft == 0.0:
            raise ValueError(f"hard is {hard} and soft is {soft}; allowed is at most one weight of zero")
        super().__init__()
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple hides it from nn.Module
        self.hard = float(hard)
        self.soft = float(soft)
        self.temperature = float(temperature)

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        return self._teacher[0]

    def forward(self, inputs: Tensor, logits: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
        """Return the loss.

        Args:
            inputs: What the teacher is shown.
            logits: The student's outputs (N, C), or those of two heads: one for the labels, one for the teacher.
            targets: Labels (N,).
        """
        with torch.no_grad():
            wanted = self.teacher.to(inputs.device)(inputs)
        if not isinstance(logits, Tensor):
            of_labels, of_teacher = logits
            distilled = distillation_loss(of_teacher, wanted, targets, weight=1.0, temperature=self.temperature)
            return self.hard * F.cross_entropy(of_labels, targets) + self.soft * distilled
        total = self.hard + self.soft
        share = self.soft / total
        return total * distillation_loss(logits, wanted, targets, weight=share, temperature=self.temperature)

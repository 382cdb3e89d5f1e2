"""A LightningModule that classifies graphs."""

from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_weights.errors import check_number
from lightning_weights.modules.ponita import PonitaOutput, graph_inputs
from lightning_weights.modules.ponita_tasks.task import (
    OBJECTS,
    Measured,
    PredictionTask,
    check_network,
    check_shape,
    target_of,
)


class PonitaClassifier(PredictionTask):
    """Train a network to classify graphs, such as those of the superpixels of an image, with the cross-entropy.

    Batches have ``x``, ``pos``, maybe ``vec``, ``batch`` and ``edge_index``, and the labels ``y``, (G,). Logs
    ``train/loss`` and, per stage ``val`` and ``test``, ``loss`` and ``accuracy``.

    Args:
        network: `Ponita` with ``out_scalars=num_classes`` and pooling; or any module that is called as
            ``network(scalars, pos, edge_index, batch, vectors, condition)`` and returns ``scalars`` (G, num_classes).
        num_classes: Number of classes, at least 2.
        test_time_rotations: Number of random rotations that logits are averaged over in testing and prediction; 0 for
            one answer as it is.
        optimizer: Makes the optimizer from the groups of `linear_decay_groups`; an optimizer given to LightningCLI
            itself takes precedence. ``None``: Adam with learning rate 5e-4 and weight decay 1e-10.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If a number is out of range or the network predicts something else; in steps, if labels are missing
            or have another shape.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import Ponita
        >>> network = Ponita(1, out_scalars=10, dim=2, hidden_dim=8, num_layers=1, pooling="mean")
        >>> PonitaClassifier(network)({"x": torch.ones(5, 1), "pos": torch.randn(5, 2)}).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        test_time_rotations: int = 0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("num_classes", num_classes, low=2, whole=True)
        check_network(network, out_scalars=(num_classes,), out_vectors=(0,), pooling=("sum", "mean"))
        super().__init__(network, test_time_rotations, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=OBJECTS)
        self.num_classes = num_classes

    def _predictions(self, batch: Any, answer: PonitaOutput) -> Tensor:
        return answer.scalars

    def _measure(self, batch: Any, rotations: int) -> Measured:
        logits = self._answer(graph_inputs(batch), rotations).scalars
        labels = target_of(batch, "y")
        check_shape("y", labels, (len(logits),))
        loss = nn.functional.cross_entropy(logits, labels)
        accuracy = multiclass_accuracy(logits, labels, num_classes=self.num_classes, average="micro")
        size = len(labels)
        return Measured({"loss": (loss, size), "accuracy": (accuracy, size)}, logits.detach(), labels)

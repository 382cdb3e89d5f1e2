"""A LightningModule that predicts where moving points will be."""

from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.modules.ponita import PonitaOutput, graph_inputs
from lightning_weights.modules.ponita_tasks.task import (
    OBJECTS,
    Measured,
    PredictionTask,
    check_network,
    check_shape,
    target_of,
)


class PonitaDynamics(PredictionTask):
    r"""Train a network to predict positions at a later time, as what it adds to those now.

    $$\hat x_i(t + \tau) = x_i(t) + v_i, \qquad L = \operatorname{MSE}$$

    Batches have ``x``, ``pos``, maybe ``vec`` (velocities), ``batch`` and ``edge_index``, and the target ``y``: later
    positions, (N, n). Logs ``train/loss``, ``val/loss`` and ``test/loss``, means over all components. Turn training
    batches with ``RotateBatch(fields=["pos", "vec", "y"])``.

    Args:
        network: `Ponita` with ``out_vectors=1`` and without pooling; or any module that is called as
            ``network(scalars, pos, edge_index, batch, vectors, condition)`` and returns ``vectors`` (N, 1, n).
        test_time_rotations: Number of random rotations that answers are averaged over in testing and prediction; 0 for
            one answer as it is.
        optimizer: Makes the optimizer from the groups of `linear_decay_groups`; an optimizer given to LightningCLI
            itself takes precedence. ``None``: Adam with learning rate 1e-3 and weight decay 1e-10.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If ``test_time_rotations`` is out of range or the network predicts something else; in steps, if the
            target is missing or has another shape.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> from lightning_weights.modules import Ponita
        >>> network = Ponita(1, 1, 0, 1, hidden_dim=8, num_layers=1, num_orientations=4)
        >>> points = {"x": torch.ones(5, 1), "pos": torch.randn(5, 3), "vec": torch.randn(5, 3)}
        >>> PonitaDynamics(network)(points).shape
        torch.Size([5, 3])
    """

    default_optimizer: ClassVar[Any] = partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-10)

    def __init__(
        self,
        network: nn.Module,
        test_time_rotations: int = 0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_network(network, out_scalars=(0,), out_vectors=(1,), pooling=("none",))
        super().__init__(network, test_time_rotations, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=OBJECTS)

    def _predictions(self, batch: Any, answer: PonitaOutput) -> Tensor:
        return graph_inputs(batch).pos + answer.vectors[:, 0]

    def _measure(self, batch: Any, rotations: int) -> Measured:
        inputs, target = graph_inputs(batch), target_of(batch, "y")
        check_shape("y", target, tuple(inputs.pos.shape))
        preds = self._predictions(batch, self._answer(inputs, rotations))
        loss = (preds - target).square().mean()
        return Measured({"loss": (loss, len(target))}, preds.detach(), target)

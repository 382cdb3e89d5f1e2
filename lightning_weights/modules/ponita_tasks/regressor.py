"""A LightningModule that predicts numbers of graphs."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.modules.ponita import PonitaOutput, graph_inputs
from lightning_weights.modules.ponita_tasks.standardization import Standardization
from lightning_weights.modules.ponita_tasks.task import (
    OBJECTS,
    Measured,
    StandardizedTask,
    check_network,
    check_shape,
    target_of,
)


class PonitaRegressor(StandardizedTask):
    r"""Train a network to predict numbers of graphs, such as properties of molecules, with an L1 loss.

    $$L = \frac{1}{G K} \sum_{g k} \left| \hat z_{gk} - \frac{y_{gk} - \mu_k}{s_k} \right|$$

    Mean μ and standard deviation s of each target are those of the training data; the fit finds them once, before its
    first step, and checkpoints keep them.

    Batches have ``x``, ``pos``, maybe ``vec``, ``batch`` and ``edge_index``, and the target ``y``, (G,) or (G, K). Logs
    ``train/loss`` and, per stage ``val`` and ``test``, ``loss`` and ``mae``, the mean absolute error in data units.

    Args:
        network: `Ponita` with ``out_scalars=num_targets`` and pooling; or any module that is called as
            ``network(scalars, pos, edge_index, batch, vectors, condition)`` and returns ``scalars`` (G, K).
        num_targets: Number K of targets.
        test_time_rotations: Number of random rotations that answers are averaged over in testing and prediction; 0 for
            one answer as it is.
        optimizer: Makes the optimizer from the groups of `linear_decay_groups`; an optimizer given to LightningCLI
            itself takes precedence. ``None``: Adam with learning rate 5e-4 and weight decay 1e-10.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If a number is out of range or the network predicts something else; in steps, if the target is
            missing or has another shape.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> from lightning_weights.modules import Ponita
        >>> network = Ponita(2, hidden_dim=8, num_layers=1, num_orientations=4, pooling="sum")
        >>> PonitaRegressor(network)({"x": torch.eye(2), "pos": torch.randn(2, 3)}).shape
        torch.Size([1, 1])
    """

    def __init__(
        self,
        network: nn.Module,
        num_targets: int = 1,
        test_time_rotations: int = 0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("num_targets", num_targets, low=1, whole=True)
        check_network(network, out_scalars=(num_targets,), out_vectors=(0,), pooling=("sum", "mean"))
        super().__init__(network, test_time_rotations, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=OBJECTS)
        self.num_targets = num_targets
        self.standardization = Standardization(num_targets)

    @torch.no_grad()
    def standardize(self, batches: Iterable[Any]) -> None:
        """Find shift and scale, and keep them; a fit does so by itself with its training data, once.

        Args:
            batches: Batches of the training data.

        Raises:
            ValueError: If all targets are equal, or a number is not finite.
        """
        parts = [target_of(batch, "y").reshape(-1, self.num_targets).double().cpu() for batch in batches]
        if not parts:
            raise ValueError("there are no batches; allowed is one or more to find shift and scale with")
        targets = torch.cat(parts)
        self.standardization.assign(targets.mean(0), targets.std(0, correction=0))

    def _predictions(self, batch: Any, answer: PonitaOutput) -> Tensor:
        return self.standardization.restored(answer.scalars)

    def _measure(self, batch: Any, rotations: int) -> Measured:
        scalars = self._answer(graph_inputs(batch), rotations).scalars
        targets = target_of(batch, "y")
        targets = targets[:, None] if targets.dim() == 1 else targets
        check_shape("y", targets, tuple(scalars.shape))
        errors = (scalars - self.standardization.normalized(targets)).abs()
        in_units = (errors * self.standardization.scale).detach().mean()
        values = {"loss": (errors.mean(), len(targets)), "mae": (in_units, len(targets))}
        return Measured(values, self.standardization.restored(scalars.detach()), targets)

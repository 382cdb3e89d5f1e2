"""A LightningModule for the energies of atoms and the forces on them."""

from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules.ponita import GraphInputs, PonitaOutput, graph_inputs
from lightning_weights.modules.ponita_tasks.standardization import Standardization
from lightning_weights.modules.ponita_tasks.task import (
    OBJECTS,
    Measured,
    StandardizedTask,
    check_network,
    check_shape,
    target_of,
)

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
INFERENCE_MODE = (
    "forces are gradients with respect to positions, which torch.inference_mode rules out; use "
    "Trainer(inference_mode=False), or torch.no_grad() in place of torch.inference_mode()"
)

SHARDED = "sharded weights (FSDP2) are gone when forces are learnt, which goes backward twice; use strategy='ddp'"


class EnergyForces(NamedTuple):
    """What a potential says.

    Attributes:
        energies: Energies of graphs, (G,), float64: total energies have many digits before those that matter.
        forces: Forces on atoms, (N, n).

    Examples:
        >>> energies, forces = EnergyForces(torch.zeros(1), torch.zeros(3, 3))
    """

    energies: Tensor
    forces: Tensor


class PonitaPotential(StandardizedTask):
    r"""Train a network on energies and forces, which are gradients of the very energies.

    $$F_i = -\frac{\partial E}{\partial x_i}, \qquad
    L = \frac{1}{\lambda_F} \operatorname{MSE}(E) + \frac{1}{n N} \sum_i \|\hat F_i - F_i\|^2$$

    Energies are shifted by their mean, then energies and forces divided by the root mean square of all components of
    forces, both over the training data; the fit finds these numbers once, before its first step, and checkpoints keep
    them. Large energies, such as total ones, should come in float64: the shift is subtracted before they are rounded.

    Batches have ``x``, ``pos``, maybe ``batch`` and ``edge_index``, and the targets ``y``, (G,) or (G, 1), and
    ``forces``, (N, n). Logs ``train/loss`` and, per stage ``val`` and ``test``, ``loss``, ``energy_mae`` and
    ``force_mae``, mean absolute errors in data units, that of forces per component. A Trainer that tests, predicts or
    validates outside a fit needs ``inference_mode=False``. Turn training batches with
    ``RotateBatch(fields=["pos", "forces"])``.

    Args:
        network: `Ponita` with ``out_scalars=1`` and pooling; or any module that is called as
            ``network(scalars, pos, edge_index, batch, vectors, condition)`` and returns ``scalars`` (G, 1).
        lambda_force: λ_F > 0, how much more forces count than energies.
        test_time_rotations: Number of random rotations that answers are averaged over in testing and prediction, forces
            turned back; 0 for one answer as it is.
        optimizer: Makes the optimizer from the groups of `linear_decay_groups`; an optimizer given to LightningCLI
            itself takes precedence. ``None``: Adam with learning rate 5e-4 and weight decay 1e-16.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If a number is out of range or the network predicts something else; at the start of a run, if
            precision or inference mode rule forces out; in steps, if targets are missing or have another shape.
        ShardedParameterError: In steps, if weights are sharded.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> from lightning_weights.modules import Ponita
        >>> network = Ponita(2, hidden_dim=8, num_layers=1, num_orientations=4, pooling="sum")
        >>> energies, forces = PonitaPotential(network)({"x": torch.eye(2), "pos": torch.randn(2, 3)})
        >>> energies.shape, forces.shape
        (torch.Size([1]), torch.Size([2, 3]))
    """

    default_optimizer: ClassVar[Any] = partial(torch.optim.Adam, lr=5e-4, weight_decay=1e-16)

    def __init__(
        self,
        network: nn.Module,
        lambda_force: float = 500.0,
        test_time_rotations: int = 5,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("lambda_force", lambda_force, low=0.0, low_allowed=False)
        check_network(network, out_scalars=(1,), out_vectors=(0,), pooling=("sum", "mean"))
        super().__init__(network, test_time_rotations, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=OBJECTS)
        self.lambda_force = lambda_force
        self.standardization = Standardization()

    def setup(self, stage: str) -> None:
        """Check that the Trainer lets forces be computed."""
        trainer = self.trainer
        if trainer.precision not in PRECISIONS:
            raise ValueError(
                f"precision is {trainer.precision!r}, in which forces have too few digits; allowed are "
                f"{', '.join(map(repr, PRECISIONS))}"
            )
        loops = {"validate": trainer.validate_loop, "test": trainer.test_loop, "predict": trainer.predict_loop}
        if stage in loops and loops[stage].inference_mode:  # Trainers leave it off within a fit
            raise ValueError(INFERENCE_MODE)

    def predict(self, batch: Any, rotations: int | None = None) -> EnergyForces:
        """Return energies and forces in data units, in evaluation mode, averaged and without a graph.

        Args:
            batch: The graphs, see `graph_inputs`.
            rotations: Number of random rotations to average over; ``None`` for ``test_time_rotations``.

        Raises:
            ValueError: If inference mode is on.
        """
        rotations = self.test_time_rotations if rotations is None else rotations
        with torch.no_grad(), evaluation_mode(self):
            return self._predictions(batch, self._answer(graph_inputs(batch), rotations))

    @torch.no_grad()
    def standardize(self, batches: Iterable[Any]) -> None:
        """Find shift and scale, and keep them; a fit does so by itself with its training data, once.

        Args:
            batches: Batches of the training data.

        Raises:
            ValueError: If all forces are 0, or a number is not finite.
        """
        total, squares = torch.zeros(2, dtype=torch.float64, device="cpu")
        graphs, components = 0, 0
        for batch in batches:
            energies, forces = target_of(batch, "y"), target_of(batch, "forces")
            total += energies.double().sum().cpu()
            squares += forces.double().square().sum().cpu()
            graphs += energies.numel()
            components += forces.numel()
        if not graphs:
            raise ValueError("there are no batches; allowed is one or more to find shift and scale with")
        self.standardization.assign((total / graphs)[None], (squares / components).sqrt()[None])

    def _respond(self, inputs: GraphInputs) -> PonitaOutput:
        """Return energies as scalars and forces as vectors, standardized."""
        if torch.is_inference_mode_enabled() or inputs.pos.is_inference():
            raise ValueError(INFERENCE_MODE)
        if any(hasattr(param, "placements") for param in self.network.parameters()):
            raise ShardedParameterError(SHARDED)
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            pos = inputs.pos if inputs.pos.requires_grad else inputs.pos.detach().requires_grad_()
            energies = self.network(*inputs._replace(pos=pos)).scalars
            (gradients,) = torch.autograd.grad(energies.sum(), pos, create_graph=differentiable)
        return PonitaOutput(energies if differentiable else energies.detach(), -gradients[:, None])

    def _predictions(self, batch: Any, answer: PonitaOutput) -> EnergyForces:
        scalars = answer.scalars
        if scalars.device.type != "mps":  # which has no float64
            scalars = scalars.double()
        energies = self.standardization.restored(scalars)[:, 0]
        return EnergyForces(energies, answer.vectors[:, 0] * self.standardization.scale)

    def _measure(self, batch: Any, rotations: int) -> Measured:
        targets, forces = target_of(batch, "y"), target_of(batch, "forces")
        answer, scale = self._answer(graph_inputs(batch), rotations), self.standardization.scale
        graphs, points = len(answer.scalars), len(forces)
        check_shape("y", targets.reshape(-1, 1), tuple(answer.scalars.shape))
        check_shape("forces", forces, tuple(answer.vectors[:, 0].shape))
        of_energies = answer.scalars - self.standardization.normalized(targets.reshape(-1, 1))
        of_forces = answer.vectors[:, 0] - forces / scale
        loss = of_energies.square().mean() / self.lambda_force + of_forces.square().mean()
        values = {
            "loss": (loss, graphs),
            "energy_mae": ((of_energies * scale).detach().abs().mean(), graphs),
            "force_mae": ((of_forces * scale).detach().abs().mean(), points),
        }
        target = EnergyForces(targets.reshape(-1), forces)
        preds = self._predictions(batch, PonitaOutput(answer.scalars.detach(), answer.vectors.detach()))
        return Measured(values, preds, target)

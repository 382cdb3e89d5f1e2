"""A LightningModule that generates points and what they are, by denoising."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.edm import (
    edm_loss_weight,
    edm_scales,
    heun_sampler,
    noise_levels,
    sampling_levels,
)
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules.ponita import GraphInputs, graph_inputs
from lightning_weights.modules.ponita.graph_inputs import graph_of_points, num_graphs
from lightning_weights.modules.ponita_tasks.task import OBJECTS, Measured, PonitaTask, check_network


class DiffusionSamples(NamedTuple):
    """Generated graphs.

    Attributes:
        pos: Positions around each graph's centre, (N, n).
        types: Number of its type for each point, (N,).
        charges: Further numbers of the points, (N, num_charges).
        batch: Number of its graph for each point, (N,).

    Examples:
        >>> batch = torch.tensor([0, 0, 1])
        >>> samples = DiffusionSamples(torch.zeros(3, 3), torch.tensor([0, 1, 1]), torch.zeros(3, 0), batch)
        >>> samples.types[samples.batch == 0]
        tensor([0, 1])
    """

    pos: Tensor
    types: Tensor
    charges: Tensor
    batch: Tensor


class Denoised(NamedTuple):
    """Points without their noise.

    Attributes:
        pos: Positions around each graph's centre, (N, n).
        x: Types and charges as the model scales them, (N, c).

    Examples:
        >>> pos, x = Denoised(torch.zeros(3, 3), torch.zeros(3, 4))
    """

    pos: Tensor
    x: Tensor


class PonitaDiffusion(PonitaTask):
    r"""Train a network to take noise off positions and types of points, and generate new ones with it.

    $$D(z, \sigma) = c_\text{skip} z + c_\text{out} F(c_\text{in} z, \tfrac{\ln \sigma}{4}), \quad
    F_x = c_\text{in} x - v, \quad L = \lambda(\sigma) \| D(z, \sigma) - z_0 \|^2, \quad
    \ln \sigma \sim \mathcal{N}(-1.2, 1.2^2)$$

    Positions and their noise are centred in every graph. Types are one-hot vectors, divided by ``type_scale``, to which
    the same noise is added. Graphs are complete, or what is within the network's radius; edges of the data are not
    looked at, since samples have none.

    Batches have ``x``, types and then charges, ``pos``, and maybe ``batch``. Logs ``train/loss`` and, per stage ``val``
    and ``test``, ``loss`` and its two parts ``position_loss`` and ``type_loss``, whose noise is the same at every
    evaluation. Prediction generates graphs as large as those of the batch.

    Args:
        network: `Ponita` with as many scalars out as in, ``out_vectors=1``, ``conditioning_dim=1`` and without pooling;
            or any module that is called as ``network(scalars, pos, None, batch, None, condition)`` and returns
            ``scalars`` (N, c) and ``vectors`` (N, 1, n), with attributes ``in_scalars`` (c) and ``dim`` (n).
        num_charges: How many of the last columns of ``x`` are plain numbers rather than types.
        type_scale: What types are divided by.
        charge_scale: What charges are divided by.
        sigma_data: Standard deviation of the data that the preconditioning assumes.
        noise_mean: Mean of ln σ in training.
        noise_std: Standard deviation of ln σ in training.
        sigma_min: Last noise level of the sampler above 0.
        sigma_max: First noise level of the sampler: the wider the data, the larger.
        steps: Steps of the sampler.
        churn: S_churn ≥ 0, how much fresh noise the sampler adds.
        optimizer: Makes the optimizer from the groups of `linear_decay_groups`; an optimizer given to LightningCLI
            itself takes precedence. ``None``: AdamW with learning rate 5e-4 and weight decay 1e-12.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If a number is out of range or the network predicts something else; in steps, if the batch has no
            types or positions.

    Source: Bekkers et al. 2024, arXiv:2310.02970, with the settings of the authors' later code, and Karras et al. 2022,
    arXiv:2206.00364.

    Examples:
        >>> from lightning_weights.modules import Ponita
        >>> network = Ponita(2, 0, 2, 1, hidden_dim=8, num_layers=1, num_orientations=4, conditioning_dim=1)
        >>> samples = PonitaDiffusion(network).sample([3, 4], steps=2)
        >>> samples.pos.shape, samples.types.shape
        (torch.Size([7, 3]), torch.Size([7]))
    """

    default_optimizer: ClassVar[Any] = partial(torch.optim.AdamW, lr=5e-4, weight_decay=1e-12)

    def __init__(
        self,
        network: nn.Module,
        num_charges: int = 0,
        type_scale: float = 4.0,
        charge_scale: float = 8.0,
        sigma_data: float = 1.0,
        noise_mean: float = -1.2,
        noise_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 1.0,
        steps: int = 40,
        churn: float = 10.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("num_charges", num_charges, low=0, whole=True)
        for name, value in {"type_scale": type_scale, "charge_scale": charge_scale, "sigma_data": sigma_data}.items():
            check_number(name, value, low=0.0, low_allowed=False)
        noise_levels(0, noise_mean, noise_std)
        sampling_levels(steps, sigma_min, sigma_max)
        check_number("churn", churn, low=0.0)
        check_network(network, out_vectors=(1,), in_vectors=(0,), pooling=("none",), conditioning_dim=(1,))
        channels, self.dim = (_size_of(network, name) for name in ("in_scalars", "dim"))
        check_network(network, out_scalars=(channels,))
        check_number("in_scalars of the network", channels, low=num_charges, low_allowed=False)
        super().__init__(network, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=OBJECTS)
        self.num_types, self.num_charges, self.charge_scale = channels - num_charges, num_charges, charge_scale
        self.sigma_data, self.noise_mean, self.noise_std = sigma_data, noise_mean, noise_std
        self.sigma_min, self.sigma_max, self.steps, self.churn = sigma_min, sigma_max, steps, churn
        divisors = [float(type_scale)] * self.num_types + [float(charge_scale)] * num_charges
        self.register_buffer("divisors", torch.tensor(divisors), persistent=False)

    def forward(self, pos: Tensor, x: Tensor, sigma: Tensor, batch: Tensor | None = None) -> Denoised:
        """Take noise off graphs.

        Args:
            pos: Noisy positions around the centres of the graphs, (N, n).
            x: Noisy types and charges, divided by their scales, (N, c).
            sigma: Standard deviations of the noise, (G,).
            batch: Number of its graph for each point, ascending; ``None`` for one graph.

        Returns:
            Positions, types and charges without noise, as far as the network can tell.
        """
        graphs = graph_of_points(GraphInputs(x, pos, batch=batch))
        scales = edm_scales(sigma, self.sigma_data)
        skip, out, factor, _ = (scale[graphs][:, None] for scale in scales)
        inner = factor * pos
        answer = self.network(factor * x, inner, None, batch, None, scales.noise[:, None])
        moved = _centred(inner - answer.vectors[:, 0], graphs, len(sigma))
        return Denoised(skip * pos + out * moved, skip * x + out * answer.scalars)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._trained(self._measure(batch, None))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Log the values of ``val`` and return loss, denoised and clean points."""
        return self._evaluated("val", self._measure(batch, torch.Generator().manual_seed(batch_idx)))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Log the values of ``test`` and return loss, denoised and clean points."""
        return self._evaluated("test", self._measure(batch, torch.Generator().manual_seed(batch_idx)))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> DiffusionSamples:
        """Generate graphs as large as those of a batch."""
        return self.sample(torch.bincount(graph_of_points(graph_inputs(batch))).tolist())

    @torch.no_grad()
    def sample(
        self, num_nodes: Sequence[int], generator: torch.Generator | None = None, steps: int | None = None
    ) -> DiffusionSamples:
        """Generate graphs.

        Args:
            num_nodes: Number of points of each graph.
            generator: Where random numbers come from, on the CPU; ``None`` for PyTorch's global generator.
            steps: Steps of the sampler; ``None`` for those of the constructor.

        Returns:
            As many graphs.

        Raises:
            ValueError: If a number is out of range.
        """
        if not isinstance(num_nodes, Sequence):
            raise ValueError(f"num_nodes is {num_nodes!r}; allowed is a list with the number of points of each graph")
        for index, size in enumerate(num_nodes):
            check_number(f"num_nodes[{index}]", size, low=1, whole=True)
        levels = sampling_levels(self.steps if steps is None else steps, self.sigma_min, self.sigma_max)
        like, count = next(self.network.parameters()), len(num_nodes)
        sizes = torch.tensor(list(num_nodes), dtype=torch.int64, device=like.device)
        batch = torch.repeat_interleave(torch.arange(count, device=like.device), sizes)

        def denoise(state: Tensor, sigma: float) -> Tensor:
            pos, x = state.split([self.dim, len(self.divisors)], dim=1)
            return torch.cat(self(pos, x, state.new_full((count,), sigma), batch), dim=1)

        with evaluation_mode(self), _drawing_from(generator):
            draw = partial(self._noise, batch, count, like, generator)
            state = heun_sampler(denoise, draw, levels, self.churn)
        types, charges = state[:, self.dim :].split([self.num_types, self.num_charges], dim=1)
        return DiffusionSamples(state[:, : self.dim], types.argmax(1), charges * self.charge_scale, batch)

    def _noise(self, graphs: Tensor, count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw noise for positions, centred, and for types and charges."""
        shape = (len(graphs), self.dim + len(self.divisors))
        noise = torch.randn(shape, generator=generator, device="cpu").to(like)
        return torch.cat([_centred(noise[:, : self.dim], graphs, count), noise[:, self.dim :]], dim=1)

    def _measure(self, batch: Any, generator: torch.Generator | None) -> Measured:
        inputs = graph_inputs(batch)
        graphs, count = graph_of_points(inputs), num_graphs(inputs)
        pos, x = _centred(inputs.pos, graphs, count), inputs.scalars / self.divisors
        sigma = noise_levels(count, self.noise_mean, self.noise_std, generator=generator).to(pos)
        shares = (sigma[graphs][:, None] * self._noise(graphs, count, pos, generator)).tensor_split([self.dim], dim=1)
        with _drawing_from(generator):
            denoised = self(pos + shares[0], x + shares[1], sigma, inputs.batch)
        weight = edm_loss_weight(sigma, self.sigma_data)[graphs][:, None]
        of_positions = (weight * (denoised.pos - pos).square()).mean()
        of_types = (weight * (denoised.x - x).square()).mean()
        values = {"loss": of_positions + of_types, "position_loss": of_positions, "type_loss": of_types}
        preds = Denoised(denoised.pos.detach(), denoised.x.detach())
        return Measured({name: (value, count) for name, value in values.items()}, preds, Denoised(pos, x))


@contextmanager
def _drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let a network that turns its grid by the global generator follow another one, if there is one."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device="cpu")))
        yield


def _centred(values: Tensor, graphs: Tensor, count: int) -> Tensor:
    """Subtract from vectors of points the means over their graphs."""
    sums = values.new_zeros(count, values.shape[1]).index_add(0, graphs, values)
    sizes = torch.bincount(graphs, minlength=count).clamp(min=1)
    return values - (sums / sizes[:, None])[graphs]


def _size_of(network: nn.Module, name: str) -> int:
    size = getattr(network, name, None)
    if not isinstance(size, int):
        raise ValueError(f"the network has no number {name}, which tells how much noise samples begin with; give one")
    return size

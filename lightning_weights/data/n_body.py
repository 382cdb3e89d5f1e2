"""Charged particles that attract and repel each other, simulated rather than downloaded."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from lightning_weights.data._graphs import GraphData, Graphs
from lightning_weights.errors import check_number
from lightning_weights.functional.n_body import simulate_charges
from lightning_weights.functional.whole_files import replacing_file

SPEED = 0.5  # of every particle at the start


class NBody(GraphData):
    """Serve systems of charged particles; where each particle will be is to be predicted.

    Charges are +1 or -1 at random, positions start from N(0, 1) and velocities at random directions with speed 0.5.
    The particles move by Coulomb's law, whose force is cut to 100 per component, in steps of the leapfrog method. Input
    is the state after ``input_steps`` steps, target the positions ``horizon`` steps later. The systems of the three
    parts come from different seeds, also of different ``seed``, so that none is in two of them.

    Batches are dictionaries with ``x`` (charges, of shape (N, 1)), ``pos`` (N, 3), ``vec`` (velocities, of shape
    (N, 1, 3)), ``y`` (positions later, of shape (N, 3)) and ``batch`` (number of its system for each particle). Numbers
    are float32; the simulation is float64. 2500 systems take a few seconds.

    Args:
        batch_size: Systems per batch.
        train_size: Systems for training.
        val_size: Systems for validation.
        test_size: Systems for the test.
        bodies: Particles of each system.
        input_steps: Steps before the input.
        horizon: Steps between input and target.
        dt: Length of a step.
        max_force: Size to which the components of the forces are cut. ``None``: they are not, and particles that come
            close are flung away.
        folder: Folder in which the simulated systems are kept for the next time. ``None``: they are kept nowhere.
        seed: Seed of the systems and of the order of those for training.
        shuffle: Whether training systems come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Source: the charged particles of Kipf et al. 2018, arXiv:1802.04687, with the numbers of Satorras et al. 2021,
    arXiv:2102.09844, and Bekkers et al. 2024, arXiv:2310.02970. Here velocities belong to the same time as positions,
    where those data sets have them half a step earlier.

    Examples:
        >>> data = NBody(batch_size=4, train_size=8, val_size=4, test_size=4, input_steps=10, horizon=10)
        >>> batch = next(iter(data.train_dataloader()))
        >>> {name: tuple(values.shape) for name, values in batch.items()}
        {'x': (20, 1), 'pos': (20, 3), 'vec': (20, 1, 3), 'y': (20, 3), 'batch': (20,)}
    """

    def __init__(
        self,
        batch_size: int = 100,
        train_size: int = 1000,
        val_size: int = 500,
        test_size: int = 1000,
        bodies: int = 5,
        input_steps: int = 3100,
        horizon: int = 1000,
        dt: float = 0.001,
        max_force: float | None = 100.0,
        folder: str | None = None,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        for name, value, low in (
            ("train_size", train_size, 1),
            ("val_size", val_size, 1),
            ("test_size", test_size, 1),
            ("bodies", bodies, 2),
            ("input_steps", input_steps, 0),
            ("horizon", horizon, 1),
        ):
            check_number(name, value, low=low, whole=True)
        check_number("dt", dt, low=0.0, low_allowed=False)
        if max_force is not None:
            check_number("max_force", max_force, low=0.0, low_allowed=False)
        super().__init__(batch_size, seed, shuffle, num_workers, drop_last)
        self.sizes = (train_size, val_size, test_size)
        self.bodies = bodies
        self.input_steps = input_steps
        self.horizon = horizon
        self.dt = dt
        self.max_force = max_force
        self.folder = folder
        self.save_hyperparameters()

    def prepare_data(self) -> None:
        """Simulate the systems and keep them, if there is a folder for them and they aren't in it."""
        if self.folder is not None and not self._file().is_file():
            with replacing_file(self._file()) as path:
                torch.save(self._simulate(), path)

    def load(self) -> tuple[Graphs, Graphs, Graphs]:
        """Return the systems for training, validation and test, out of the folder if there is one.

        Raises:
            ValueError: If the folder's file can't be read.
        """
        if self.folder is None:
            return tuple(map(self._graphs, self._simulate()))
        self.prepare_data()
        try:
            return tuple(map(self._graphs, torch.load(self._file(), weights_only=True)))
        except Exception as error:
            raise ValueError(f"{self._file()} can't be read: delete it, and it will be made again") from error

    def _file(self) -> Path:
        names = ("bodies", "input_steps", "horizon", "dt", "max_force", "seed", "sizes")
        settings = json.dumps({name: getattr(self, name) for name in names})
        return Path(self.folder).expanduser() / f"n_body_{hashlib.sha256(settings.encode()).hexdigest()[:16]}.pt"

    def _simulate(self) -> list[dict[str, Tensor]]:
        """Return what the systems of each part are like, tensors with one row per system."""
        # all parts in one run: the time goes into the number of steps
        starts = [self._start(size, 3 * self.seed + place) for place, size in enumerate(self.sizes)]
        pos, vel, charges = map(torch.cat, zip(*starts, strict=True))
        settings = {"dt": self.dt, "max_force": self.max_force}
        pos, vel = simulate_charges(pos, vel, charges, steps=self.input_steps, **settings)
        later, _ = simulate_charges(pos, vel, charges, steps=self.horizon, **settings)
        values = {"x": charges[..., None], "pos": pos, "vec": vel[:, :, None], "y": later}
        parts = {name: value.float().split(list(self.sizes)) for name, value in values.items()}
        # cloned: a view would be saved with all it is a part of
        return [{name: split[place].clone() for name, split in parts.items()} for place in range(len(self.sizes))]

    def _start(self, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw positions, velocities and charges."""
        generator = torch.Generator().manual_seed(seed)
        pos, vel = (torch.randn(size, self.bodies, 3, generator=generator, dtype=torch.float64) for _ in range(2))
        charges = torch.randint(0, 2, (size, self.bodies), generator=generator).double() * 2 - 1
        return pos, SPEED * vel / vel.norm(dim=-1, keepdim=True), charges

    def _graphs(self, systems: dict[str, Tensor]) -> Graphs:
        sizes = torch.full((len(systems["x"]),), self.bodies)
        return Graphs(sizes, {name: values.flatten(0, 1) for name, values in systems.items()})

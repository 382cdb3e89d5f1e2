"""rMD17, trajectories of ten molecules with energies and forces of density functional theory, out of its files."""

import csv
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_weights.data._atom_types import one_hot_types
from lightning_weights.data._files import find
from lightning_weights.data._graphs import GraphData, Graphs
from lightning_weights.data._npz import read_arrays
from lightning_weights.errors import check_choice, check_number

SOURCE = "https://doi.org/10.6084/m9.figshare.12672038"
MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)
UNITS = {"kcal/mol": 1.0, "meV": 4184 / 96.485332123310}  # of the first, which the files have, in the others
ARRAYS = {"nuclear_charges": np.int64, "coords": np.float32, "energies": np.float64, "forces": np.float64}
# PONITA's authors train on every 100th geometry, and take every 20th of these for validation
FRAMES, SPACING, HELD = 100_000, 100, 20
TRAINING = 950  # of the 1000 geometries of a file for training; the others are for validation


class RMD17(GraphData):
    """Serve one molecule of rMD17 (Christensen and von Lilienfeld, 2020) from a folder; nothing is downloaded.

    The folder is the unpacked archive ``rmd17``, with ``npz_data/rmd17_<molecule>.npz`` and
    ``splits/index_train_0<split>.csv``, or holds these files itself.

    Batches are dictionaries with ``x`` (one column for each of H, C, N and O, of shape (N, 4)), ``pos`` (in Å, of shape
    (N, 3)), ``y`` (energy, of shape (G,)), ``forces`` (energy per Å, of shape (N, 3)) and ``batch`` (number of its
    geometry for each atom); energies are float64, as their differences are small against them, others float32.

    Args:
        folder: Folder with the files.
        molecule: One of ``aspirin``, ``azobenzene``, ``benzene``, ``ethanol``, ``malonaldehyde``, ``naphthalene``,
            ``paracetamol``, ``salicylic``, ``toluene`` and ``uracil``.
        split: Which geometries are for what. 1 to 5: 950 of the published file ``index_train_0<split>.csv`` for
            training, and the last 50 of it for validation. 0: as PONITA's authors have it, every 100th of the first
            100000, of which every 20th is for validation.
        test: The test has all other geometries, ``rest``, or those of the published file ``index_test_0<split>.csv``,
            ``file``.
        unit: Unit of energies, ``kcal/mol`` as in the files, or ``meV`` as in the paper's tables.
        batch_size: Geometries per batch.
        seed: Seed of the order of the training geometries.
        shuffle: Whether training geometries come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Source: arXiv:2007.09593.

    Examples:
        >>> data = RMD17("~/data/rmd17", "aspirin", unit="meV")
        >>> data.atom_types
        [1, 6, 7, 8]
    """

    def __init__(
        self,
        folder: str,
        molecule: str = "aspirin",
        split: int = 1,
        test: Literal["rest", "file"] = "rest",
        unit: Literal["kcal/mol", "meV"] = "kcal/mol",
        batch_size: int = 5,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_choice("molecule", molecule, MOLECULES)
        check_number("split", split, low=0, high=6, whole=True)
        check_choice("test", test, ("rest", "file"))
        check_choice("unit", unit, tuple(UNITS))
        if split == 0 and test == "file":
            raise ValueError(
                "test is 'file', but split=0 has no published file; allowed is 'rest', or a split from 1 to 5"
            )
        super().__init__(batch_size, seed, shuffle, num_workers, drop_last)
        self.folder = folder
        self.molecule = molecule
        self.split = split
        self.test = test
        self.unit = unit
        self.atom_types = [1, 6, 7, 8]
        self.save_hyperparameters()

    def load(self) -> tuple[Graphs, Graphs, Graphs]:
        """Return the geometries for training, validation and test.

        Raises:
            FileNotFoundError: If the folder lacks a file.
            ValueError: If a file is not what its name says.
        """
        path = self._find("npz_data", f"rmd17_{self.molecule}.npz")
        arrays = read_arrays(path, ARRAYS, SOURCE)
        numbers, pos = arrays["nuclear_charges"], arrays["coords"]
        frames, atoms = len(arrays["energies"]), len(numbers)
        if pos.shape != (frames, atoms, 3) or arrays["forces"].shape != pos.shape:
            raise ValueError(
                f"{path} has coordinates of shape {tuple(pos.shape)} and forces of shape "
                f"{tuple(arrays['forces'].shape)} for {frames} energies and {atoms} atoms: get it again from {SOURCE}"
            )
        types = one_hot_types(numbers, self.atom_types, str(path))
        return tuple(self._graphs(arrays, types, part) for part in self._parts(frames))

    def _graphs(self, arrays: dict[str, Tensor], types: Tensor, chosen: Tensor) -> Graphs:
        factor = UNITS[self.unit]
        nodes = {
            "x": types.repeat(len(chosen), 1),
            "pos": arrays["coords"][chosen].flatten(0, 1),
            "forces": (arrays["forces"][chosen] * factor).float().flatten(0, 1),
        }
        return Graphs(torch.full((len(chosen),), len(types)), nodes, {"y": arrays["energies"][chosen] * factor})

    def _parts(self, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers of the geometries for training, validation and test."""
        everything = torch.arange(frames)
        if self.split == 0:
            everything = everything[:FRAMES]
            spaced = everything[::SPACING]
            held = torch.arange(len(spaced)) % HELD == 0
            return spaced[~held], spaced[held], everything[everything % SPACING != 0]
        listed = self._read_split("train", frames)
        if self.test == "file":
            test = self._read_split("test", frames)
            common = torch.isin(listed, test).sum().item()
            if common:
                raise ValueError(
                    f"{common} geometries are both in index_train_0{self.split}.csv and in "
                    f"index_test_0{self.split}.csv of folder={self.folder!r}: get the files again from {SOURCE}"
                )
        else:
            test = everything[~torch.isin(everything, listed)]
        return listed[:TRAINING], listed[TRAINING:], test

    def _read_split(self, part: str, frames: int) -> Tensor:
        """Read a published list of geometries, one number per line."""
        path = self._find("splits", f"index_{part}_0{self.split}.csv")
        try:
            with path.open(newline="") as file:
                numbers = torch.tensor([int(float(row[0])) for row in csv.reader(file) if row])
        except (ValueError, csv.Error, IndexError) as error:
            raise ValueError(f"{path} is no list of numbers: get it again from {SOURCE}") from error
        enough = len(numbers) > (TRAINING if part == "train" else 0)
        different = len(numbers.unique()) == len(numbers)
        if not enough or not different or numbers.min() < 0 or numbers.max() >= frames:
            raise ValueError(
                f"{path} lists {len(numbers)} geometries; allowed are different numbers from 0 to {frames - 1}, more "
                f"than {TRAINING} for training: get it again from {SOURCE}"
            )
        return numbers

    def _find(self, subfolder: str, name: str) -> Path:
        inside = Path(self.folder).expanduser() / subfolder
        names = [f"{subfolder}/{name}" if inside.is_dir() else name]
        return find(self.folder, names, type(self).__name__, SOURCE)[0]

"""QM9, small organic molecules with properties of density functional theory, out of its file."""

import numpy as np
import torch

from lightning_weights.data._atom_types import one_hot_types
from lightning_weights.data._files import find
from lightning_weights.data._graphs import GraphData, Graphs
from lightning_weights.data._npz import read_arrays
from lightning_weights.errors import check_choice, check_number

FILE = "qm9_eV.npz"
SOURCE = "https://github.com/gasteigerjo/dimenet/tree/master/data"
TARGETS = ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
STRUCTURE = {"N": np.int64, "Z": np.int64, "R": np.float32}


class QM9(GraphData):
    """Serve one property of the molecules of QM9 (Ramakrishnan et al. 2014) from a folder; nothing is downloaded.

    The folder holds ``qm9_eV.npz`` in the layout of DimeNet's authors: numbers of atoms ``N``, atomic numbers ``Z``,
    positions ``R``, and one array for each property. The molecules are dealt out by their seeded permutation: 110000
    for training, 10000 for validation, the rest for the test. They warn that the file in their repository leaves out
    wrong molecules, by one line of the list of those to leave out.

    Batches are dictionaries with ``x`` (one column for each of H, C, N, O and F, of shape (N, 5)), ``pos`` (in Å, of
    shape (N, 3)), ``y`` (the property, of shape (G,)) and ``batch`` (number of its molecule for each atom); all
    float32.

    Args:
        folder: Folder with the file.
        target: The property: ``mu`` (D), ``alpha`` (a0³), ``homo``, ``lumo``, ``gap`` (eV), ``r2`` (a0²), ``zpve``,
            ``U0``, ``U``, ``H``, ``G`` (eV) or ``Cv`` (cal/mol/K).
        train_size: Molecules for training.
        val_size: Molecules for validation.
        split_seed: Seed of the permutation, by numpy.
        batch_size: Molecules per batch.
        seed: Seed of the order of the training molecules.
        shuffle: Whether training molecules come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Source: the split of Gasteiger et al. 2020, arXiv:2003.03123.

    Examples:
        >>> data = QM9("~/data/qm9", target="alpha")
        >>> data.atom_types
        [1, 6, 7, 8, 9]
    """

    def __init__(
        self,
        folder: str,
        target: str = "mu",
        train_size: int = 110_000,
        val_size: int = 10_000,
        split_seed: int = 42,
        batch_size: int = 96,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_choice("target", target, TARGETS)
        check_number("train_size", train_size, low=1, whole=True)
        check_number("val_size", val_size, low=1, whole=True)
        check_number("split_seed", split_seed, low=0, high=2**32, whole=True)
        super().__init__(batch_size, seed, shuffle, num_workers, drop_last)
        self.folder = folder
        self.target = target
        self.train_size = train_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.atom_types = [1, 6, 7, 8, 9]
        self.save_hyperparameters()

    def load(self) -> tuple[Graphs, Graphs, Graphs]:
        """Return the molecules for training, validation and test.

        Raises:
            FileNotFoundError: If the folder lacks the file.
            ValueError: If the file is not what its name says, or ``train_size`` and ``val_size`` leave no molecule for
                the test.
        """
        path = find(self.folder, [FILE], type(self).__name__, SOURCE)[0]
        arrays = read_arrays(path, {**STRUCTURE, self.target: np.float32}, SOURCE)
        sizes, numbers, pos, values = (arrays[name] for name in (*STRUCTURE, self.target))
        atoms = int(sizes.sum())
        if len(numbers) != atoms or pos.shape != (atoms, 3) or values.shape != sizes.shape:
            raise ValueError(
                f"{path} has {len(numbers)} atomic numbers, positions of shape {tuple(pos.shape)} and {len(values)} "
                f"values of {self.target} for {len(sizes)} molecules of {atoms} atoms in all: get it again from "
                f"{SOURCE}"
            )
        known = self.train_size + self.val_size
        if known >= len(sizes):
            raise ValueError(
                f"train_size is {self.train_size} and val_size {self.val_size}; allowed are together fewer than the "
                f"{len(sizes)} molecules of {path}"
            )
        types = one_hot_types(numbers, self.atom_types, str(path))
        graphs = Graphs(sizes, {"x": types, "pos": pos}, {"y": values})
        shuffled = torch.from_numpy(np.random.RandomState(self.split_seed).permutation(len(sizes)))
        return (
            graphs.take(shuffled[: self.train_size]),
            graphs.take(shuffled[self.train_size : known]),
            graphs.take(shuffled[known:]),
        )

"""Small molecules with energies and forces of a force field, computed rather than downloaded."""

from collections.abc import Sequence

import torch

from lightning_weights.data._atom_types import check_atom_types, one_hot_types
from lightning_weights.data._graphs import GraphData, Graphs
from lightning_weights.data._mmff import Conformers, conformers
from lightning_weights.errors import check_number, name_list

SMILES = ("CCO", "CC(C)=O", "CC(=O)O", "CCN", "OCCO", "CNC=O", "CCOC", "c1ccccc1")
ATOM_TYPES = (1, 6, 7, 8)


class MoleculeEnergies(GraphData):
    """Serve conformers of small molecules with energies and forces of the force field MMFF94, made by rdkit.

    Conformers are embedded by ETKDG, relaxed, displaced by noise, so that there are forces, and turned at random. Every
    molecule gives as many conformers to each part; with ``test_smiles`` the test is on molecules of its own.

    Batches are dictionaries with ``x`` (one column per atom type, of shape (N, types)), ``pos`` (in Å, of shape
    (N, 3)), ``y`` (energy in kcal/mol, of shape (G,)), ``forces`` (in kcal/mol/Å, of shape (N, 3)) and ``batch``
    (number of its molecule for each atom); all float32. The default data is made in a few seconds.

    Args:
        batch_size: Conformers per batch.
        smiles: The molecules. ``None``: ethanol, acetone, acetic acid, ethylamine, ethylene glycol,
            N-methylformamide, methoxyethane and benzene.
        test_smiles: Molecules for the test, none of which is among the others. ``None``: the test has other conformers
            of the same molecules.
        train_conformers: Conformers of each molecule for training.
        val_conformers: Conformers of each molecule for validation.
        test_conformers: Conformers of each molecule for the test.
        noise: Standard deviation of the displacement of every coordinate in Å.
        atom_types: Atomic numbers in the order of the columns of ``x``.
        seed: Seed of the conformers and of the order of those for training.
        shuffle: Whether training conformers come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Source: ETKDG of Riniker and Landrum, 2015, with the third version's parameters; MMFF94 of Halgren, 1996.

    Examples:
        >>> data = MoleculeEnergies(smiles=["CO"], train_conformers=8, val_conformers=2, test_conformers=2)
        >>> data.batch_size, data.atom_types
        (16, [1, 6, 7, 8])
    """

    def __init__(
        self,
        batch_size: int = 16,
        smiles: Sequence[str] | None = None,
        test_smiles: Sequence[str] | None = None,
        train_conformers: int = 100,
        val_conformers: int = 20,
        test_conformers: int = 20,
        noise: float = 0.03,
        atom_types: Sequence[int] = ATOM_TYPES,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        smiles = name_list("smiles", SMILES if smiles is None else smiles, " or None")
        test_smiles = None if test_smiles is None else name_list("test_smiles", test_smiles, " or None")
        if not smiles or test_smiles == []:
            raise ValueError(
                f"smiles is {smiles!r} and test_smiles {test_smiles!r}; allowed are lists that aren't empty"
            )
        counts = (train_conformers, val_conformers, test_conformers)
        for name, count in zip(("train_conformers", "val_conformers", "test_conformers"), counts, strict=True):
            check_number(name, count, low=1, whole=True)
        check_number("noise", noise, low=0.0)
        super().__init__(batch_size, seed, shuffle, num_workers, drop_last)
        self.smiles = smiles
        self.test_smiles = test_smiles
        self.counts = counts
        self.noise = noise
        self.atom_types = check_atom_types(atom_types)
        self.save_hyperparameters()

    def load(self) -> tuple[Graphs, Graphs, Graphs]:
        """Make the conformers for training, validation and test.

        Raises:
            MissingDependencyError: If rdkit isn't installed.
            ValueError: If there is no force field for a molecule, an atom is none of ``atom_types``, or a molecule
                comes twice.
        """
        every = [*self.smiles, *(self.test_smiles or [])]
        train, val, test = self.counts
        known = train + val + (test if self.test_smiles is None else 0)
        counts = [known if place < len(self.smiles) else test for place in range(len(every))]
        seeds = torch.randint(2**31 - 1, (len(every),), generator=torch.Generator().manual_seed(self.seed)).tolist()
        made = [
            conformers(name, count, self.noise, seed, type(self).__name__)
            for name, count, seed in zip(every, counts, seeds, strict=True)
        ]
        names = [molecule.name for molecule in made]
        twice = sorted({written for written, name in zip(every, names, strict=True) if names.count(name) > 1})
        if twice:
            raise ValueError(f"smiles and test_smiles name a molecule more than once: {twice}; leave all but one out")
        own = made[: len(self.smiles)]
        tested = own if self.test_smiles is None else made[len(self.smiles) :]
        return (
            self._graphs(own, slice(train)),
            self._graphs(own, slice(train, train + val)),
            self._graphs(tested, slice(-test, None)),
        )

    def _graphs(self, molecules: list[Conformers], part: slice) -> Graphs:
        """Return these conformers of each molecule, molecule by molecule."""
        atoms, count = [len(molecule.numbers) for molecule in molecules], len(molecules[0].energies[part])
        numbers = torch.cat([molecule.numbers.repeat(count) for molecule in molecules])
        nodes = {
            "x": one_hot_types(numbers, self.atom_types, "a molecule of smiles or test_smiles"),
            "pos": torch.cat([molecule.pos[part].flatten(0, 1) for molecule in molecules]).float(),
            "forces": torch.cat([molecule.forces[part].flatten(0, 1) for molecule in molecules]).float(),
        }
        energies = torch.cat([molecule.energies[part] for molecule in molecules]).float()
        return Graphs(torch.tensor(atoms).repeat_interleave(count), nodes, {"y": energies})

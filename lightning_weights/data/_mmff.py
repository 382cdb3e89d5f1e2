"""Conformers of molecules with the energies and forces of a force field, by rdkit."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.ponita import random_rotations

MINIMIZER_STEPS = 2000  # an upper limit: tens are usual


class Conformers(NamedTuple):
    """Geometries of one molecule.

    Attributes:
        name: The molecule in rdkit's own way of writing, the same however it was written.
        numbers: Atomic numbers of shape (atoms,).
        pos: Positions in Å of shape (conformers, atoms, 3), float64.
        energies: MMFF94 energies in kcal/mol of shape (conformers,), float64.
        forces: Minus their gradients in kcal/mol/Å, of the shape of ``pos``.
    """

    name: str
    numbers: Tensor
    pos: Tensor
    energies: Tensor
    forces: Tensor


def conformers(smiles: str, count: int, noise: float, seed: int, purpose: str) -> Conformers:
    """Make geometries of a molecule: embedded by ETKDG, relaxed, displaced by noise, turned at random.

    Args:
        smiles: The molecule.
        count: Number of geometries.
        noise: Standard deviation of each coordinate's displacement in Å.
        seed: Seed of embedding, displacement and rotation.
        purpose: What needs them, for messages.

    Raises:
        MissingDependencyError: If rdkit isn't installed.
        ValueError: If the molecule can't be read or embedded, or the force field doesn't know its atoms.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
    except ImportError as error:
        raise MissingDependencyError("rdkit", "chem", purpose) from error
    with rdBase.BlockLogs():
        parsed = Chem.MolFromSmiles(smiles)
        if parsed is None or parsed.GetNumAtoms() == 0:
            raise ValueError(f"smiles has {smiles!r}; allowed is what rdkit can read as a molecule")
        molecule = Chem.AddHs(parsed)
        if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            raise ValueError(
                f"smiles has {smiles!r}, with atoms that the force field MMFF94 doesn't know: leave it out"
            )
        parameters = rdDistGeom.ETKDGv3()
        parameters.randomSeed = seed
        parameters.numThreads = 1  # the same conformers whatever the machine
        embedded = len(rdDistGeom.EmbedMultipleConfs(molecule, count, parameters))
        if embedded < count:
            raise ValueError(
                f"smiles has {smiles!r}, of which rdkit embeds {embedded} of {count} conformers: leave it out"
            )
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, numThreads=1, maxIters=MINIMIZER_STEPS)
    relaxed = torch.from_numpy(np.stack([conformer.GetPositions() for conformer in molecule.GetConformers()]))
    generator = torch.Generator().manual_seed(seed)
    displaced = relaxed + noise * torch.randn(relaxed.shape, generator=generator, dtype=relaxed.dtype)
    pos = (displaced - displaced.mean(1, keepdim=True)) @ random_rotations(count, 3, generator=generator).mT
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(
        molecule, rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule)
    )
    energies, gradients = [], []
    for geometry in pos:
        flat = geometry.flatten().tolist()
        # in this order: rdkit takes the gradient with the distances between atoms that it found for the last energy
        energies.append(field.CalcEnergy(flat))
        gradients.append(field.CalcGrad(flat))
    forces = -torch.tensor(gradients, dtype=torch.float64).reshape(pos.shape)
    numbers = torch.tensor([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    return Conformers(Chem.MolToSmiles(parsed), numbers, pos, torch.tensor(energies, dtype=torch.float64), forces)

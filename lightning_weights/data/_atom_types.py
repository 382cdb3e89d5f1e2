"""Types of atoms as columns of features."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.errors import check_number


def check_atom_types(atom_types: Sequence[int]) -> list[int]:
    """Return the atomic numbers as a plain list.

    Raises:
        ValueError: If they are no list of different atomic numbers.
    """
    if isinstance(atom_types, str) or not isinstance(atom_types, Sequence) or len(atom_types) == 0:
        raise ValueError(f"atom_types is {atom_types!r}; allowed is a list of atomic numbers such as [1, 6, 7, 8]")
    for place, number in enumerate(atom_types):
        check_number(f"atom_types[{place}]", number, low=1, high=119, whole=True)
    if len(set(atom_types)) < len(atom_types):
        raise ValueError(f"atom_types is {list(atom_types)!r}; allowed is every atomic number once")
    return list(atom_types)


def one_hot_types(numbers: Tensor, atom_types: Sequence[int], purpose: str) -> Tensor:
    """Return one column per atom type, float32.

    Args:
        numbers: Atomic numbers of shape (N,).
        atom_types: Atomic numbers in the order of the columns.
        purpose: What the atoms belong to, as the start of the message.

    Raises:
        ValueError: If an atom is of another type.
    """
    columns = numbers[:, None] == torch.tensor(atom_types)
    strange = numbers[~columns.any(1)].unique().tolist()
    if strange:
        raise ValueError(
            f"{purpose} has atoms with the atomic numbers {strange}; allowed are those of atom_types, "
            f"{list(atom_types)}"
        )
    return columns.float()

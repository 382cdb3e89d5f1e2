"""Tiny data sets in the file formats of rMD17 and QM9."""

from pathlib import Path

import numpy as np

NUMBERS = np.array([6, 8, 1, 1], dtype=np.uint8)  # formaldehyde


def write_rmd17(folder: Path, molecule: str = "ethanol", frames: int = 1300, split: int = 1) -> dict[str, np.ndarray]:
    """Write an archive of random geometries, and a training list of 1000 and a test list of 200 of them."""
    draw = np.random.default_rng(0)
    arrays = {
        "nuclear_charges": NUMBERS,
        "coords": draw.normal(size=(frames, len(NUMBERS), 3)),
        "energies": -70_000 + draw.normal(size=frames),
        "forces": draw.normal(size=(frames, len(NUMBERS), 3)),
        "old_indices": np.arange(frames),
    }
    for name in ("npz_data", "splits"):
        (folder / name).mkdir(exist_ok=True)
    np.savez_compressed(folder / "npz_data" / f"rmd17_{molecule}.npz", **arrays)
    if frames >= 1200:
        order = draw.permutation(frames)
        for part, numbers in (("train", order[:1000]), ("test", order[1000:1200])):
            lines = "".join(f"{number}\n" for number in numbers)
            (folder / "splits" / f"index_{part}_0{split}.csv").write_text(lines)
    return arrays


def write_qm9(folder: Path, molecules: int = 20) -> dict[str, np.ndarray]:
    """Write an archive of random molecules of one to four atoms."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 5, molecules)
    targets = ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
    arrays = {
        "id": np.arange(molecules),
        "N": sizes,
        "Z": draw.choice([1, 6, 7, 8, 9], sizes.sum()),
        "R": draw.normal(size=(sizes.sum(), 3)),
        **{target: draw.normal(size=molecules) for target in targets},
    }
    np.savez_compressed(folder / "qm9_eV.npz", **arrays)
    return arrays

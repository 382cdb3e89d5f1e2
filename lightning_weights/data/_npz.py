"""Arrays out of numpy's archives that a user has put into a folder."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_arrays(path: Path, kinds: Mapping[str, type[np.generic]], source: str) -> dict[str, Tensor]:
    """Return these arrays of an archive as tensors.

    Args:
        path: The archive, an ``.npz`` file.
        kinds: What each array's numbers become, by the array's name.
        source: Where the file comes from.

    Raises:
        ValueError: If the file is no archive, is damaged, or lacks one of the arrays.
    """
    try:
        # without pickled objects, which could be programs
        with np.lib.npyio.NpzFile(path, allow_pickle=False) as archive:
            lacking = sorted(kinds.keys() - set(archive.files))
            if not lacking:
                return {name: torch.from_numpy(archive[name].astype(kind)) for name, kind in kinds.items()}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is no archive of numpy's arrays, or not complete: get it again from {source}"
        ) from error
    raise ValueError(f"{path} has no arrays {lacking}; get the file of that name from {source}")

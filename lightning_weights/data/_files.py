"""Files of data sets that a user has put into a folder."""

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def find(folder: str, names: Iterable[str], purpose: str, source: str, suffixes: Sequence[str] = ("",)) -> list[Path]:
    """Return the files of these names, each with the first suffix under which it exists.

    Raises:
        FileNotFoundError: If one is missing; the message names all that are, and where they come from.
    """
    root = Path(folder).expanduser()
    found, missing = [], []
    for name in names:
        paths = [path for path in (root / f"{name}{suffix}" for suffix in suffixes) if path.is_file()]
        found += paths[:1]
        missing += [] if paths else [name]
    if missing:
        raise FileNotFoundError(
            f"{purpose} finds no {', '.join(missing)} in folder={folder!r}. Nothing is downloaded: get the files from"
            f" {source}, unpack them, and give the folder that holds them (in yaml or as --data.folder)"
        )
    return found


def read_bytes(path: Path) -> Tensor:
    """Return a file's bytes, decompressed if its name ends in ``.gz``, as a uint8 tensor."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        # a bytearray, as tensors over memory that can't be written to are warned about
        return torch.from_numpy(np.frombuffer(bytearray(file.read()), dtype=np.uint8))

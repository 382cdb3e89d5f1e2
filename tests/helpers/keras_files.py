"""HDF5 files as Keras writes them."""

from pathlib import Path

import h5py
import numpy as np


def write_dense_layers(
    path: Path, layers: list[tuple[np.ndarray, np.ndarray]], first: int = 0, group: str = ""
) -> Path:
    """Write kernels (in, out) and biases of dense layers, as `save_weights` does for layers created one by one.

    Args:
        path: The file.
        layers: Kernel and bias of each, in the order of their creation.
        first: Number in the name of the first layer; 0 is left out, as Keras does.
        group: Where in the file the layers are.
    """
    with h5py.File(path, "w") as file:
        top = file.create_group(group) if group else file
        for number, parts in enumerate(layers, start=first):
            name = f"dense_{number}" if number else "dense"
            inner = top.create_group(f"{name}/{name}")
            for part, values in zip(("kernel", "bias"), parts, strict=True):
                inner.create_dataset(f"{part}:0", data=values)
        top.create_group("input_1")
        top.create_group("leaky_re_lu_1")
    return path

"""Tiny data sets in the file formats of the real ones."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_arrays(shape: tuple[int, ...], train: int, test: int, classes: int) -> Arrays:
    """Return training images and labels, test images and labels of unsigned bytes."""
    draw = np.random.default_rng(0).integers
    parts = [(draw(0, 256, (n, *shape), np.uint8), np.arange(n, dtype=np.uint8) % classes) for n in (train, test)]
    return *parts[0], *parts[1]


def write_mnist(folder: Path, train: int = 12, test: int = 6, compress: bool = False) -> Arrays:
    arrays = random_arrays((28, 28), train, test, 10)
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for kind, array in zip(kinds, arrays, strict=True):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
        content = header + array.tobytes()
        if compress:
            (folder / f"{kind}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{kind}-ubyte").write_bytes(content)
    return arrays


def write_cifar10(folder: Path, train: int = 10, test: int = 6) -> Arrays:
    arrays = random_arrays((3, 32, 32), train, test, 10)
    train_x, train_y, test_x, test_y = arrays
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    files = dict(zip(names, zip(np.split(train_x, 5), np.split(train_y, 5), strict=True), strict=True))
    for name, (images, labels) in {**files, "test_batch.bin": (test_x, test_y)}.items():
        records = np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
    return arrays


def write_tiny_image_net(folder: Path, per_class: int = 3, test: int = 4) -> list[str]:
    """Write smooth images, a grey one among them, and return the names of the classes in the order of the file."""
    names = ["n03", "n01", "n02"]
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    draw = np.random.default_rng(0).integers
    for label, name in enumerate(names):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for index in range(per_class):
            ramp = np.add.outer(np.arange(64), np.arange(64) * label)[:, :, None] + draw(0, 60, 3)
            image = Image.fromarray(ramp.clip(0, 255).astype(np.uint8))
            image = image.convert("L") if index == 0 else image
            image.save(images / f"{name}_{index}.JPEG", "JPEG")
    (folder / "val" / "images").mkdir(parents=True)
    rows = []
    for index in range(test):
        source = folder / "train" / names[index % 3] / "images" / f"{names[index % 3]}_1.JPEG"
        (folder / "val" / "images" / f"val_{index}.JPEG").write_bytes(source.read_bytes())
        rows.append(f"val_{index}.JPEG\t{names[index % 3]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    return names

"""TinyImageNet out of its original folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_weights.data._files import find
from lightning_weights.data.augmentation import FlipAndCrop
from lightning_weights.data.classification import ClassificationData
from lightning_weights.errors import MissingDependencyError

SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SIZE = 64


class TinyImageNet(ClassificationData):
    """Serve TinyImageNet's 200 classes of colour photographs from a folder; nothing is downloaded.

    The folder is the unpacked ``tiny-imagenet-200`` with ``wnids.txt``, ``train/<class>/images/*.JPEG``,
    ``val/val_annotations.txt`` and ``val/images/*.JPEG``. The original validation images are the test images here, as
    the original test images have no public labels. Classes are numbered in the alphabetical order of their WordNet
    names. Batches are (images of shape (N, 3, 64, 64), float32 in [0, 1]; labels of shape (N,), int64). Training images
    are mirrored and shifted at random. All images are decoded once into 1.4 GB of memory, which takes a few minutes.

    Args:
        folder: The folder ``tiny-imagenet-200``.
        batch_size: Images per batch.
        crop_padding: Largest random shift of a training image in pixels, see `FlipAndCrop`. ``None``: training images
            are neither shifted nor mirrored.
        validation_size: Training images set aside for validation. 0: validation serves the test images.
        seed: Seed of the order of the training images and of their changes.
        shuffle: Whether training images come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> data = TinyImageNet("~/data/tiny-imagenet-200", batch_size=64)
        >>> data.num_classes
        200
    """

    num_classes = 200

    def __init__(
        self,
        folder: str,
        batch_size: int = 128,
        crop_padding: int | None = 4,
        validation_size: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        augment = None if crop_padding is None else FlipAndCrop(crop_padding)
        super().__init__(batch_size, validation_size, seed, shuffle, num_workers, drop_last)
        self.folder = folder
        self.crop_padding = crop_padding
        self.augment = augment
        self.save_hyperparameters()

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the training images and labels, the test images and labels.

        Raises:
            FileNotFoundError: If the folder lacks a file, or a class has no training images.
            MissingDependencyError: If Pillow isn't installed.
            ValueError: If an image has another size.
        """
        names = ("wnids.txt", "val/val_annotations.txt")
        classes_file, annotations = find(self.folder, names, type(self).__name__, SOURCE)
        root = classes_file.parent
        labels = {name: label for label, name in enumerate(sorted(classes_file.read_text().split()))}
        train = [(path, labels[name]) for name in labels for path in _images_of(root / "train" / name)]
        rows = [line.split() for line in annotations.read_text().splitlines() if line]
        test = [(root / "val" / "images" / row[0], labels[row[1]]) for row in rows]
        return *_read(train), *_read(test)


def _images_of(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("images/*.JPEG"))
    if not paths:
        raise FileNotFoundError(f"TinyImageNet finds no {folder}/images/*.JPEG: get the folder again from {SOURCE}")
    return paths


def _read(samples: Sequence[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
    """Decode images, grey ones too, into (N, 3, 64, 64) unsigned bytes; return them and their labels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("pillow", "vision", "TinyImageNet") from error
    images = torch.empty(len(samples), 3, SIZE, SIZE, dtype=torch.uint8)
    for (path, _), pixels in zip(samples, images, strict=True):
        with Image.open(path) as image:
            if image.size != (SIZE, SIZE):
                raise ValueError(f"{path} has {image.size} pixels; allowed are {(SIZE, SIZE)}")
            rows = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels.copy_(rows.reshape(SIZE, SIZE, 3).permute(2, 0, 1))
    return images, torch.tensor([label for _, label in samples])

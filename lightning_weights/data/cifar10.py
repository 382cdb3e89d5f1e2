"""CIFAR-10 out of its original files, the binary version."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_weights.data._files import find, read_bytes
from lightning_weights.data.augmentation import FlipAndCrop
from lightning_weights.data.classification import ClassificationData

FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHAPE = (3, 32, 32)


class CIFAR10(ClassificationData):
    """Serve CIFAR-10's colour photographs (Krizhevsky, 2009) from a folder; nothing is downloaded.

    The folder holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` of the binary version. Batches
    are (images of shape (N, 3, 32, 32), float32 in [0, 1]; labels of shape (N,), int64). Training images are mirrored
    and shifted at random.

    Args:
        folder: Folder with the six files.
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
        >>> data = CIFAR10("~/data/cifar-10-batches-bin", crop_padding=4)
        >>> data.num_classes
        10
    """

    num_classes = 10

    def __init__(
        self,
        folder: str,
        batch_size: int = 128,
        crop_padding: int | None = 2,
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
            FileNotFoundError: If the folder lacks a file.
            ValueError: If a file is not what its name says.
        """
        *train, test = find(self.folder, FILES, type(self).__name__, SOURCE)
        return *_read(train), *_read([test])


def _read(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Return the images and labels of files of records: one byte for the label, 3072 for the colour planes."""
    length = 1 + SHAPE[0] * SHAPE[1] * SHAPE[2]
    parts = []
    for path in paths:
        content = read_bytes(path)
        if len(content) == 0 or len(content) % length:
            raise ValueError(
                f"{path} has {len(content)} bytes; allowed is a multiple of {length}: get it again from {SOURCE}"
            )
        parts.append(content.reshape(-1, length))
    records = torch.cat(parts)
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0].long()

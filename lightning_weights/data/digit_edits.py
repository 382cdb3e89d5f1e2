"""Handwritten digits to be edited as an instruction says, in pairs of edits that undo each other."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.data.digits import CLASSES, IMAGES, PIXELS, Digits
from lightning_weights.errors import check_number

EDITS = ("blur", "sharpen", "left", "right", "invert", "contrast")
WIDTH = len(EDITS) + 2  # of an instruction: which edit, its strength, and a one


def edited(images: Tensor, edits: Tensor, strengths: Tensor) -> Tensor:
    """Apply an edit to every image; with strength 0 nothing changes, and pairs of edits go opposite ways.

    Args:
        images: Images (N, 64) in [0, 1], of 8 x 8 pixels.
        edits: Number of the edit of each (N,): blur, sharpen, left, right, invert, contrast.
        strengths: How far it goes (N,), about 0 to 1.

    Examples:
        >>> image = torch.eye(8).flatten()[None]
        >>> inverted = edited(image, torch.tensor([4]), torch.tensor([1.0]))
        >>> torch.equal(inverted, 1 - image)
        True
    """
    square = images.view(-1, 1, 8, 8)
    blurred = F.avg_pool2d(F.pad(square, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    left, right = F.pad(square[..., 1:], (0, 1)), F.pad(square[..., :-1], (1, 0))
    directions = torch.stack(
        [blurred - square, square - blurred, left - square, right - square, 1 - 2 * square, 2 * square - 1]
    ).flatten(2)
    return images + strengths[:, None] * directions[edits, torch.arange(len(images), device=images.device)]


def instructions(edits: Tensor, strengths: Tensor) -> Tensor:
    """Return the instruction of each edit (N, 8): its strength at the place of its number, the strength, and a one.

    Args:
        edits: Numbers of edits (N,).
        strengths: Their strengths (N,).

    Examples:
        >>> instructions(torch.tensor([1]), torch.tensor([0.5]))
        tensor([[0.0000, 0.5000, 0.0000, 0.0000, 0.0000, 0.0000, 0.5000, 1.0000]])
    """
    chosen = F.one_hot(edits, len(EDITS)) * strengths[:, None]
    return torch.cat([chosen, strengths[:, None], torch.ones_like(strengths)[:, None]], dim=1)


class DigitEdits(LightningDataModule):
    """Serve scikit-learn's digits with instructions to edit them, every image with every edit.

    Edits come in opposite pairs: blur and sharpen, shift to the left and to the right, invert and raise the contrast.
    Batches are mappings: ``condition`` (N, L, 8), the instruction, with the image's eight rows after it if asked to;
    ``inputs``, the images (N, 64) and instructions (N, 8); ``target``, the edited images (N, 64); ``task``, the number
    of the edit (N,). Strengths are drawn once. Nothing draws from the global generators.

    Args:
        batch_size: Samples per batch.
        test_size: Images held out for the test, of 1797 in all.
        validation_size: Training images set aside for validation. 0: validation serves the test images.
        strengths: From where to where the strengths are drawn.
        image_in_condition: Whether the image is part of the condition.
        instruct: Whether the backbone sees the instruction, too; zeros otherwise.
        seed: Seed of the split, the strengths and the order.
        num_workers: Processes per loader.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> data = DigitEdits(batch_size=16, test_size=1700)
        >>> batch = next(iter(data.train_dataloader()))
        >>> {name: part.shape[1:] for name, part in batch.items() if name != "inputs"}
        {'condition': torch.Size([1, 8]), 'target': torch.Size([64]), 'task': torch.Size([])}
    """

    def __init__(
        self,
        batch_size: int = 64,
        test_size: int = 500,
        validation_size: int = 0,
        strengths: tuple[float, float] = (0.2, 0.8),
        image_in_condition: bool = False,
        instruct: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("test_size", test_size, low=CLASSES, high=IMAGES - CLASSES + 1, whole=True)
        check_number("validation_size", validation_size, low=0, high=IMAGES - test_size, whole=True)
        check_number("seed", seed, low=0, high=2**32, whole=True)
        check_number("num_workers", num_workers, low=0, whole=True)
        low, high = strengths
        check_number("strengths", low, low=0.0)
        check_number("strengths", high, low=low)
        super().__init__()
        self.batch_size, self.test_size, self.validation_size = batch_size, test_size, validation_size
        self.strengths = (float(low), float(high))
        self.image_in_condition, self.instruct = image_in_condition, instruct
        self.seed, self.num_workers = seed, num_workers
        self.save_hyperparameters()
        self._sets: list[TensorDataset] = []

    def setup(self, stage: str | None = None) -> None:
        """Make the samples, once for all stages.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        if self._sets:
            return
        train, _, test, _ = Digits(test_size=self.test_size, seed=self.seed).tensors()
        kept = len(train) - self.validation_size
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed), device="cpu")
        held = test if not self.validation_size else train[order[kept:]]
        drawn = torch.Generator().manual_seed(self.seed + 1)
        parts = [train[order[:kept]], held, test]
        self._sets = [self._samples(images, drawn) for images in parts]
        if not self.validation_size:
            self._sets[1] = self._sets[2]
        self._order = torch.Generator().manual_seed(self.seed)
        self._evaluation = torch.Generator().manual_seed(self.seed)

    def _samples(self, images: Tensor, generator: torch.Generator) -> TensorDataset:
        images = images.view(-1, PIXELS).repeat_interleave(len(EDITS), 0)
        edits = torch.arange(len(EDITS)).repeat(len(images) // len(EDITS))
        low, high = self.strengths
        strengths = low + (high - low) * torch.rand(len(images), generator=generator, device="cpu")
        return TensorDataset(images, instructions(edits, strengths), edited(images, edits, strengths), edits)

    def batch(self, samples: list[tuple[Tensor, ...]] | tuple[Tensor, ...]) -> dict[str, object]:
        """Return a batch of samples.

        Args:
            samples: Images, instructions, targets and edits, one tuple for each sample, or one for all.
        """
        parts = samples if isinstance(samples, tuple) else [torch.stack(part) for part in zip(*samples, strict=True)]
        images, told, targets, edits = parts
        condition = told[:, None]
        if self.image_in_condition:
            condition = torch.cat([condition, images.view(-1, 8, 8)], dim=1)
        seen = told if self.instruct else torch.zeros_like(told)
        return {"condition": condition, "inputs": [images, seen], "target": targets, "task": edits}

    def train_dataloader(self) -> DataLoader[object]:
        """Return the loader of the training samples, in random order."""
        return self._loader(0, shuffle=True)

    def val_dataloader(self) -> DataLoader[object]:
        """Return the loader of the validation samples."""
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[object]:
        """Return the loader of the test samples."""
        return self._loader(2)

    def _loader(self, part: int, shuffle: bool = False) -> DataLoader[object]:
        self.setup()
        # every iterator draws a seed for its workers: without a generator of its own it would be a global draw
        return DataLoader(
            self._sets[part],
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=self.batch,
            generator=self._order if shuffle else self._evaluation,
        )

"""CIFAR-10 out of files in its binary format."""

import re

import numpy as np
import pytest
import torch

from lightning_weights.data import CIFAR10
from tests.helpers.fake_files import write_cifar10


def test_images_and_labels_are_those_in_the_files(tmp_path):
    train_x, train_y, test_x, test_y = map(torch.from_numpy, write_cifar10(tmp_path))
    data = CIFAR10(str(tmp_path), crop_padding=None, batch_size=4, shuffle=False)
    for loader, x, y in ((data.train_dataloader(), train_x, train_y), (data.test_dataloader(), test_x, test_y)):
        images, labels = map(torch.cat, zip(*loader, strict=True))
        assert torch.equal(images, x.double().div(255).float())
        assert torch.equal(labels, y.long())


def test_only_training_images_are_mirrored_and_shifted(tmp_path):
    train_x, _, test_x, _ = write_cifar10(tmp_path)
    data = CIFAR10(str(tmp_path), batch_size=10, shuffle=False, crop_padding=3)
    ((images, _),) = data.train_dataloader()
    assert not np.array_equal(images.mul(255).round(), train_x)
    for image, original in zip(images.mul(255).round().byte().numpy(), train_x, strict=True):
        padded = np.pad(original, ((0, 0), (3, 3), (3, 3)), mode="edge")
        crops = [padded[:, top : top + 32, left : left + 32] for top in range(7) for left in range(7)]
        assert any(np.array_equal(image, crop) or np.array_equal(image, crop[:, :, ::-1]) for crop in crops)
    ((images, _),) = data.val_dataloader()
    assert np.array_equal(images.mul(255).round(), test_x)


def test_missing_files_are_named_with_their_source(tmp_path):
    write_cifar10(tmp_path)
    for name in ("data_batch_3.bin", "test_batch.bin"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 finds no data_batch_3.bin, test_batch.bin in .*cifar-10-b"):
        CIFAR10(str(tmp_path)).setup()


@pytest.mark.parametrize("content", [b"", b"0" * 3072, b"0" * 6147])
def test_an_incomplete_file_is_named(tmp_path, content):
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(content)
    message = f"test_batch.bin has {len(content)} bytes; allowed is a multiple of 3073"
    with pytest.raises(ValueError, match=re.escape(message)):
        CIFAR10(str(tmp_path)).setup()


def test_a_label_that_is_no_class_is_refused(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match="test labels from 10 to 10; allowed are 0 to 9"):
        CIFAR10(str(tmp_path)).setup()


def test_bad_padding(tmp_path):
    with pytest.raises(ValueError, match=r"^padding is -1; allowed is a whole number in \[0, inf\)$"):
        CIFAR10(str(tmp_path), crop_padding=-1)

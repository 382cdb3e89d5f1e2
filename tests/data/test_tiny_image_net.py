"""TinyImageNet out of a folder in its layout."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_weights.data import TinyImageNet
from lightning_weights.errors import MissingDependencyError
from tests.helpers.fake_files import write_tiny_image_net


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def test_images_and_labels_are_those_in_the_folder(tmp_path):
    write_tiny_image_net(tmp_path)
    train_x, train_y, test_x, test_y = TinyImageNet(str(tmp_path)).tensors()
    assert (train_x.dtype, train_x.shape, test_x.shape) == (torch.uint8, (9, 3, 64, 64), (4, 3, 64, 64))
    assert (train_y.dtype, sorted(train_y.tolist())) == (torch.int64, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    for label, name in enumerate(["n01", "n02", "n03"]):
        paths = sorted((tmp_path / "train" / name / "images").iterdir())
        assert torch.equal(train_x[train_y == label], torch.stack([pixels(path) for path in paths]))
    assert test_y.tolist() == [2, 0, 1, 2]
    expected = [pixels(tmp_path / "val" / "images" / f"val_{index}.JPEG") for index in range(4)]
    assert torch.equal(test_x, torch.stack(expected))


def test_batches(tmp_path):
    write_tiny_image_net(tmp_path)
    data = TinyImageNet(str(tmp_path), batch_size=4, crop_padding=None)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, labels.dtype) == ((4, 3, 64, 64), torch.float32, torch.int64)
    assert 0 <= images.min() < images.max() <= 1
    changed = next(iter(TinyImageNet(str(tmp_path), batch_size=4).train_dataloader()))[0]
    assert not torch.equal(images, changed)


def test_missing_files_are_named_with_their_source(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"TinyImageNet finds no wnids.txt, val/val_annotations.txt in .*tiny-imagenet-200.zip"
    ):
        TinyImageNet(str(tmp_path)).setup()
    names = write_tiny_image_net(tmp_path)
    (tmp_path / "train" / names[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"finds no .*train/{names[1]}/images/\*\.JPEG"):
        TinyImageNet(str(tmp_path)).setup()


def test_an_image_of_another_size_is_named(tmp_path):
    names = write_tiny_image_net(tmp_path)
    path = tmp_path / "train" / names[0] / "images" / f"{names[0]}_1.JPEG"
    Image.new("RGB", (32, 64)).save(path)
    with pytest.raises(ValueError, match=re.escape(f"{path} has (32, 64) pixels; allowed are (64, 64)")):
        TinyImageNet(str(tmp_path)).setup()


def test_missing_pillow_is_named(tmp_path, monkeypatch):
    write_tiny_image_net(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"TinyImageNet needs the package 'pillow'.*extra 'vision'"):
        TinyImageNet(str(tmp_path)).setup()

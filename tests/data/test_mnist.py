"""MNIST out of files in its format."""

import gzip
import re

import pytest
import torch

from lightning_weights.data import MNIST
from tests.helpers.fake_files import write_mnist


@pytest.mark.parametrize("compress", [False, True])
def test_images_and_labels_are_those_in_the_files(tmp_path, compress):
    arrays = write_mnist(tmp_path, compress=compress)
    train_x, train_y, test_x, test_y = map(torch.from_numpy, arrays)
    data = MNIST(str(tmp_path), batch_size=5, shuffle=False)
    for loader, x, y in ((data.train_dataloader(), train_x, train_y), (data.test_dataloader(), test_x, test_y)):
        images, labels = map(torch.cat, zip(*loader, strict=True))
        assert torch.equal(images, x[:, None].double().div(255).float())
        assert torch.equal(labels, y.long())
    assert (data.tensors()[0].dtype, data.num_classes) == (torch.uint8, 10)


def test_missing_files_are_named_with_their_source(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    message = rf"MNIST finds no train-labels-idx1-ubyte, t10k-images-idx3-ubyte in folder='{tmp_path}'.*https://"
    with pytest.raises(FileNotFoundError, match=message):
        MNIST(str(tmp_path)).setup()
    with pytest.raises(FileNotFoundError, match=r"finds no train-images.*nowhere"):
        MNIST(str(tmp_path / "nowhere")).setup()


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(MNIST(f"~/{tmp_path.name}").tensors()[1]) == 12


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content + b"0",
        lambda content: b"\0\0\x09" + content[3:],
        lambda content: b"\0\0\x08\x02" + content[4:],
        lambda content: b"<html>",
        lambda content: b"",
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, change):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"{path} is not an idx file of unsigned bytes in 3 dimensions")):
        MNIST(str(tmp_path)).setup()


def test_a_file_is_preferred_to_its_compressed_copy(tmp_path):
    _, train_y, *_ = write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    assert MNIST(str(tmp_path)).tensors()[1].tolist() == train_y.tolist()

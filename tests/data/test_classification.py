"""The base of the data modules: batches, splits, generators, augmentation, workers, resuming and bad data."""

import copy
import pickle
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer

from lightning_weights.callbacks import ExactResume
from lightning_weights.data import BatchDataset, ClassificationData, FlipAndCrop


class Bytes(ClassificationData):
    """Thirty tiny training images that differ and eleven for the test."""

    num_classes = 3

    def load(self):
        images = torch.arange(41 * 12, dtype=torch.int32).remainder(256).to(torch.uint8).reshape(41, 3, 2, 2)
        labels = torch.arange(41) % 3
        return images[:30], labels[:30], images[30:], labels[30:]


class Augmented(Bytes):
    augment = FlipAndCrop(1)


class Floats(Bytes):
    def load(self):
        train_x, train_y, test_x, test_y = super().load()
        return train_x.double(), train_y, test_x.double(), test_y


def contents(loader):
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return images, labels


def rows(*parts):
    """Return images as a sorted list, to compare sets of them whatever their order."""
    return sorted(map(tuple, torch.cat(parts).flatten(1).tolist()))


def test_bytes_become_numbers_up_to_one_and_floats_stay():
    train_x, train_y, test_x, test_y = Bytes().load()
    data = Bytes(shuffle=False, batch_size=7)
    for loader, x, y in ((data.train_dataloader(), train_x, train_y), (data.test_dataloader(), test_x, test_y)):
        assert len(next(iter(loader))[0]) == 7
        images, labels = contents(loader)
        assert torch.equal(images, x.double().div(255).float())
        assert torch.equal(labels, y)
    assert torch.equal(contents(Floats(shuffle=False).train_dataloader())[0], train_x.double())


@settings(max_examples=20, deadline=None)
@given(validation_size=st.integers(0, 29), seed=st.integers(0, 9), batch_size=st.integers(1, 40))
def test_validation_samples_are_taken_from_the_training_samples(validation_size, seed, batch_size):
    data = Bytes(batch_size, validation_size, seed)
    train_x, _, test_x, _ = (part / 255 for part in data.tensors())
    (train, _), (validation, _), (test, _) = map(
        contents, (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    )
    assert rows(test) == rows(test_x)
    if validation_size:
        assert (len(train), len(validation)) == (30 - validation_size, validation_size)
        assert rows(train, validation) == rows(train_x)
    else:
        assert (rows(train), rows(validation)) == (rows(train_x), rows(test_x))


def test_the_validation_samples_depend_on_the_seed():
    first, again, other = (contents(Bytes(4, 9, seed).val_dataloader())[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert rows(first) != rows(other)


@pytest.mark.parametrize("data_class", [Bytes, Augmented])
def test_shuffling_and_augmentation_are_seeded_and_go_on(data_class):
    first, second = data_class(), data_class()
    epochs = [contents(first.train_dataloader())[0] for _ in range(2)]
    assert not torch.equal(*epochs)
    contents(second.val_dataloader())
    for epoch in epochs:
        assert torch.equal(epoch, contents(second.train_dataloader())[0])
    assert not torch.equal(epochs[0], contents(data_class(seed=1).train_dataloader())[0])


@pytest.mark.parametrize("data_class", [Bytes, Augmented])
def test_no_draw_from_the_global_generators(data_class):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    data = data_class(validation_size=5)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        contents(loader)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_only_training_samples_are_augmented():
    plain, augmented = Bytes(shuffle=False, validation_size=6), Augmented(shuffle=False, validation_size=6)
    for name, equal in (("train", False), ("val", True), ("test", True)):
        images = [contents(getattr(data, f"{name}_dataloader")())[0] for data in (plain, augmented)]
        assert torch.equal(*images) is equal, name


def test_workers_augment_each_batch_and_epoch_differently():
    images = torch.arange(16.0).reshape(1, 1, 4, 4).expand(64, 1, 4, 4)

    class Copies(ClassificationData):
        num_classes = 1
        augment = FlipAndCrop(2)

        def load(self):
            return images, torch.zeros(64).long(), images, torch.zeros(64).long()

    data, again = Copies(batch_size=16, num_workers=2), Copies(batch_size=16, num_workers=2)
    epochs = [contents(data.train_dataloader())[0] for _ in range(2)]
    batches = [*epochs[0].split(16), *epochs[1].split(16)]
    assert all(not torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])
    assert torch.equal(epochs[0], contents(again.train_dataloader())[0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_copies_serve_the_same_batches(duplicate):
    data = Augmented()
    contents(data.train_dataloader())
    copied = duplicate(data)
    assert torch.equal(contents(data.train_dataloader())[0], contents(copied.train_dataloader())[0])


def test_single_samples_can_be_read():
    images, label = BatchDataset(*Bytes().load()[:2])[4]
    assert (images.shape, label.item()) == ((3, 2, 2), 1)


def test_data_is_loaded_once():
    data = Bytes()
    parts = data.tensors()
    data.setup("fit")
    loader = data.train_dataloader()
    data.setup("test")
    assert all(a is b for a, b in zip(parts, data.tensors(), strict=True))
    assert loader.dataset is data.train_dataloader().dataset


class Sums(LightningModule):
    """Remembers the sum of every training batch, which tells order and augmentation apart."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, _ = batch
        self.seen.append((images * torch.arange(12.0).reshape(3, 2, 2)).sum().item())
        return self.layer(images.mean().reshape(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("steps", "workers"), [(3, 0), (5, 0), (8, 0), (8, 2)])
def test_a_resumed_run_sees_the_same_batches(tmp_path, steps, workers):
    def train(max_steps, checkpoint=None):
        trainer = Trainer(
            max_steps=max_steps,
            max_epochs=4,
            callbacks=[ExactResume()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        model = Sums()
        trainer.fit(model, Augmented(batch_size=6, seed=3, num_workers=workers), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        return model.seen

    straight, before = train(12), train(steps)
    assert len(set(straight)) == 12
    assert before + train(12, tmp_path / f"{steps}.ckpt") == straight


def test_the_last_training_batch_can_be_left_out():
    data = Bytes(batch_size=29, drop_last=True)
    assert [len(labels) for _, labels in data.train_dataloader()] == [29]
    assert [len(labels) for _, labels in Bytes(batch_size=29).train_dataloader()] == [29, 1]
    assert [len(labels) for _, labels in data.test_dataloader()] == [11]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("batch_size", 0, "[1, inf)"),
        ("validation_size", -1, "[0, inf)"),
        ("validation_size", 0.2, "[0, inf)"),
        ("seed", 2**32, "[0, 4294967296)"),
        ("num_workers", None, "[0, inf)"),
    ],
)
def test_bad_arguments(name, value, allowed):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; allowed is a whole number in {allowed}")):
        Bytes(**{name: value})


def test_validation_leaves_samples_to_train_on():
    with pytest.raises(ValueError, match=r"^validation_size is 30; allowed is a whole number in \[0, 30\)$"):
        Bytes(validation_size=30).setup()


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (1, torch.arange(30), r"load\(\) of Bad returned training labels from 0 to 29; allowed are 0 to 2"),
        (3, torch.arange(11) % 3 - 1, r"load\(\) of Bad returned test labels from -1 to 1; allowed are 0 to 2"),
        (1, torch.zeros(29).long(), r"load\(\) of Bad returned 30 training inputs and 29 labels"),
        (2, torch.zeros(0, 3, 2, 2), r"load\(\) of Bad returned 0 test inputs and 11 labels"),
    ],
)
def test_bad_data_is_refused(part, values, message):
    class Bad(Bytes):
        def load(self):
            parts = list(super().load())
            parts[part] = values
            return parts

    with pytest.raises(ValueError, match=message):
        Bad().train_dataloader()

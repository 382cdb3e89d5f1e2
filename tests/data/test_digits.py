"""The digits and their streams: split, tasks, loaders, and no draws from global generators."""

import copy
import pickle
import random
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lightning_weights.data import Digits, PermutedDigits, SplitDigits
from lightning_weights.errors import MissingDependencyError

STREAMS = (PermutedDigits, SplitDigits)


def ready(stream, **arguments):
    data = stream(**arguments)
    data.setup()
    return data


def contents(loader):
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return images, labels


def counted(images, labels):
    """Return the rows as a sorted list, to compare sets of images whatever their order."""
    return sorted(map(tuple, torch.cat([images, labels[:, None]], dim=1).tolist()))


def training(data, task):
    data.task = task
    return contents(data.train_dataloader())


def sklearn_split(seed, test_size=500):
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=test_size, random_state=seed, stratify=labels)
    return [torch.from_numpy(part) for part in split]


@pytest.mark.parametrize("stream", STREAMS)
def test_batches(stream):
    data = ready(stream, batch_size=7)
    assert isinstance(data, LightningDataModule)
    for loader in (data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()):
        images, labels = next(iter(loader))
        assert (images.shape, images.dtype) == ((7, 64), torch.float32)
        assert (labels.shape, labels.dtype) == ((7,), torch.int64)
    images, _ = training(data, 0)
    assert (images.min(), images.max()) == (0, 1)


@pytest.mark.parametrize("seed", [0, 3])
def test_first_permuted_task_is_the_stratified_split(seed):
    data = ready(PermutedDigits, seed=seed, shuffle=False)
    train_x, test_x, train_y, test_y = sklearn_split(seed)
    images, labels = training(data, 0)
    assert torch.equal(images, train_x.float())
    assert torch.equal(labels, train_y)
    images, labels = contents(data.val_dataloader()[0])
    assert torch.equal(images, test_x.float())
    assert torch.equal(labels, test_y)


@pytest.mark.parametrize("as_images", [False, True])
def test_digits_are_the_stratified_split(as_images):
    data = ready(Digits, seed=3, test_size=300, shuffle=False, as_images=as_images)
    train_x, test_x, train_y, test_y = sklearn_split(3, 300)
    shape = (-1, 1, 8, 8) if as_images else (-1, 64)
    for loader, x, y in ((data.train_dataloader(), train_x, train_y), (data.test_dataloader(), test_x, test_y)):
        images, labels = contents(loader)
        assert torch.equal(images, x.float().reshape(shape))
        assert torch.equal(labels, y)
    assert data.num_classes == 10


def test_later_tasks_permute_the_pixels_of_train_and_test_alike():
    data = ready(PermutedDigits, num_tasks=4, shuffle=False)
    train = torch.cat([training(data, task)[0][None] for task in range(4)])
    test = torch.cat([contents(loader)[0][None] for loader in data.val_dataloader()])
    orders = set()
    for task in range(4):
        # images are recognised by a pixel's values over all of them; constant pixels can't be told apart
        columns = [tuple(column) for column in train[0].T.tolist()]
        order = [columns.index(tuple(column)) for column in train[task].T.tolist()]
        orders.add(tuple(order))
        assert torch.equal(train[task].sort(dim=1).values, train[0].sort(dim=1).values)
        assert torch.equal(test[task].sort(dim=1).values, test[0].sort(dim=1).values)
        varying = [i for i, j in enumerate(order) if len(set(columns[j])) > 1]
        assert torch.equal(test[task][:, varying], test[0][:, [order[i] for i in varying]])
    assert len(orders) == 4


def test_permutations_do_not_depend_on_the_number_of_tasks():
    short, long = ready(PermutedDigits, num_tasks=2), ready(PermutedDigits, num_tasks=5)
    assert torch.equal(contents(short.val_dataloader()[1])[0], contents(long.val_dataloader()[1])[0])
    other = ready(PermutedDigits, num_tasks=2, seed=1)
    assert not torch.equal(contents(short.val_dataloader()[1])[0], contents(other.val_dataloader()[1])[0])


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 10])
def test_split_deals_the_classes_out_in_order(num_tasks):
    data = ready(SplitDigits, num_tasks=num_tasks)
    width = 10 // num_tasks
    train_x, test_x, train_y, test_y = sklearn_split(0)
    train, test = [training(data, task) for task in range(num_tasks)], [contents(x) for x in data.test_dataloader()]
    for parts, images, labels in ((train, train_x, train_y), (test, test_x, test_y)):
        for task, (_, part) in enumerate(parts):
            assert part.unique().tolist() == list(range(task * width, (task + 1) * width))
        together = [torch.cat(side) for side in zip(*parts, strict=True)]
        assert counted(*together) == counted(images.float(), labels)


@settings(max_examples=10, deadline=None)
@given(test_size=st.integers(10, 1787), seed=st.integers(0, 2**32 - 1), stream=st.sampled_from(STREAMS))
def test_any_split_keeps_the_shares_of_the_classes(test_size, seed, stream):
    data = ready(stream, num_tasks=1, test_size=test_size, seed=seed)
    (_, train), (_, test) = training(data, 0), contents(data.val_dataloader()[0])
    assert (len(train), len(test)) == (1797 - test_size, test_size)
    share = (test.bincount(minlength=10) - torch.cat([train, test]).bincount() * test_size / 1797).abs()
    assert share.max() <= 1


def test_shuffling_is_seeded_and_goes_on():
    first, second = ready(PermutedDigits), ready(PermutedDigits)
    epochs = [contents(first.train_dataloader())[1] for _ in range(2)]
    assert not torch.equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert torch.equal(epoch, contents(second.train_dataloader())[1])
    contents(first.val_dataloader()[0])
    assert torch.equal(contents(first.train_dataloader())[1], contents(second.train_dataloader())[1])
    assert not torch.equal(epochs[0], contents(ready(PermutedDigits, seed=1).train_dataloader())[1])


@pytest.mark.parametrize("stream", STREAMS)
def test_no_draw_from_the_global_generators(stream):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    data = ready(stream)
    for loader in (data.train_dataloader(), *data.val_dataloader()):
        contents(loader)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@pytest.mark.parametrize("stream", STREAMS)
def test_loaders_set_up_themselves(stream):
    assert len(next(iter(stream(batch_size=4).train_dataloader()))[0]) == 4
    assert len(stream(num_tasks=2).val_dataloader()) == 2


def test_setup_twice_changes_nothing():
    data, twice = ready(SplitDigits), ready(SplitDigits)
    contents(data.train_dataloader())
    contents(twice.train_dataloader())
    twice.setup("fit")
    assert torch.equal(contents(data.train_dataloader())[1], contents(twice.train_dataloader())[1])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
@pytest.mark.parametrize("stream", STREAMS)
def test_copies_serve_the_same_batches(stream, duplicate):
    data = ready(stream)
    data.task = 1
    copied = duplicate(data)
    assert copied.task == 1
    assert torch.equal(contents(data.train_dataloader())[0], contents(copied.train_dataloader())[0])


@pytest.mark.parametrize("stream", STREAMS)
def test_task_is_validated(stream):
    data = stream()
    for task in (-1, data.num_tasks, 1.0, "1", None, True):
        with pytest.raises(
            ValueError, match=rf"^task is {task!r}; allowed is a whole number in \[0, {data.num_tasks}\)$"
        ):
            data.task = task
    assert data.task == 0


@pytest.mark.parametrize("stream", [*STREAMS, Digits])
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("batch_size", 0, "[1, inf)"),
        ("batch_size", 2.5, "[1, inf)"),
        ("test_size", 9, "[10, 1788)"),
        ("test_size", 1788, "[10, 1788)"),
        ("test_size", "500", "[10, 1788)"),
        ("seed", -1, "[0, 4294967296)"),
        ("seed", 2**32, "[0, 4294967296)"),
        ("seed", None, "[0, 4294967296)"),
        ("num_workers", -1, "[0, inf)"),
        ("num_workers", False, "[0, inf)"),
    ],
)
def test_bad_arguments(stream, name, value, allowed):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; allowed is a whole number in {allowed}")):
        stream(**{name: value})


@pytest.mark.parametrize("num_tasks", [0, -1, 2.5, "3", None])
def test_permuted_needs_a_number_of_tasks(num_tasks):
    with pytest.raises(ValueError, match=rf"^num_tasks is {num_tasks!r}; allowed is a whole number in \[1, inf\)$"):
        PermutedDigits(num_tasks=num_tasks)


@pytest.mark.parametrize("num_tasks", [0, 3, 20, -5, 2.5, "5", None])
def test_split_needs_a_divisor_of_ten(num_tasks):
    with pytest.raises(ValueError, match=f"^num_tasks is {num_tasks!r}; allowed are 1, 2, 5, 10$"):
        SplitDigits(num_tasks=num_tasks)


@pytest.mark.parametrize("num_tasks", [2.0, True])
def test_split_needs_a_whole_number_of_tasks(num_tasks):
    with pytest.raises(ValueError, match=f"^num_tasks is {num_tasks!r}; allowed is a whole number"):
        SplitDigits(num_tasks=num_tasks)


@pytest.mark.parametrize("stream", [SplitDigits, Digits])
def test_missing_sklearn_is_named(monkeypatch, stream):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    message = rf"{stream.__name__} needs the package 'scikit-learn'.*pip install scikit-learn"
    with pytest.raises(MissingDependencyError, match=message):
        stream().setup()


def test_hyperparameters_are_plain():
    assert dict(SplitDigits(seed=4).hparams) == {
        "num_tasks": 5,
        "batch_size": 32,
        "test_size": 500,
        "seed": 4,
        "shuffle": True,
        "num_workers": 0,
    }


def test_trainer_reloads_the_task_that_is_set(tmp_path):
    seen = []

    class Model(BoringModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 2)

        def training_step(self, batch, batch_idx):
            seen.append((self.current_epoch, set(batch[1].tolist())))
            return super().training_step(batch[0], batch_idx)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return super().validation_step(batch[0], batch_idx)

        def on_train_epoch_end(self):
            self.trainer.datamodule.task = self.current_epoch + 1

    trainer = Trainer(
        max_epochs=3,
        reload_dataloaders_every_n_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = SplitDigits()
    trainer.fit(Model(), data)
    assert len(trainer.num_val_batches) == 5
    assert seen == [(epoch, {2 * epoch, 2 * epoch + 1}) for epoch in range(3) for _ in range(2)]


def test_larger_images_are_interpolated():
    small, large = ready(Digits, as_images=True), ready(Digits, as_images=True, image_size=16)
    (x, y, *_), (x16, y16, *_) = small.tensors(), large.tensors()
    assert torch.equal(y, y16)
    assert x16.shape == (*x.shape[:2], 16, 16)
    assert 0 <= x16.min() < x16.max() <= 1
    # away from the border a pixel has nine sixteenths of the one that it lies in
    expected = (9 * x[..., 3, 3] + 3 * x[..., 3, 4] + 3 * x[..., 4, 3] + x[..., 4, 4]) / 16
    torch.testing.assert_close(x16[..., 7, 7], expected)
    assert ready(Digits, image_size=12).tensors()[0].shape[1:] == (144,)
    with pytest.raises(ValueError, match="image_size is 0"):
        Digits(image_size=0)

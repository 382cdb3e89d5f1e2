"""Corrupted data: by index, in shares, around any data module."""

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from lightning_weights.data import MNIST1D, Corrupted, Digits
from lightning_weights.data._corrupted_samples import CorruptedSamples
from lightning_weights.functional.corruptions import corrupt
from lightning_weights.modules import Corruption
from tests.helpers.tasks import make_trainer

TRAIN, VAL, TEST, PREDICT = ((part * 2**10 + loader) * 2**40 for part, loader in ((0, 0), (1, 0), (2, 0), (3, 0)))
IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24)
NOISY = {"corruption": "gaussian_noise", "strength": {"gaussian_noise": 0.5}}


def noisy(images, first, indices, seed=0):
    return corrupt(images, "gaussian_noise", seed=seed, strength=0.5, indices=[first + int(i) for i in indices])


class Plain(LightningDataModule):
    """Loaders as a user makes them."""

    def __init__(self, dataset=None, **options):
        super().__init__()
        self.dataset = TensorDataset(IMAGES, LABELS) if dataset is None else dataset
        self.options = {"batch_size": 5, **options}
        self.stages = []

    def setup(self, stage):
        self.stages.append(stage)

    def teardown(self, stage):
        self.stages.append(f"no {stage}")

    def train_dataloader(self):
        return DataLoader(self.dataset, shuffle=True, **self.options)

    def test_dataloader(self):
        return [DataLoader(self.dataset, **self.options), DataLoader(self.dataset, **self.options)]

    def state_dict(self):
        return {"stages": self.stages}

    def load_state_dict(self, state_dict):
        self.stages = state_dict["stages"]


def contents(loader):
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def test_every_image_has_its_own_corruption_whatever_the_order():
    data = Corrupted(Plain(), **NOISY)
    torch.manual_seed(0)
    loader = data.train_dataloader()
    for _ in range(2):  # the same in every epoch
        images, labels = contents(loader)
        assert labels.tolist() != LABELS.tolist()
        assert torch.equal(images, noisy(IMAGES[labels], TRAIN, labels))


def test_parts_and_loaders_have_different_noise():
    data = Corrupted(Plain(), **NOISY)
    first, second = data.test_dataloader()
    assert torch.equal(contents(first)[0], noisy(IMAGES, TEST, LABELS))
    assert torch.equal(contents(second)[0], noisy(IMAGES, TEST + 2**40, LABELS))
    assert not torch.equal(noisy(IMAGES, TEST, LABELS), noisy(IMAGES, TRAIN, LABELS))


def test_only_the_named_parts_are_corrupted():
    base = Digits(as_images=True, validation_size=50, batch_size=50)
    data = Corrupted(base, "contrast", parts=["val"])
    for part in ("train", "test"):
        ours, theirs = getattr(data, f"{part}_dataloader")(), getattr(base, f"{part}_dataloader")()
        assert ours.dataset is theirs.dataset
    (clean, labels), (changed, same) = contents(base.val_dataloader()), contents(data.val_dataloader())
    assert torch.equal(labels, same)
    assert torch.equal(changed, corrupt(clean, "contrast"))


def test_missing_parts_stay_missing():
    data = Corrupted(Plain(), **NOISY)
    assert data.val_dataloader() == []
    assert data.predict_dataloader() == []


def test_several_corruptions_get_equal_shares_that_stay():
    names = ["contrast", "gaussian_noise", "brightness"]
    images = IMAGES[:23]
    data = Corrupted(Plain(TensorDataset(images, LABELS[:23])), names, parts=["test"], seed=3)
    changed, _ = contents(data.test_dataloader()[0])
    ways = [corrupt(images, name, seed=3, indices=[TEST + i for i in range(23)]) for name in names]
    matches = torch.stack([(changed == way).flatten(1).all(1) for way in ways])
    assert matches.sum(0).tolist() == [1] * 23
    assert sorted(matches.sum(1).tolist()) == [7, 8, 8]
    assert torch.equal(contents(data.test_dataloader()[0])[0], changed)
    other = Corrupted(Plain(TensorDataset(images, LABELS[:23])), names, parts=["test"], seed=4)
    again = torch.stack([(contents(other.test_dataloader()[0])[0] == way).flatten(1).all(1) for way in ways[::2]])
    assert not torch.equal(again, matches[::2])


Pair = namedtuple("Pair", "image label")
SAMPLES = {
    "dicts": ([{"x": image, "y": 1} for image in IMAGES], "x"),
    "lists": ([[1, image] for image in IMAGES], 1),
    "named tuples": ([Pair(image, 1) for image in IMAGES], 0),
}


@pytest.mark.parametrize(("samples", "key"), SAMPLES.values(), ids=SAMPLES)
def test_kinds_of_samples(samples, key):
    dataset = CorruptedSamples(samples, [Corruption("contrast")], 0, key, (0, 1))
    for sample in (dataset[-1], dataset.__getitems__([3, 23])[1]):
        assert type(sample) is type(samples[23])
        assert torch.equal(sample[key], corrupt(IMAGES[-1:], "contrast")[0])
    assert torch.equal(samples[23][key], IMAGES[23])


def test_loaders_keep_their_ways():
    def collate(samples):
        return torch.stack([sample[0] for sample in samples]), "seen"

    generator = torch.Generator()
    options = {"collate_fn": collate, "drop_last": True, "generator": generator, "batch_size": 7}
    loader = Corrupted(Plain(**options), **NOISY).train_dataloader()
    assert isinstance(loader.sampler, RandomSampler)
    assert (loader.generator, loader.sampler.generator) == (generator, generator)
    assert len(loader) == 3
    assert next(iter(loader))[1] == "seen"


def test_batch_samplers_of_other_classes_are_kept():
    class Own(BatchSampler):
        pass

    sampler = Own(SequentialSampler(IMAGES), 4, False)

    class Module(Plain):
        def train_dataloader(self):
            return DataLoader(self.dataset, batch_sampler=sampler)

    loader = Corrupted(Module(), **NOISY).train_dataloader()
    assert loader.batch_sampler is sampler
    assert torch.equal(contents(loader)[0], noisy(IMAGES, TRAIN, LABELS))


def test_collections_of_loaders():
    class Module(Plain):
        def train_dataloader(self):
            return {"a": DataLoader(self.dataset, 24), "b": DataLoader(self.dataset, 24)}

    loaders = Corrupted(Module(), **NOISY).train_dataloader()
    assert torch.equal(next(iter(loaders["b"]))[0], noisy(IMAGES, 2**40, LABELS))


def test_ranges_other_than_the_unit_one():
    base = MNIST1D(num_samples=100, batch_size=100)
    clean, _ = contents(base.test_dataloader())
    low, high = -8.0, 8.0
    data = Corrupted(base, "contrast", value_range=(low, high))
    changed, _ = contents(data.test_dataloader())
    mean = clean.mean(2, keepdim=True)
    torch.testing.assert_close(changed, (clean - mean) * 0.15 + mean, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"allowed is value_range, \[-0.5, 0.5\]"):
        next(iter(Corrupted(base, "contrast", value_range=(-0.5, 0.5)).test_dataloader()))


def test_the_base_sees_everything():
    base = Plain()
    data = Corrupted(base, **NOISY)
    data.trainer = trainer = object()
    data.prepare_data()
    data.setup("fit")
    data.teardown("fit")
    assert (base.stages, base.trainer) == (["fit", "no fit"], trainer)
    data.load_state_dict({"stages": [1]})
    assert data.state_dict() == {"stages": [1]}
    assert dict(data.hparams)["corruption"] == "gaussian_noise"


def test_data_sets_can_be_pickled_for_workers():
    dataset = CorruptedSamples(TensorDataset(IMAGES, LABELS), [Corruption("fog")], 0, 0, (0, 1))
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3][0], dataset[3][0])


class Normalised(Plain):
    """Does something to batches on their way to the device, once per node."""

    def __init__(self, **options):
        super().__init__(**options)
        self.prepare_data_per_node = False

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] - 10 * self.options["batch_size"], batch[1])


@pytest.mark.filterwarnings("ignore:You have overridden")
def test_what_a_base_does_to_batches_comes_after_the_corruption():
    seen = []

    class Module(LightningModule):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            seen.append(batch[0])

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return (batch[0] + 1, batch[1])

    data = copy.deepcopy(Corrupted(Normalised(), **NOISY))
    data.base.options["batch_size"] = 6
    make_trainer([]).test(Module(), datamodule=data)
    assert torch.equal(torch.cat(seen[:4]), noisy(IMAGES, TEST, LABELS) + 1 - 60)
    assert data.prepare_data_per_node is False
    assert Corrupted(Plain(), **NOISY).prepare_data_per_node is True


def test_workers_and_processes_see_the_same_corruptions():
    data = Corrupted(Plain(num_workers=1, persistent_workers=True, batch_size=12), **NOISY)
    loader, _ = data.test_dataloader()
    for _ in range(2):
        assert torch.equal(contents(loader)[0], noisy(IMAGES, TEST, LABELS))
    loader._iterator._shutdown_workers()
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(IMAGES, 2, rank, shuffle=False)
        (images, labels), _ = map(contents, Corrupted(Plain(sampler=sampler), **NOISY).test_dataloader())
        assert torch.equal(images, noisy(IMAGES[labels], TEST, labels))
        parts += labels.tolist()
    assert sorted(parts) == LABELS.tolist()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(IMAGES)


WRONG = {
    "bytes": (TensorDataset((IMAGES * 255).byte(), LABELS), {}, "images are torch.uint8"),
    "normalised": (TensorDataset(IMAGES * 2 - 1, LABELS), {}, r"allowed is \[0, 1\]: corrupt them before"),
    "flat": (TensorDataset(IMAGES.flatten(1), LABELS), {}, "images have the shape"),
    "no such part": (TensorDataset(IMAGES, LABELS), {"key": "x"}, "key is 'x', but a sample is a tuple"),
    "not a tensor": ([("text", 1)], {}, "where a sample has a str"),
}


@pytest.mark.parametrize(("dataset", "options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_data(dataset, options, message):
    data = Corrupted(Plain(dataset), **NOISY, **options)
    with pytest.raises(ValueError, match=message):
        next(iter(data.test_dataloader()[0]))


def test_streams_are_refused():
    class Module(Plain):
        def test_dataloader(self):
            return DataLoader(Stream())

    with pytest.raises(ValueError, match="base serves a DataLoader in which samples have no index"):
        Corrupted(Module(), **NOISY).test_dataloader()


REFUSED = {
    "corruption": ({"corruption": "rain"}, "corruption is 'rain'"),
    "twice": ({"corruption": ["fog", "fog"]}, "a list of different names"),
    "none": ({"corruption": []}, "a list of different names"),
    "severity": ({"corruption": "fog", "severity": 0}, "severity is 0"),
    "strength": ({"corruption": "fog", "strength": {"snow": 1}}, "a key of strength is 'snow'; allowed are 'fog'"),
    "part": ({"corruption": "fog", "parts": ["training"]}, "an entry of parts is 'training'"),
    "parts": ({"corruption": "fog", "parts": "val"}, "parts is 'val'"),
    "range": ({"corruption": "fog", "value_range": (1.0, 0.0)}, "value_range is"),
    "seed": ({"corruption": "fog", "seed": -1}, "seed is -1"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Corrupted(Plain(), **arguments)

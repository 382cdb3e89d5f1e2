"""Groups of classes: who arrives when, what is served, and that it comes back from a checkpoint."""

import copy
from collections import UserList
from typing import Any

import numpy as np
import pytest
import torch

from lightning_weights.data import ClassificationData, ClassIncremental, ExemplarMemory


class Source(ClassificationData):
    """Twenty training and four test samples of each of six classes; inputs are label and number."""

    num_classes = 6

    def load(self):
        y = torch.arange(6).repeat(20)
        x = torch.stack([y, torch.arange(120) // 6], dim=1).float()
        return x, y, -1 - x[:24], y[:24]


def groups(**options: Any) -> ClassIncremental:
    return ClassIncremental(
        **{"source": Source(), "increments": [2, 3, 1], "memory": ExemplarMemory(12), "batch_size": 16, **options}
    )


def served(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


def finish_step(data: ClassIncremental) -> None:
    data.remember(torch.rand(len(data.new_samples()[1]), 3, generator=torch.Generator().manual_seed(0)))


def test_the_order_of_arrival_is_the_community_s():
    assert groups().classes == np.random.RandomState(1993).permutation(6).tolist()
    assert groups(class_order_seed=None).classes == [0, 1, 2, 3, 4, 5]
    assert groups(class_order=UserList([5, 3, 1, 0, 2, 4])).classes == [5, 3, 1, 0, 2, 4]


def test_every_step_serves_its_classes_and_the_memory_under_labels_of_arrival():
    data = groups()
    for step, (old, new) in enumerate([(0, 2), (2, 3), (5, 1)]):
        data.step = step
        assert (data.num_old, data.num_new) == (old, new)
        x, y = served(data.train_dataloader())
        assert torch.equal(torch.tensor(data.classes)[y], x[:, 0].long()), "a label is another class's"
        counts = y.bincount(minlength=6).tolist()
        assert counts == [12 // old if old else 0] * old + [20] * new + [0] * (6 - old - new)
        test_x, test_y = served(data.val_dataloader())
        assert torch.equal(torch.tensor(data.classes)[test_y], -1 - test_x[:, 0].long())
        assert sorted(set(test_y.tolist())) == list(range(old + new))
        assert torch.equal(served(data.test_dataloader())[1], test_y)
        finish_step(data)
    assert data.memory.classes == [0, 1, 2, 3, 4, 5]


def test_classes_left_over_never_arrive():
    data = groups(increments=[2, 1])
    finish_step(data)
    data.step = 1
    finish_step(data)
    assert sorted({*served(data.val_dataloader())[1].tolist()}) == [0, 1, 2]


def test_new_samples_for_herding_are_in_order_and_not_augmented():
    source = Source()
    source.augment = lambda x, generator: x + 100
    data = groups(source=source)
    assert (served(data.train_dataloader())[0] >= 100).all()
    x, y = served(data.new_dataloader())
    assert torch.equal(x, data.new_samples()[0])
    assert torch.equal(y, data.new_samples()[1])


def test_batches_are_shuffled_by_a_generator_of_their_own():
    state = torch.get_rng_state()
    first, again, other = (groups(seed=seed) for seed in (0, 0, 1))
    orders = [served(data.train_dataloader())[0] for data in (first, again, other)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(served(first.train_dataloader())[0], orders[0]), "every epoch has its order"
    first.step = 0
    assert torch.equal(served(first.train_dataloader())[0], orders[0]), "a step begins anew"
    assert torch.equal(state, torch.get_rng_state())


def test_step_and_memory_come_back():
    data = groups()
    finish_step(data)
    data.step = 1
    restored = groups()
    restored.load_state_dict(copy.deepcopy(data.state_dict()))
    assert restored.step == 1
    expected = served(data.train_dataloader())
    assert all(torch.equal(a, b) for a, b in zip(served(restored.train_dataloader()), expected, strict=True))
    with pytest.raises(ValueError, match=r"increments is \[3, 3\], but the checkpoint has \[2, 3, 1\]"):
        groups(increments=[3, 3]).load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match="classes is"):
        groups(class_order_seed=1).load_state_dict(data.state_dict())


def test_a_memory_of_other_classes_is_refused():
    data = groups()
    data.step = 1
    for ask in (data.train_dataloader, lambda: finish_step(data)):
        with pytest.raises(ValueError, match=r"the memory holds the classes \[\], but step 1 follows 2 classes"):
            ask()
    data.step = 0
    finish_step(data)
    with pytest.raises(ValueError, match=r"the memory holds the classes \[0, 1\], but step 0 follows 0 classes"):
        data.train_dataloader()


class Gap(Source):
    def load(self):
        x, y, test_x, test_y = super().load()
        return x[y != 4], y[y != 4], test_x, test_y


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"increments": [2, 5]}, r"increments \[2, 5\] need 7 classes, but there are 6"),
        ({"increments": []}, "increments is"),
        ({"increments": [2, 0]}, r"increments\[1\] is 0"),
        ({"increments": "22"}, "increments is '22'"),
        ({"class_order": [0, 1, 1, 2, 3, 4]}, r"class_order names the labels \[1\] again"),
        ({"class_order": [0, 1, 2, 3, 4, 6]}, r"class_order has the labels \[6\]; allowed are 0 to 5"),
        ({"class_order_seed": -1}, "class_order_seed is -1"),
        ({"source": Source(validation_size=3)}, "source has validation_size=3"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        groups(**options)


def test_labels_without_samples_and_steps_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"no training samples of the labels \[4\]"):
        groups(source=Gap()).setup()
    assert len(served(groups(source=Gap(), class_order=[0, 1, 2, 3, 5], increments=[5]).train_dataloader())[1]) == 100
    with pytest.raises(ValueError, match="step is 3"):
        groups().step = 3

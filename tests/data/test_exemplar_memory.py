"""Which exemplars are kept, how many, and that the memory comes back from a checkpoint."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.data import ExemplarMemory


def greedy(features: torch.Tensor, count: int) -> list[int]:
    """Herd as it is written down, one candidate at a time."""
    vectors = features.double()
    vectors = vectors / (vectors.norm(dim=1, keepdim=True) + 1e-8)
    target, chosen = vectors.mean(0), []
    for t in range(1, count + 1):
        gaps = {
            i: (target - (vectors[i] + vectors[chosen].sum(0)) / t).norm().item()
            for i in range(len(vectors))
            if i not in chosen
        }
        chosen.append(min(gaps, key=gaps.__getitem__))
    return chosen


def samples(labels: list[int], count: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs that say which class and which sample they are, labels, and features."""
    y = torch.tensor(labels).repeat(count)
    x = torch.stack([y, torch.arange(count).repeat_interleave(len(labels))], dim=1).float()
    return x, y, torch.rand(len(y), 5, generator=torch.Generator().manual_seed(labels[0]))


def test_herding_keeps_the_greedy_choice_in_its_order():
    memory = ExemplarMemory(size=14)
    x, y, features = samples([0, 1])
    memory.add(x, y, features)
    for label in (0, 1):
        rows = (y == label).nonzero()[:, 0]
        assert torch.equal(memory.exemplars(label), x[rows[greedy(features[rows], 7)]])


@settings(deadline=None, max_examples=30)
@given(
    size=st.integers(6, 40),
    groups=st.permutations(range(6)).flatmap(lambda labels: st.just([labels[:2], labels[2:3], labels[3:]])),
    strategy=st.sampled_from(["herding", "random"]),
    per_class=st.booleans(),
)
def test_budget_prefixes_and_no_duplicates(size, groups, strategy, per_class):
    budget = {"size": None, "per_class": size} if per_class else {"size": size}
    memory = ExemplarMemory(**budget, strategy=strategy)
    kept: dict[int, torch.Tensor] = {}
    seen = 0
    for labels in groups:
        memory.add(*samples(labels))
        seen += len(labels)
        quota = min(size if per_class else size // seen, 12)
        assert len(memory) == quota * seen
        assert per_class or len(memory) <= size
        for label in memory.classes:
            exemplars = memory.exemplars(label)
            assert len(exemplars) == quota
            assert len(exemplars.unique(dim=0)) == quota
            assert (exemplars[:, 0] == label).all()
            if label in kept:
                assert torch.equal(exemplars, kept[label][:quota]), "not the first of those kept before"
            kept[label] = exemplars
    x, y = memory.tensors()
    assert torch.equal(x[:, 0].long(), y)


def test_a_class_with_few_samples_keeps_them_all():
    memory = ExemplarMemory(size=100)
    memory.add(*samples([3], count=4))
    assert len(memory) == 4


def test_a_random_order_depends_on_the_seed_and_not_on_what_came_before():
    first, second, other = (ExemplarMemory(size=20, strategy="random", seed=seed) for seed in (1, 1, 2))
    for memory in (first, other):
        memory.add(*samples([0]))
    for memory in (first, second, other):
        memory.add(*samples([4]))
    count = min(len(memory.exemplars(4)) for memory in (first, second, other))
    assert torch.equal(first.exemplars(4)[:count], second.exemplars(4)[:count])
    assert not torch.equal(first.exemplars(4)[:count], other.exemplars(4)[:count])


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    for strategy in ("herding", "random"):
        ExemplarMemory(size=4, strategy=strategy).add(*samples([0, 1]))
    assert torch.equal(state, torch.get_rng_state())


def test_the_memory_survives_a_checkpoint():
    memory = ExemplarMemory(size=9)
    memory.add(*samples([2, 0]))
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    restored = ExemplarMemory(size=9)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.classes == memory.classes
    assert all(torch.equal(a, b) for a, b in zip(restored.tensors(), memory.tensors(), strict=True))
    twin = copy.deepcopy(restored)
    twin.add(*samples([5]))
    assert len(restored) == 8, "the copy's memory is its own"
    with pytest.raises(ValueError, match="size is 8, but the memory was saved with 9"):
        ExemplarMemory(size=8).load_state_dict(memory.state_dict())


def test_an_empty_memory_has_empty_tensors():
    x, y = ExemplarMemory().tensors()
    assert (len(x), len(y), y.dtype) == (0, 0, torch.long)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_class": 20}, "size is 2000 and per_class is 20; allowed is one of the two"),
        ({"size": None}, "size is None and per_class is None"),
        ({"size": 0}, "size is 0"),
        ({"size": None, "per_class": 0}, "per_class is 0"),
        ({"strategy": "best"}, "strategy is 'best'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExemplarMemory(**arguments)


def test_what_does_not_fit_is_refused_and_changes_nothing():
    memory = ExemplarMemory(size=3)
    memory.add(*samples([0, 1]))
    with pytest.raises(ValueError, match="size is 3 with 4 classes"):
        memory.add(*samples([2, 3]))
    with pytest.raises(ValueError, match=r"the classes \[1\] are in memory already"):
        memory.add(*samples([1, 2]))
    x, y, features = samples([2])
    with pytest.raises(ValueError, match="12 inputs, 12 targets and 11 rows of features"):
        memory.add(x, y, features[1:])
    features[7, 2] = float("nan")
    with pytest.raises(ValueError, match="features holds NaN"):
        memory.add(x, y, features)
    assert (memory.classes, len(memory)) == ([0, 1], 2)

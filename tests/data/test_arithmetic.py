"""Generated additions: right, disjoint, and with the loss on the answer only."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.data import Arithmetic


def pairs(texts):
    """Return the summands, in the order of their size, and check the sums."""
    found = set()
    for text in texts:
        a, b, answer = map(int, re.fullmatch(r"(\d+)\+(\d+)=(\d+)", text).groups())
        assert a + b == answer
        found.add((min(a, b), max(a, b)))
    return found


@given(digits=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), sizes=st.tuples(*[st.integers(1, 18)] * 3))
@settings(max_examples=25, deadline=None)
def test_sums_are_right_and_no_problem_occurs_twice(digits, seed, sizes):
    parts = Arithmetic(digits, *sizes, seed=seed).problems()
    found = [pairs(part) for part in parts]
    assert tuple(map(len, found)) == sizes
    assert len(set.union(*found)) == sum(sizes)
    assert max(b for part in found for _, b in part) < 10**digits


def test_all_additions_can_be_asked_for_and_one_more_is_refused():
    (texts, *_) = Arithmetic(1, 53, 1, 1).problems()
    assert len(pairs(texts)) == 53
    with pytest.raises(ValueError, match=r"are 56 together; with digits=1 there are 55 different additions"):
        Arithmetic(1, 54, 1, 1)


def test_both_orders_and_all_sizes_of_summands_occur():
    texts = Arithmetic(2, 2000, 100).problems()[0]
    swapped = sum(int(text.split("+")[0]) > int(re.split(r"[+=]", text)[1]) for text in texts) / len(texts)
    assert 0.4 < swapped < 0.6
    larger = [max(map(int, re.split(r"[+=]", text)[:2])) for text in texts]
    assert sum(larger) / len(larger) == pytest.approx(66, abs=2)  # the larger of two uniform numbers below 100


def test_labels_are_the_answer_and_the_end():
    data = Arithmetic(3, 50, 20, batch_size=7)
    texts, rows = data.problems()[1], []
    for batch in data.val_dataloader():
        assert {value.dtype for value in batch.values()} == {torch.int64}
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]  # no wider than needed
        rows += list(zip(*batch.values(), strict=True))
    assert len(rows) == len(texts)
    for text, (tokens, mask, labels) in zip(texts, rows, strict=True):
        length = len(text) + 1
        # ByT5's tokens are bytes + 3, and 1 ends a text
        assert tokens[:length].tolist() == [*(byte + 3 for byte in text.encode()), 1]
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        answer = text.index("=") + 1
        expected = torch.full_like(tokens, -100)
        expected[answer:length] = tokens[answer:length]
        assert torch.equal(labels, expected)


def test_the_test_serves_problems_of_its_own_if_asked_to():
    shared, own = Arithmetic(2, 10, 5), Arithmetic(2, 10, 5, 5)
    assert shared.problems()[2] == shared.problems()[1]
    assert not pairs(own.problems()[2]) & pairs(own.problems()[1])


def test_seeds_decide_and_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    first, again, other = (Arithmetic(train_size=40, seed=seed) for seed in (0, 0, 1))
    batches = [next(iter(data.train_dataloader()))["input_ids"] for data in (first, again, other)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0][:, :5], batches[2][:, :5])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "wrong"), [("digits", 0), ("digits", 10), ("train_size", 0), ("validation_size", 0), ("test_size", -1)]
)
def test_wrong_arguments_are_named(name, wrong):
    with pytest.raises(ValueError, match=rf"^{name} is {wrong}; allowed is a whole number"):
        Arithmetic(**{name: wrong})

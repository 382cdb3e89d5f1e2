"""Generated chains of thought: right, wrong on purpose, apart, skewed and numbered."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.data import ChainOfThought
from lightning_weights.data.chain_of_thought import Trajectory


def chains(**arguments):
    sizes = {"train_size": 60, "validation_size": 20, "test_size": 20, "batch_size": 16}
    return ChainOfThought(**{"operands": 4, **sizes, **arguments})


def is_right(trajectory, modulus):
    return all(
        (step - sum(trajectory.operands[: place + 2])) % modulus == 0 for place, step in enumerate(trajectory.steps)
    )


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    operands=st.integers(3, 6),
    modulus=st.sampled_from([2, 10, 100]),
    share=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_a_share_goes_wrong_and_stays_consistent_with_its_mistake(seed, operands, modulus, share):
    data = chains(seed=seed, operands=operands, modulus=modulus, wrong_share=share)
    found = data.trajectories()
    wrong = [trajectory for trajectory in found if not is_right(trajectory, modulus)]
    assert len(wrong) == round(share * 60)
    for trajectory in wrong:
        exact = data.running_sums(trajectory.operands)
        off = {(step - right) % modulus for step, right in zip(trajectory.steps, exact, strict=True)}
        assert len(off - {0}) == 1, "one mistake, which all later steps carry on"
        assert trajectory.steps[-1] != exact[-1]


def test_problems_of_the_parts_differ_and_only_the_test_is_uniform():
    data = chains(train_size=800, validation_size=300, test_size=300)
    parts = [data.trajectories(), *data.evaluation()]
    problems = [[trajectory.operands for trajectory in part] for part in parts]
    assert [len(set(part)) for part in problems] == [800, 300, 300]
    assert len(set.union(*map(set, problems))) == 1400
    for part, uniform in zip(problems, (False, False, True), strict=True):
        counts = Counter(digit for problem in part for digit in problem)
        assert (counts[0] < 2 * counts[9]) == uniform
    assert all(is_right(trajectory, 10) for part in parts[1:] for trajectory in part)


def test_batches_hold_the_text_and_the_numbers_of_the_trajectories():
    data = chains(wrong_share=0.5)
    trajectories, seen = data.trajectories(), []
    for batch in data.train_dataloader():
        assert {value.dtype for value in batch.values()} == {torch.int64}
        for tokens, labels, sample in zip(
            batch["input_ids"], batch["labels"], batch["sample_id"].tolist(), strict=True
        ):
            trajectory = trajectories[sample]
            text = trajectory.problem + trajectory.solution
            assert tokens[: len(text)].tolist() == [byte + 3 for byte in text.encode()]
            answer = [*(byte + 3 for byte in trajectory.solution.encode()), 1]
            assert labels[labels >= 0].tolist() == answer
            assert (labels[: len(trajectory.problem)] == -100).all()
            seen.append(sample)
    assert sorted(seen) == list(range(60))
    assert "sample_id" not in next(iter(data.val_dataloader()))
    assert "sample_id" not in next(iter(data.test_dataloader()))


def test_the_seed_decides_everything_and_a_default_device_nothing():
    assert chains().trajectories() == chains().trajectories()
    assert chains(seed=1).trajectories() != chains().trajectories()
    want = chains().trajectories()
    with torch.device("meta"):
        assert chains().trajectories() == want


def test_texts_of_a_trajectory():
    trajectory = Trajectory((3, 8, 6), (11, 17))
    assert trajectory.problem + trajectory.solution == "3+8+6=11,17"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operands": 1}, r"operands is 1; allowed is a whole number in \[2, 12\)"),
        ({"modulus": 1}, "modulus is 1"),
        ({"skew": -1.0}, "skew is -1.0"),
        ({"wrong_share": 1.5}, r"wrong_share is 1.5; allowed is a number in \[0, 1\]"),
        ({"train_size": 0}, "train_size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        chains(**arguments)


def test_too_many_problems_are_refused():
    with pytest.raises(ValueError, match="not enough different problems of 2 operands for 90"):
        chains(operands=2, train_size=90).trajectories()

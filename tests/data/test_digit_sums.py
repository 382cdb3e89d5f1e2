import pytest
import torch

from lightning_weights.data import DigitSums
from lightning_weights.modules import AccuracyReward, ClarityReward


def test_rows_are_sums_with_demonstrations_that_are_sometimes_wrong():
    data = DigitSums(train_size=400, wrong=0.5, steps=0.5)
    rows = data.rows(400, torch.Generator().manual_seed(0))
    tokenizer = data.tokenizer()
    assert all((int(row["prompt"][0]) + int(row["prompt"][1])) % 10 == int(row["answer"]) for row in rows)
    shown, answers = [row["demonstration"] for row in rows], [row["answer"] for row in rows]
    assert {len(tokenizer(text).input_ids) for text in shown} == {4, 5, 6, 7, 8}
    right = AccuracyReward(r"\d")(completions=shown, answer=answers)
    assert 0.4 < sum(right) / 400 < 0.6
    clear = ClarityReward("", "S", "", 2)(completions=shown)
    assert 0.6 < sum(clear) / 400 < 0.99


def test_loaders_resume_and_take_nothing_from_global_generators():
    before = torch.get_rng_state()
    data, twin = DigitSums(train_size=40, batch_size=16, seed=3), DigitSums(train_size=40, batch_size=16, seed=3)
    epochs = [[list(loader.train_dataloader()) for _ in range(2)] for loader in (data, twin)]
    assert epochs[0] == epochs[1]
    assert epochs[0][0] != epochs[0][1]
    assert [len(batch["prompt"]) for batch in epochs[0][0]] == [16, 16]
    assert len(next(iter(data.val_dataloader()))["prompt"]) == 100
    assert len(list(data.test_dataloader())) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "train_size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"val_batch_size": 0}, "val_batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"wrong": 1.5}, "wrong is 1.5"),
        ({"steps": -0.1}, "steps is -0.1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DigitSums(**options)

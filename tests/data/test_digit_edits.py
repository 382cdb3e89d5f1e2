"""Digits and their edits: pairs are opposite, samples are fixed, nothing draws from the global generators."""

import pytest
import torch

from lightning_weights.data import DigitEdits
from lightning_weights.data.digit_edits import EDITS, WIDTH, edited, instructions


@pytest.mark.parametrize("pair", [("blur", "sharpen"), ("invert", "contrast")])
def test_pairs_go_opposite_ways(pair):
    images, strength = torch.rand(5, 64), torch.rand(5)
    first, second = (edited(images, torch.full((5,), EDITS.index(name)), strength) - images for name in pair)
    torch.testing.assert_close(first, -second, rtol=0, atol=1e-6)
    assert first.abs().max() > 0.01


def test_shifts_move_pixels():
    image = torch.zeros(1, 8, 8)
    image[0, 3, 4] = 1.0
    for name, column in (("left", 3), ("right", 5)):
        moved = edited(image.flatten(1), torch.tensor([EDITS.index(name)]), torch.ones(1)).view(8, 8)
        assert moved.nonzero().tolist() == [[3, column]]


def test_blur_keeps_constants_and_lowers_contrast():
    flat = torch.full((1, 64), 0.4)
    torch.testing.assert_close(edited(flat, torch.tensor([0]), torch.ones(1)), flat)
    image = torch.rand(1, 64)
    assert edited(image, torch.tensor([0]), torch.ones(1)).std() < image.std()
    assert torch.equal(edited(image, torch.tensor([0]), torch.zeros(1)), image)


def test_batches():
    data = DigitEdits(batch_size=30, strengths=[0.3, 0.5], image_in_condition=True, test_size=1700)
    batch = next(iter(data.val_dataloader()))
    images, told = batch["inputs"]
    assert batch["condition"].shape == (30, 9, WIDTH)
    assert torch.equal(batch["condition"][:, 0], told)
    assert torch.equal(batch["condition"][:, 1:].flatten(1), images)
    assert batch["task"].tolist() == [*range(len(EDITS))] * 5
    strengths = told[:, len(EDITS)]
    assert bool((strengths >= 0.3).all() and (strengths <= 0.5).all())
    assert torch.equal(told, instructions(batch["task"], strengths))
    torch.testing.assert_close(batch["target"], edited(images, batch["task"], strengths))
    hidden = next(iter(DigitEdits(instruct=False, test_size=1700).train_dataloader()))
    assert not hidden["inputs"][1].any()
    assert hidden["condition"].any()


def test_samples_are_fixed_and_splits_are_apart():
    state = torch.random.get_rng_state()
    first, second = (DigitEdits(validation_size=20, test_size=1700) for _ in range(2))
    ours, theirs = (next(iter(data.train_dataloader())) for data in (first, second))
    assert torch.equal(ours["target"], theirs["target"])
    assert not torch.equal(next(iter(first.train_dataloader()))["target"], ours["target"])
    assert [len(data) for data in first._sets] == [77 * 6, 20 * 6, 1700 * 6]
    train, held, _ = (set(map(tuple, part.tensors[0].tolist())) for part in first._sets)
    assert not train & held
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"test_size": 5}, {"strengths": (0.5, 0.2)}, {"validation_size": -1}, {"seed": -1}],
    ids=str,
)
def test_bad_arguments(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        DigitEdits(**change)

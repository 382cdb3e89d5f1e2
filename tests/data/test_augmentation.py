"""Flips and shifts against numpy's padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.data import FlipAndCrop


def possible(image, padding):
    """Return every crop of a padded image and of its mirror image, under its kind."""
    found = {}
    for mirrored in (False, True):
        shown = image[:, :, ::-1] if mirrored else image
        padded = np.pad(shown, ((0, 0), (padding, padding), (padding, padding)), mode="edge")
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                crop = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
                found[crop.tobytes()] = mirrored, top, left
    return found


@settings(max_examples=20, deadline=None)
@given(
    padding=st.integers(0, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_every_image_is_one_of_the_possible_ones(padding, height, width, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (5, 3, height, width), generator=generator).to(dtype)
    changed = FlipAndCrop(padding)(images, generator)
    assert (changed.shape, changed.dtype) == (images.shape, dtype)
    for before, after in zip(images.numpy(), changed.numpy(), strict=True):
        assert after.tobytes() in possible(before, padding)


def test_all_possible_images_are_equally_likely():
    image = torch.rand(1, 4, 4)
    changed = FlipAndCrop(1)(image.expand(9000, 1, 4, 4), torch.Generator().manual_seed(0))
    kinds = possible(image.numpy(), 1)
    counts = dict.fromkeys(kinds.values(), 0)
    for after in changed.numpy():
        counts[kinds[after.tobytes()]] += 1
    assert len(counts) == 18
    assert max(abs(count - 500) for count in counts.values()) < 5 * 500**0.5


def test_the_generator_decides():
    images, change = torch.rand(8, 1, 5, 5), FlipAndCrop(2)
    before = torch.get_rng_state()
    first, second, other = (change(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("padding", [-1, 1.5, None])
def test_bad_padding(padding):
    with pytest.raises(ValueError, match=rf"^padding is {padding!r}; allowed is a whole number in \[0, inf\)$"):
        FlipAndCrop(padding)

"""Invariants of pairs: what changes them, what does not, and their derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.ponita import bi_invariants, frame_invariants, random_rotations, safe_norm

SEEDS = st.integers(min_value=0, max_value=2**31)
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}


def pair(seed, dim, dtype=torch.float64):
    """Two positions, two orientations and a rotation."""
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(2, dim, dtype=torch.float64, generator=generator)
    looks = torch.nn.functional.normalize(torch.randn(2, dim, dtype=torch.float64, generator=generator), dim=-1)
    rotation = random_rotations(1, dim, generator=generator)[0]
    return pos.to(dtype), looks.to(dtype), rotation.to(dtype)


def spaces(pos, looks):
    """Attributes of the pair on positions, on positions and one orientation, and on both orientations."""
    relative = pos[1] - pos[0]
    return bi_invariants(relative), bi_invariants(relative, looks[0]), bi_invariants(relative, *looks)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_rotations_and_translations_change_nothing(dim, dtype, seed):
    pos, looks, rotation = pair(seed, dim, dtype)
    moved = spaces(pos @ rotation.mT + 3.0, looks @ rotation.mT)
    for before, after in zip(spaces(pos, looks), moved, strict=True):
        torch.testing.assert_close(after, before, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_reflections_turn_the_sign_in_the_plane_only(seed):
    for dim, sign in ((2, -1.0), (3, 1.0)):
        pos, looks, _ = pair(seed, dim)
        mirror = torch.ones(dim, dtype=torch.float64)
        mirror[0] = -1.0
        before, after = spaces(pos, looks)[2], spaces(pos * mirror, looks * mirror)[2]
        torch.testing.assert_close(after, before * torch.tensor([1.0, sign, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("dim", [2, 3])
@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_first_two_are_the_legs_of_the_distance(dim, seed):
    pos, looks, _ = pair(seed, dim)
    distance, legs, full = spaces(pos, looks)
    torch.testing.assert_close(legs.square().sum(-1, keepdim=True), distance.square())
    torch.testing.assert_close(full[:2], legs)
    torch.testing.assert_close(full[2], looks[0] @ looks[1])


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_frames(seed):
    generator = torch.Generator().manual_seed(seed)
    frames = random_rotations(3, generator=generator)
    pos = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    before = frame_invariants(pos[1] - pos[0], frames[0], frames[1])
    turned = pos @ frames[2].mT
    after = frame_invariants(turned[1] - turned[0], frames[2] @ frames[0], frames[2] @ frames[1])
    torch.testing.assert_close(after, before)
    # complete: the pair comes back from its attributes and the first frame
    torch.testing.assert_close(frames[0] @ before[:3], pos[1] - pos[0])
    torch.testing.assert_close(frames[0] @ before[3:].view(3, 3), frames[1])


def test_frames_broadcast():
    relative, frames = torch.randn(7, 1, 1, 3), random_rotations(4).float()
    assert frame_invariants(relative, frames[:, None], frames).shape == (7, 4, 4, 12)


@pytest.mark.parametrize("case", ["the same place", "parallel", "opposite"])
def test_derivatives_are_finite_twice_where_attributes_are_zero(case):
    look = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    scale = {"the same place": 0.0, "parallel": 2.0, "opposite": -0.7}[case]
    relative = (scale * look).requires_grad_()
    for attributes in (bi_invariants(relative, look), bi_invariants(relative)):
        (slope,) = torch.autograd.grad(attributes.sum(), relative, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), relative, allow_unused=True, materialize_grads=True)
        assert slope.isfinite().all()
        assert curvature.isfinite().all()
        assert curvature.abs().max() < 1e3
    torch.testing.assert_close(bi_invariants(relative, look), torch.tensor([scale, 0.0], dtype=torch.float64))


def test_gradients_elsewhere():
    relative = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    looks = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=-1)
    assert torch.autograd.gradcheck(lambda r: bi_invariants(r, looks), relative)
    assert torch.autograd.gradgradcheck(lambda r: bi_invariants(r, looks), relative)
    assert torch.autograd.gradgradcheck(safe_norm, relative)


@pytest.mark.parametrize(
    ("relative", "receivers", "senders", "message"),
    [
        ((4,), None, None, "relative has vectors of 4 components; allowed are 2 and 3"),
        ((3,), None, (3,), "without receiver_orientations"),
        ((3,), (2,), None, "receiver_orientations has vectors of 2 components; allowed are 3"),
        ((3,), (3,), (2,), "sender_orientations has vectors of 2"),
    ],
)
def test_bad_input(relative, receivers, senders, message):
    tensors = [None if shape is None else torch.ones(shape) for shape in (relative, receivers, senders)]
    with pytest.raises(ValueError, match=message):
        bi_invariants(*tensors)


def test_bad_frames():
    with pytest.raises(ValueError, match=r"allowed are \(..., 3\) and twice \(..., 3, 3\)"):
        frame_invariants(torch.ones(3), torch.eye(2), torch.eye(3))

"""The kernels of the margin head in Triton's interpreter, against specification and corners of the box."""

import numpy as np
import pytest
import torch

from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.interval_affine import interval_margins, interval_margins_reference
from tests.kernels.buffers import guarded
from tests.kernels.interval_affine_cases import NAMES, gradients, margin_oracle, operands

# (samples, inputs, classes): empty, two classes, ragged tiles, and full tiles.
SHAPES = ((0, 3, 4), (5, 3, 2), (11, 20, 10), (3, 7, 20), (16, 64, 8), (9, 128, 17))


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def case(shape):
    data = operands(shape)
    return [data[name] for name in NAMES[:4]], torch.randint(0, shape[2], (shape[0],))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_margins_and_gradients(shape, bias):
    inputs, labels = case(shape)
    operand = [tensor.requires_grad_() for tensor in inputs[: 4 if bias else 3]]
    inputs[3] = inputs[3] if bias else None
    got, want = (function(*inputs, labels) for function in (interval_margins, interval_margins_reference))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5)
    for ours, theirs in zip(gradients([got], operand), gradients([want], operand), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_sound_margins_are_below_what_exact_arithmetic_gives():
    inputs, labels = case((16, 320, 7))
    inputs[1] *= 1e-5
    sound = interval_margins(*inputs, labels, sound=True)
    exact = margin_oracle(dict(zip(NAMES, inputs, strict=False)), labels)
    assert (sound.double().numpy() <= exact).all()
    np.testing.assert_allclose(sound.numpy(), exact, atol=0.05)
    torch.testing.assert_close(sound, interval_margins_reference(*inputs, labels, sound=True), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(11, 20, 10), (9, 128, 17)], ids=str)
def test_nothing_outside_is_read(shape):
    inputs, labels = case(shape)
    inside, _ = guarded(inputs)
    inside = [tensor.requires_grad_() for tensor in inside]
    got = interval_margins(*inside, labels)
    torch.testing.assert_close(got, interval_margins_reference(*inputs, labels), rtol=1e-5, atol=2e-5)
    assert all(gradient.isfinite().all() for gradient in gradients([got], inside))


def test_margins_of_unknown_classes_are_not_a_number():
    inputs, _ = case((4, 5, 3))
    labels = torch.tensor([0, 3, -1, 2])
    margins = interval_margins(*inputs, labels)
    assert margins[[1, 2]].isnan().all()
    torch.testing.assert_close(margins[[0, 3]], interval_margins_reference(*inputs, labels.clamp(0, 2))[[0, 3]])

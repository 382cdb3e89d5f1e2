"""The box: containment as a property, and bad numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.modules import InputBox


@given(st.floats(0, 0.5), st.floats(-1, 1), st.floats(0.1, 2), st.integers(0, 2**31))
def test_holds_all_valid_neighbours_and_nothing_more(eps, mean, std, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 4, generator=generator, dtype=torch.float64)
    box = InputBox([mean, 0.0], [std, 1.0])
    z, lower, upper = box(x, eps)
    torch.testing.assert_close(z, box.normalize(x))
    for _ in range(5):
        near = (x + eps * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1)).clamp(0, 1)
        inside = box.normalize(near)
        assert (inside >= lower - 1e-9).all()
        assert (inside <= upper + 1e-9).all()
    ends = [((x - eps).clamp(0, 1), lower), ((x + eps).clamp(0, 1), upper)]
    for end, found in ends:
        torch.testing.assert_close(found, box.normalize(end))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": [0.0]}, r"std\[0\] is 0.0"),
        ({"std": [0.5, -1.0]}, r"std\[1\] is -1.0"),
        ({"std": 0.5}, "std is 0.5; allowed is a list"),
        ({"mean": []}, r"mean is \[\]; allowed is a list"),
        ({"mean": [float("nan")]}, r"mean\[0\] is nan"),
        ({"mean": [0.5], "std": [0.5, 0.5]}, "mean has 1 entries and std 2"),
        ({"input_range": (1.0, 0.0)}, r"input_range is \(1.0, 0.0\)"),
        ({"input_range": (0.0, 1.0, 2.0)}, "input_range is"),
        ({"input_range": (0, "a")}, r"input_range is \(0, 'a'\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        InputBox(**arguments)


def test_normalising_alone_proves_nothing_and_takes_any_number():
    box = InputBox([0.5], [0.25])
    x = torch.tensor([[-3.0], [0.5], [7.0]])
    assert torch.equal(box.normalize(x), (x - 0.5) / 0.25)
    half = box.normalize(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, (x.bfloat16() - 0.5) / 0.25)
    with pytest.raises(ValueError, match=r"x is in torch\.uint8"):
        box.normalize(x.byte())


@pytest.mark.parametrize(
    ("x", "eps", "message"),
    [
        (torch.full((2, 3), 1.5), 0.1, r"x has pixels outside \[0.0, 1.0\]"),
        (torch.zeros(2, 3), 8.0, "did you mean eps/255"),
        (torch.zeros(2, 3), -0.1, "eps is -0.1"),
        (torch.zeros(2, 3).half(), 0.1, "x is in torch.float16"),
        (torch.zeros(2, 5), 0.1, "has 3 entries and x the shape"),
    ],
)
def test_bad_inputs_are_named(x, eps, message):
    with pytest.raises(ValueError, match=message):
        InputBox([0.1, 0.2, 0.3])(x, eps)

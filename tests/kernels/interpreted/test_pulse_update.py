"""The pulse update kernel in Triton's interpreter, against its specification."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.pulse_update import Response, kernel, pulse_update, pulse_update_reference
from tests.kernels.buffers import guarded
from tests.kernels.pulse_update_cases import CASES, W_SCALE, arguments, case_id, take, tensors, varied

ROUNDING = {"rtol": 0, "atol": 3e-6}  # exponentials and logarithms differ in their last bits


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


VARIED = [case for case in CASES if case[3] == "pulsed" or case[1:] == ("both", "nearest", "never")]


@pytest.mark.parametrize(
    ("case", "c2c"),
    [(case, 0.0) for case in CASES] + [(case, 0.3) for case in VARIED],
    ids=lambda value: case_id(value) if isinstance(value, tuple) else f"c2c {value}",
)
def test_pulses_are_the_same_and_states_close(case, c2c):
    grad, states = tensors(case[1], (600,))
    maps = varied(case[1], (600,)) if c2c else None
    weight, own, counts = take(grad, states, maps, **arguments(case, c2c))
    want, want_states, want_counts = pulse_update_reference(grad, states, maps=maps, **arguments(case, c2c))
    assert counts.tolist() == want_counts.tolist()
    for got, wanted in zip((weight, *own), (want, *want_states), strict=True):
        torch.testing.assert_close(got, wanted, **ROUNDING)


@pytest.mark.parametrize("kind", ["soft", "exp"])
@pytest.mark.parametrize("nus", [(1e-3, 1e-3), (0.0, 3.0), (12.0, 0.0), (0.0, 0.0)], ids=str)
def test_any_nonlinearity(kind, nus):
    grad, states = tensors("both", (600,))
    kinds = {**arguments(("soft", "both", "stochastic", "never")), "response": Response(kind, *nus, 32.0)}
    _, own, _ = take(grad, states, **kinds)
    _, wanted, _ = pulse_update_reference(grad, states, **kinds)
    for got, want in zip(own, wanted, strict=True):
        torch.testing.assert_close(got, want, **ROUNDING)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_gradients(dtype):
    case = ("soft", "rising", "stochastic", "ideal")
    grad, states = tensors("rising", (700,))
    weight, _, counts = take(grad.to(dtype), states, **arguments(case))
    want, _, want_counts = pulse_update_reference(grad.to(dtype), states, **arguments(case))
    assert counts.tolist() == want_counts.tolist()
    torch.testing.assert_close(weight, want, **ROUNDING)


def test_no_pulse_for_nan_and_the_most_for_infinity():
    grad, states = torch.tensor([torch.nan, torch.inf, -torch.inf]), [torch.full((3,), 0.3)] * 2
    weight, own, counts = take(grad, states, **arguments(("linear", "rising", "stochastic", "never")))
    assert counts.tolist() == [10, 2, 0, 2]
    torch.testing.assert_close(own[0], torch.tensor([0.3, 0.3, 0.3 + 5 / 32]), **ROUNDING)
    assert weight.isfinite().all()


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("numel", [1, 7, 512, 1025])
def test_nothing_outside_is_touched(numel, shift):
    case = ("soft", "rising", "stochastic", "ideal")
    grad, states = tensors("rising", (numel,))
    (weight, grad, *own), clean = guarded([W_SCALE * (states[0] - states[1]), grad, *states], shift)
    pulse_update(weight, grad, own, torch.zeros(4, dtype=torch.int64), **arguments(case))
    assert clean()
    torch.testing.assert_close(weight, pulse_update_reference(grad, states, **arguments(case))[0], **ROUNDING)


def test_indices_beyond_32_bits_wrap_like_the_references():
    grad, states = tensors("rising", (512,))
    kinds = arguments(("soft", "rising", "stochastic", "never"))
    index = torch.arange(512) + (1 << 33)
    wanted, *_ = pulse_update_reference(grad, states, index=index, **kinds)
    first, *_ = take(grad, states, **kinds)
    torch.testing.assert_close(first, wanted, **ROUNDING)
    assert kernel.SMALLEST_NU > 0


def test_dtypes_without_a_kernel_are_refused():
    grad, states = tensors("rising", (4,), torch.float64)
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        take(grad, states, **arguments(("soft", "rising", "stochastic", "never")))


def test_opcheck():
    grad, states = tensors("rising", (4, 5))
    tensors_ = (grad.clone(), grad, states, torch.zeros(4, dtype=torch.int64), [], [], [], [], "soft", "rising")
    numbers = ("stochastic", "ideal", 2.0, 2.0, 32.0, 0.0, 5, 0.5, 0.9, 0.0, -1.0, 1.5, 7)
    checks = ("test_schema", "test_faketensor")  # the others know nothing of what runs
    operator = torch.ops.lightning_weights.pulse_update.default
    results = torch.library.opcheck(operator, (*tensors_, *numbers), test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}

"""The kernels of interval propagation in Triton's interpreter, against specification and oracle."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.interval_affine import interval_affine, interval_affine_reference, launch
from tests.kernels.buffers import guarded
from tests.kernels.interval_affine_cases import NAMES, SHAPES, VARIANTS, call, gradients, operands, oracle, used


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_intervals_sums_and_gradients(shape, variant):
    data = operands(shape)
    inputs = [data[name].requires_grad_() for name in used(variant)]
    got, want = (call(function, data, variant) for function in (interval_affine, interval_affine_reference))
    exact = oracle({name: tensor.detach() for name, tensor in data.items()}, variant)
    for ours, theirs, right in zip(got, want, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(ours.detach().numpy(), right, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(gradients(got, inputs), gradients(want, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("results", [(0,), (1,), (2,), (3,), (4,), (0, 3), (1, 2)], ids=str)
def test_gradients_through_some_results(results):
    data = operands((9, 20, 10))
    inputs = [data[name].requires_grad_() for name in used(VARIANTS[0])]
    got, want = (
        gradients([call(function, data, VARIANTS[0])[index] for index in results], inputs)
        for function in (interval_affine, interval_affine_reference)
    )
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_sound_intervals_contain_what_exact_arithmetic_gives(variant):
    data = operands((16, 304, 64))
    data["radius"] *= 1e-5
    data["bias"] *= 100
    exact_center, exact_radius, *_ = oracle(data, variant)
    got = call(interval_affine, data, variant, sound=True)
    center, radius = (tensor.double().numpy() for tensor in got[:2])
    assert (exact_center - exact_radius >= center - radius).all()
    assert (exact_center + exact_radius <= center + radius).all()
    want = call(interval_affine_reference, data, variant, sound=True)
    torch.testing.assert_close(got.radius, want.radius, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 5, 3), (70, 40, 65), (64, 16, 64)], ids=str)
def test_nothing_outside_is_read_or_touched(shape, monkeypatch):
    data = operands(shape)
    guards = dict(zip(data, guarded(data.values())[0], strict=True))
    outside = []

    original = torch.Tensor.new_empty

    def new_empty(tensor, size, **options):
        if options:  # Triton's interpreter, not a launch
            return original(tensor, size, **options)
        tensors, clean = guarded([torch.zeros(size, device=tensor.device)])
        outside.append(clean)
        return tensors[0]

    inputs = [guards[name].requires_grad_() for name in NAMES]
    want = call(interval_affine_reference, guards, VARIANTS[0])
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    got = call(interval_affine, guards, VARIANTS[0])
    got_gradients = gradients(got, inputs)
    monkeypatch.undo()
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    assert all(gradient.isfinite().all() for gradient in got_gradients)
    assert len(outside) >= 6
    assert all(clean() for clean in outside)


def test_any_layout():
    data = operands((20, 48, 64))
    apart = {name: torch.stack([tensor, tensor], dim=-1)[..., 0] for name, tensor in data.items()}
    for got, want in zip(
        call(interval_affine, apart, VARIANTS[0]), call(interval_affine, data, VARIANTS[0]), strict=True
    ):
        assert torch.equal(got, want)


def test_precision_follows_pytorch_except_for_certificates(monkeypatch):
    chosen = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *arguments, **options: chosen.append(options["PRECISION"])

    monkeypatch.setattr(launch, "interval_affine_fwd_kernel", Recorder())
    data = operands((3, 4, 5))
    for precision, sound in [("highest", False), ("high", False), ("high", True)]:
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        call(interval_affine, data, VARIANTS[0], sound=sound)
    assert chosen == ["ieee", "tf32", "ieee"]


def test_dtypes_without_a_kernel_are_refused():
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        call(interval_affine, operands((3, 4, 5), torch.float64), VARIANTS[0])

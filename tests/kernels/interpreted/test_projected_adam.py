"""The projected Adam step in Triton's interpreter, against an oracle in numpy and bitsandbytes' codes."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.projected_adam import projected_adam
from tests.kernels.buffers import guarded, strided, ulps
from tests.kernels.projected_adam_cases import RULE, SHAPES, STEP_SIZE, decoded, encoded, inputs, listed, oracle

ONE_SIDED = ("left", "right")
EVEN = ((64, 128, 16), (128, 64, 16), (64, 64, 32))


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def step(param, grad, left, right, exp_avg, exp_avg_sq, **rule):
    params, grads, lefts, rights, moments, squares = listed(param, grad, left, right, exp_avg, exp_avg_sq)
    projected_adam(params, grads, moments, squares, lefts=lefts, rights=rights, step_sizes=[STEP_SIZE], **rule)


def assert_stepped(data, want):
    for got, wanted in zip((data[0], *data[4:]), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("side", ONE_SIDED)
@pytest.mark.parametrize("shape", [*SHAPES, *EVEN])
def test_numbers(shape, side):
    data = inputs(shape, side)
    want = oracle(*data, **RULE)
    step(*data, **RULE)
    assert_stepped(data, want)


@pytest.mark.parametrize("side", ONE_SIDED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights(side, dtype):
    data = inputs((40, 50, 8), side, dtype)
    want = oracle(*data, **RULE)
    step(*data, **RULE)
    wanted = torch.from_numpy(want[0]).float()
    # the interpreter truncates where hardware rounds to nearest: at most one step of the narrow dtype
    assert ((data[0].float() - wanted).abs() <= 1.01 * ulps(wanted.abs(), dtype)).all()
    np.testing.assert_allclose(data[4], want[1], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("side", ONE_SIDED)
@pytest.mark.parametrize("shape", [(96, 80, 16), (64, 64, 32), (77, 90, 8)])
def test_codes(shape, side):
    pytest.importorskip("bitsandbytes")
    data, left_only = inputs(shape, side), side == "left"
    codes, maxima = encoded(data[4:], left_only)
    moments = decoded(codes, maxima, left_only)
    want = oracle(*data[:4], *moments, **RULE)
    params, grads, lefts, rights = listed(*data[:4])
    lists = {"lefts": lefts, "rights": rights, "absmaxes": [maxima[0]], "sq_absmaxes": [maxima[1]]}
    projected_adam(params, grads, [codes[0]], [codes[1]], **lists, step_sizes=[STEP_SIZE], **RULE)
    np.testing.assert_allclose(data[0], want[0], rtol=2e-5, atol=1e-5)
    library_codes, library_maxima = encoded([torch.from_numpy(moment).float() for moment in want[1:]], left_only)
    for ours, theirs in zip(maxima, library_maxima, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for ours, theirs in zip(codes, library_codes, strict=True):
        difference = (ours.float() - theirs.float()).abs()
        assert difference.max() <= 3  # codes around zero lie closer than rounding errors
        assert difference.mean() < 0.01


def test_many_matrices_one_call():
    matrices = [inputs(shape, "right") for shape in ((40, 50, 8), (64, 96, 8), (9, 10, 8))]
    wants = [oracle(*data, **RULE) for data in matrices]
    params, grads, _, rights, moments, squares = map(list, zip(*matrices, strict=True))
    projected_adam(params, grads, moments, squares, rights=rights, step_sizes=[STEP_SIZE] * 3, **RULE)
    for data, want in zip(matrices, wants, strict=True):
        assert_stepped(data, want)


@pytest.mark.parametrize("side", ONE_SIDED)
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("shape", [(7, 9, 2), (64, 128, 16)])
def test_nothing_outside_is_read_or_written(shape, side, shift):
    data = inputs(shape, side)
    want = oracle(*data, **RULE)
    present, clean = guarded([tensor for tensor in data if tensor is not None], shift)
    tensors = iter(present)
    copies = [None if tensor is None else next(tensors) for tensor in data]
    step(*copies, **RULE)
    assert_stepped(copies, want)
    assert clean()


def test_any_layout():
    data = inputs((6, 10, 3), "right")
    want = oracle(*data, **RULE)
    tensors = [tensor if tensor is None else strided(tensor) for tensor in data]
    step(*tensors, **RULE)
    assert_stepped(tensors, want)


def test_what_has_no_kernel():
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        step(*inputs((4, 6, 2), "right", torch.float64), **RULE)
    for case in (("full", (4, 6, 2)), ("right", (80, 90, 70))):  # both sides or large ranks: products dominate
        data = inputs(case[1], case[0])
        want = oracle(*data, **RULE)
        step(*data, **RULE)
        assert_stepped(data, want)

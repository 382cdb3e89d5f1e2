"""The kernels of mixing in Triton's interpreter, against an oracle in numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.mix_templates import mix_templates
from tests.kernels.buffers import guarded
from tests.kernels.mix_templates_cases import CASES, inputs, oracle, tolerances

FOUR = (0, 0, 1, 1)


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def run(templates, coefficients, sets, columns, upstream=None, dtype=None):
    leaves = [tensor.detach().requires_grad_() for tensor in (*templates, coefficients)]
    weight = mix_templates(leaves[:-1], leaves[-1], sets, columns, dtype=dtype)
    upstream = torch.randn(weight.shape).to(weight.dtype) if upstream is None else upstream
    return weight.detach(), upstream, torch.autograd.grad(weight, leaves, upstream)


@pytest.mark.parametrize(("count", "shape", "sets", "columns"), CASES)
def test_numbers(count, shape, sets, columns):
    data = inputs(count, shape, sets)
    weight, upstream, grads = run(*data, sets, columns)
    step, sums = tolerances(torch.float32, upstream)
    np.testing.assert_allclose(weight, oracle(*data, sets, columns), rtol=step, atol=step)
    wanted = oracle(*data, sets, columns, upstream)
    for found, want, atol in zip(grads, wanted, [step] * len(data[0]) + [sums], strict=True):
        np.testing.assert_allclose(found, want, rtol=step, atol=atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights(dtype):
    data = inputs(4, (5, 32), FOUR)
    weight, upstream, grads = run(*data, FOUR, 2, dtype=dtype)
    want = torch.from_numpy(oracle(*data, FOUR, 2))
    # the interpreter truncates where hardware rounds to nearest
    step = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    torch.testing.assert_close(weight.double(), want, rtol=step, atol=1e-5)
    for found, slope in zip(grads, oracle(*data, FOUR, 2, upstream), strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shift", [0, 1])
def test_nothing_beside_the_tensors_is_touched(shift):
    templates, coefficients = inputs(2, (5, 48), FOUR)
    upstream = torch.randn(10, 96)
    tensors, clean = guarded([*templates, coefficients, upstream], shift)
    weight, _, grads = run(tensors[:2], tensors[2], FOUR, 2, tensors[3])
    assert clean()
    np.testing.assert_allclose(weight, oracle(templates, coefficients, FOUR, 2), rtol=1e-5, atol=1e-6)
    for found, want in zip(grads, oracle(templates, coefficients, FOUR, 2, upstream), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


def test_a_block_has_the_same_bits_wherever_it_stands():
    templates, coefficients = inputs(3, (6, 20), FOUR)
    weight = mix_templates(templates, coefficients, FOUR, 2)
    blocks = [block for row in weight.split(6) for block in row.split(20, 1)]
    for block, row, which in zip(blocks, coefficients, FOUR, strict=True):
        assert torch.equal(block, mix_templates([templates[which]], row[None], (0,)))


def test_without_sums_and_in_unknown_types():
    templates, coefficients = inputs(2, (5, 32), FOUR)
    leaves = [part.requires_grad_() for part in templates]
    weight = mix_templates(leaves, coefficients, FOUR, 2)
    upstream = torch.randn_like(weight)
    grads = torch.autograd.grad(weight, leaves, upstream)
    for found, want in zip(grads, oracle(templates, coefficients, FOUR, 2, upstream), strict=False):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(KernelUnavailableError, match="float64"):
        mix_templates([part.double() for part in templates], coefficients, FOUR, 2)

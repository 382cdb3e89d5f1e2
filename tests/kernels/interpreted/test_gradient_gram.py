"""The kernel of the Gram matrix in Triton's interpreter, against a matrix product in float64."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.gradient_gram import gradient_gram, gradient_gram_reference, kernel
from tests.kernels.buffers import SHAPES, guarded, strided


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def lists(objectives=3, dtype=torch.float32, shapes=SHAPES):
    return [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(objectives)]


@pytest.mark.parametrize("objectives", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inner_products(objectives, dtype, monkeypatch):
    monkeypatch.setattr(kernel, "pick_config", lambda warp_size: (256, 1))
    gradients = lists(objectives, dtype, SHAPES if objectives < 8 else [(7,), (300,)])
    found = gradient_gram(gradients)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, gradient_gram_reference(gradients), rtol=1e-5, atol=1e-3)


def test_several_types_at_once():
    gradients = [[torch.randn(300), torch.randn(40).half()] for _ in range(3)]
    torch.testing.assert_close(gradient_gram(gradients), gradient_gram_reference(gradients), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
def test_nothing_outside_is_read(shift):
    gradients = lists(2, shapes=[(7,), (2100,)])
    copies, clean = guarded([x for row in gradients for x in row], shift)
    found = gradient_gram([copies[:2], copies[2:]])
    assert clean()
    torch.testing.assert_close(found, gradient_gram_reference(gradients), rtol=1e-5, atol=1e-3)


def test_any_layout_and_nan():
    gradients = lists(2, shapes=[(6, 10), (7,)])
    want = gradient_gram_reference(gradients)
    torch.testing.assert_close(
        gradient_gram([[strided(x) for x in row] for row in gradients]), want, rtol=1e-5, atol=1e-4
    )
    gradients[0][1][3] = torch.nan
    assert gradient_gram(gradients).isnan().tolist() == [[True, True], [True, False]]


def test_opcheck_and_refusal():
    gradients = lists(2, shapes=[(5,), (3, 2)])
    flat = [part for row in gradients for part in row]
    results = torch.library.opcheck(torch.ops.lightning_weights.gradient_gram.default, (flat, 2))
    assert set(results.values()) == {"SUCCESS"}
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        gradient_gram([[torch.ones(2, dtype=torch.float64)]])

"""The kernel of adapters per sample in Triton's interpreter, against the oracle."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.per_sample_lora import kernel, per_sample_lora
from tests.kernels.buffers import guarded, strided
from tests.kernels.per_sample_lora_cases import CASES, SCALE, inputs, oracle

NEAR = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def check(data, got, dtype=torch.float32):
    exact = oracle(*data)[0]
    tolerance = NEAR[dtype] * np.abs(exact).max()
    np.testing.assert_allclose(got.detach().double().numpy(), exact, rtol=NEAR[dtype], atol=tolerance)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float32) for case in CASES), (CASES[2], torch.float16), (CASES[0], torch.bfloat16)],
    ids=str,
)
def test_outputs(case, dtype):
    data = inputs(case, dtype)
    check(data, per_sample_lora(*data[:4], SCALE), dtype)


def test_gradients_flow_through_it():
    data = inputs(CASES[0])
    leaves = [tensor.requires_grad_() for tensor in data[1:4]]
    slopes = torch.autograd.grad(per_sample_lora(data[0], *leaves, SCALE), leaves, data[4])
    for ours, exact in zip(slopes, oracle(*data)[1:], strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=2e-5 * np.abs(exact).max())


def test_without_b_the_outputs_are_the_bases():
    for dtype in (torch.float32, torch.float16):
        base, tokens, a, b, _ = inputs(CASES[0], dtype)
        assert torch.equal(per_sample_lora(base, tokens, a, torch.zeros_like(b), SCALE), base)


@pytest.mark.parametrize("layout", [strided, lambda t: t.mT.contiguous().mT], ids=["every second", "transposed"])
def test_any_layout(layout):
    data = inputs(CASES[4])
    check(data, per_sample_lora(*map(layout, data[:4]), SCALE))


@pytest.mark.parametrize("case", [CASES[2], CASES[4]], ids=str)
def test_nothing_outside_is_read_or_touched(case, monkeypatch):
    data = inputs(case)
    (base, inner, b), clean = guarded([data[0], data[1] @ data[2].mT, data[3]])
    outside = []

    def empty_like(tensor):
        tensors, untouched = guarded([tensor.new_zeros(tensor.shape)])
        outside.append(untouched)
        return tensors[0]

    monkeypatch.setattr(torch, "empty_like", empty_like)
    got = kernel.launch_expand(base, inner, b, SCALE)
    monkeypatch.undo()
    check(data, got)
    assert clean()
    assert [untouched() for untouched in outside] == [True]


def test_no_tokens():
    base, tokens, a, b, _ = inputs(CASES[0])
    assert per_sample_lora(base[:, :0], tokens[:, :0], a, b, SCALE).shape == (2, 0, 7)


def test_precision_follows_pytorch(monkeypatch):
    precisions = {}
    for name in ("highest", "high"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda name=name: name)
        for dtype in NEAR:
            options = kernel._options(kernel.pick_config(32, 16), 32, 128, 16, dtype)
            assert options["EVEN"]
            precisions[name, dtype] = options["PRECISION"]
    assert precisions.pop(("highest", torch.float32)) == "ieee"
    assert set(precisions.values()) == {"tf32"}


def test_what_has_no_kernel_is_refused():
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        per_sample_lora(*inputs(CASES[0], torch.float64)[:4], 1.0)
    with pytest.raises(KernelUnavailableError, match=r"the rank is 129; .* up to 128"):
        per_sample_lora(*inputs((1, 1, 2, 2, 129))[:4], 1.0)

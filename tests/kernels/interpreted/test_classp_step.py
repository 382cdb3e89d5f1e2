"""The CLASSP kernel in Triton's interpreter, against its specification."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.classp_step import classp_step, classp_step_reference, kernel
from tests.kernels.buffers import SHAPES, guarded, strided, ulps
from tests.kernels.classp_cases import RULE, lists, take

RULES = [{**RULE, "power": power, "apply_decay": decay} for power in (1.0, 2.0) for decay in (True, False)]


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def _references(data, rule):
    return [classp_step_reference(*triple, **rule) for triple in zip(*data, strict=True)]


@pytest.mark.parametrize("rule", RULES)
def test_every_bit_is_right(rule):
    data = lists(SHAPES)
    params, grad_sums, counts = take(classp_step, data, rule)
    references = _references(data, rule)
    for got, got_sum, (want, want_sum, mask), *triple in zip(params, grad_sums, references, *data, strict=True):
        assert torch.equal(got, _ieee_weights(*triple, mask, rule))
        assert torch.equal(got_sum, want_sum)
        assert torch.equal(got, want)
    assert counts == [sum(int(mask.sum()) for _, _, mask in references), 0]


def _ieee_weights(param, grad, grad_sum, mask, rule):
    """The reference's weights in numpy, whose fp32 operations all round to nearest."""
    w, g, a = param.numpy(), grad.numpy(), grad_sum.numpy()
    root = np.float32(rule["eps"]) + (a + (abs(g) if rule["power"] == 1.0 else g * g))
    step = np.float32(-rule["lr"]) * g
    if rule["apply_decay"]:
        step = step / (root if rule["power"] == 1.0 else np.sqrt(root))
    return torch.from_numpy(np.where(mask.numpy(), w + step, w))


@pytest.mark.parametrize("decay", [True, False])
def test_any_power(decay):
    data, rule = lists(SHAPES), {**RULE, "power": 3.0, "apply_decay": decay}
    params, grad_sums, _ = take(classp_step, data, rule)
    for got, got_sum, (want, want_sum, mask) in zip(params, grad_sums, _references(data, rule), strict=True):
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(got_sum, want_sum)
        assert got_sum[~mask].equal(want_sum[~mask])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True], ids=["all narrow", "narrow gradients"])
def test_narrow_dtypes(dtype, mixed):
    data = lists([(1025,), (2100,)], dtype)
    if mixed:
        data[0] = [param.float() for param in data[0]]
    params, grad_sums, counts = take(classp_step, data, RULE)
    references = _references(data, RULE)
    for got, got_sum, (want, want_sum, _) in zip(params, grad_sums, references, strict=True):
        # The interpreter truncates where hardware and PyTorch round to nearest: at most one step of the narrow dtype.
        assert ((got.float() - want.float()).abs() <= (0 if mixed else ulps(want, dtype))).all()
        assert torch.equal(got_sum, want_sum)
    assert counts[0] == sum(int(mask.sum()) for _, _, mask in references)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_outside_is_touched(dtype, shift):
    data = lists(SHAPES, dtype)
    params, clean_params = guarded(data[0], shift)
    grads, clean_grads = guarded(data[1], shift)
    grad_sums, clean_sums = guarded(data[2])
    counts = torch.zeros(2, dtype=torch.int64)
    classp_step(params, grads, grad_sums, counts, **RULE)
    assert clean_params()
    assert clean_grads()
    assert clean_sums()
    assert counts[1] == 0
    assert all(torch.equal(got, want) for got, (_, want, _) in zip(grad_sums, _references(data, RULE), strict=True))


@pytest.mark.parametrize(
    "layout",
    [strided, torch.t, lambda x: x.view(10, 30, 5, 5).to(memory_format=torch.channels_last)],
    ids=["every second", "transposed", "channels last"],
)
@pytest.mark.parametrize("alike", [True, False], ids=["gradients alike", "contiguous gradients"])
def test_any_layout(layout, alike):
    data = [[layout(tensor) for tensor in tensors] for tensors in lists([(30, 250)])]
    if not alike:
        data[1] = [data[1][0].contiguous()]
    params, grad_sums, _ = take(classp_step, data, RULE)
    want, want_sum, _ = _references(data, RULE)[0]
    assert torch.equal(params[0], want)
    assert torch.equal(grad_sums[0], want_sum)


def test_blocks_without_an_accepted_gradient_are_not_written():
    data = lists([(4096,)])
    data[1][0][1024:3000] = 1e-3
    params, _, counts = take(classp_step, data, RULE)
    assert torch.equal(params[0][1024:2048], data[0][0][1024:2048])
    assert torch.equal(params[0], _references(data, RULE)[0][0])
    assert 0 < counts[0] < 4096 - 1976


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_gradients_are_skipped_and_counted(bad):
    data = lists([(3000,), (10,)])
    data[1][0][[3, 1700, 2999]] = bad
    data[1][1][:] = bad
    params, grad_sums, counts = take(classp_step, data, RULE)
    references = _references(data, RULE)
    assert counts == [int(references[0][2].sum()), 13]
    assert torch.equal(params[0], references[0][0])
    assert torch.equal(params[1], data[0][1])
    assert all(total.isfinite().all() for total in grad_sums)


def test_new_gradient_buffers_are_noticed():
    data = lists([(1500,)])
    param, grad_sum, counts = data[0][0], data[2][0], torch.zeros(2, dtype=torch.int64)
    for _ in range(3):
        grad = torch.randn(1500) * 0.01
        want, want_sum, _ = classp_step_reference(param, grad, grad_sum, **RULE)
        classp_step([param], [grad], [grad_sum], counts, **RULE)
        assert torch.equal(param, want)
        assert torch.equal(grad_sum, want_sum)


@pytest.mark.interpreter
def test_offsets_are_64_bit():
    # Tensor 0 is said to start 2**33 elements before the buffer, and the one task to begin at element 2**33 there.
    beyond = 1 << 33
    param, grad, grad_sum = (tensors[0] for tensors in lists([(1024,)]))
    want, _, _ = classp_step_reference(param, grad, grad_sum, **RULE)
    addresses = torch.tensor([tensor.data_ptr() - 4 * beyond for tensor in (param, grad, grad_sum)])
    kernel.classp_step_fwd_kernel[(1,)](
        addresses,
        torch.tensor([[0, beyond, 1024]]),
        torch.zeros(2, dtype=torch.int64),
        0.1,
        1e-2,
        1.0,
        1e-5,
        PARAM=kernel.TRITON_DTYPES[torch.float32],
        GRAD=kernel.TRITON_DTYPES[torch.float32],
        POWER=1,
        DECAY=True,
        EVEN=True,
        ALIGNED=True,
        BLOCK=1024,
    )
    assert torch.equal(param, want)


def test_dtypes_without_a_kernel_are_refused():
    data = lists([(4,)], torch.float64, torch.float64)
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        classp_step(*data, torch.zeros(2, dtype=torch.int64), **RULE)


def test_opcheck():
    data = lists([(10,), (3, 4)])
    arguments = (*data, torch.zeros(2, dtype=torch.int64), 0.1, 1e-4, 1.0, 1e-5, True, True)
    results = torch.library.opcheck(torch.ops.lightning_weights.classp_step.default, arguments)
    assert set(results.values()) == {"SUCCESS"}

"""The kernel of the policy loss in Triton's interpreter, against the oracle and the eager version."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.policy_loss import kernel, policy_loss
from tests.kernels.buffers import Guarded, guarded, strided
from tests.kernels.policy_loss_cases import RULE, RULES, batch, found, oracle

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
SHAPES = [(1, 1), (3, 7), (2, 16), (3, 100), (2, 1024), (2, 1025)]


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_the_oracles(shape, per_token, rule):
    data = batch(*shape, per_token=per_token)
    values, gradient = found(policy_loss, data, **rule)
    want, want_gradient = oracle(*data, **rule)
    np.testing.assert_allclose(values, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_and_no_reference(dtype):
    data = batch(3, 64, dtype)
    data = (*data[:2], None, *data[3:])
    rule = {**RULE, "kl_coef": 0.0}
    values, gradient = found(policy_loss, data, **rule)
    want, want_gradient = oracle(*data, **rule)
    np.testing.assert_allclose(values, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient.double(), want_gradient, rtol=1e-2, atol=1e-6)


def test_what_the_mask_leaves_out_does_not_matter_and_nan_shows():
    data = batch(4, 9)
    want = found(policy_loss, data, **RULE)
    outside = data[-1] == 0
    for place, value in ((0, torch.nan), (1, -torch.inf), (2, torch.inf)):
        data[place][outside] = value
    got = found(policy_loss, data, **RULE)
    np.testing.assert_array_equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    for which in range(4):
        data = batch(4, 6)
        data[-1].fill_(1.0)
        data[which].view(-1)[1] = torch.nan
        assert np.isnan(found(policy_loss, data, **RULE)[0][0])


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("shape", [(3, 7), (3, 16), (2, 1100)])
def test_nothing_outside_is_touched(shape, shift, monkeypatch):
    data = batch(*shape)
    copies, clean = guarded(data, shift)
    guards, original = [], torch.empty

    def empty(*size, device=None, **options):
        if size != shape:
            return original(*size, device=device, **options)
        guards.append(Guarded(torch.zeros(shape, device=device)))
        return guards[-1].tensor

    monkeypatch.setattr(kernel.torch, "empty", empty)
    sums, gradient = kernel.launch_policy_loss(*copies, (0.2, 0.3, 3.0), 0.5, True)
    monkeypatch.undo()
    want, want_gradient = oracle(*data, **RULE)
    tokens = float(data[-1].sum())
    assert clean()
    assert len(guards) == 1
    assert guards[0].untouched()
    np.testing.assert_allclose(sums / tokens, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient / tokens, want_gradient, rtol=1e-5, atol=1e-8)


def test_any_layout_and_empty_batches():
    data = batch(5, 8)
    want = found(policy_loss, data, **RULE)
    for arranged in ([strided(x) for x in data], [x.t().contiguous().t() if x.ndim == 2 else x for x in data]):
        got = found(policy_loss, tuple(arranged), **RULE)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        assert torch.equal(got[1].contiguous(), want[1])
    empty = torch.zeros(0, 8)
    loss = policy_loss(empty, empty, torch.zeros(0), empty, tokens=torch.tensor(4.0)).loss
    assert loss.item() == 0.0


def test_opcheck_and_refusal():
    logp, old, ref, advantages, mask = batch(3, 6)
    arguments = (logp, old, ref, advantages, mask, mask.sum(), 0.2, 0.2, 3.0, 0.1, True)
    results = torch.library.opcheck(torch.ops.lightning_weights.policy_loss.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        policy_loss(logp.double(), old, advantages, mask)

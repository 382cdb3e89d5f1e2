"""The policy loss on the CPU against its specification and an oracle in numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.policy_loss import eager, kl_estimate, policy_loss, policy_loss_reference
from lightning_weights.kernels.policy_loss.cost import cost, cost_composed, pick_config, pick_vector
from tests.kernels.buffers import guarded, strided
from tests.kernels.policy_loss_cases import RULE, RULES, batch, found, oracle
from tests.kernels.traffic import Traffic

SHAPES = [(1, 1), (2, 7), (4, 16), (3, 101), (70, 5)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("function", [policy_loss_reference, policy_loss])
def test_value_and_gradient_are_the_oracles(function, per_token, rule):
    for shape in SHAPES:
        data = batch(*shape, torch.float64, per_token)
        values, gradient = found(function, data, **rule)
        want, want_gradient = oracle(*data, **rule)
        np.testing.assert_allclose(values, want, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(gradient, want_gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arithmetic_is_in_single_precision(dtype):
    data = batch(6, 40, dtype)
    values, gradient = found(policy_loss, data, **RULE)
    want, want_gradient = oracle(*data, **RULE)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(values, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient.double(), want_gradient, rtol=2e-6 if dtype == torch.float32 else 1e-2)


def test_without_a_reference():
    data = batch(3, 9, torch.float64)
    data = (*data[:2], None, *data[3:])
    rule = {**RULE, "kl_coef": 0.0}
    values, gradient = found(policy_loss, data, **rule)
    want, want_gradient = oracle(*data, **rule)
    np.testing.assert_allclose(values, want, rtol=1e-12)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-12)
    assert values[2] == 0.0


def test_chunks_are_the_whole(monkeypatch):
    data = batch(12, 7)
    whole = found(policy_loss, data, **RULE)
    monkeypatch.setattr(eager, "CHUNK", 21)
    pieces = found(policy_loss, data, **RULE)
    np.testing.assert_allclose(pieces[0], whole[0], rtol=1e-6)
    assert torch.equal(pieces[1], whole[1])


def test_what_the_mask_leaves_out_does_not_matter():
    data = batch(4, 9)
    want = found(policy_loss, data, **RULE)
    outside = data[-1] == 0
    for place, value in ((0, torch.nan), (1, -torch.inf), (2, torch.inf)):
        data[place][outside] = value
    got = found(policy_loss, data, **RULE)
    np.testing.assert_array_equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_nan_shows(which):
    data = batch(4, 6)
    data[-1].fill_(1.0)
    data[which].view(-1)[1] = torch.nan
    values, _ = found(policy_loss, data, **RULE)
    assert np.isnan(values[0])


def test_a_large_divergence_is_held():
    logp, ref = torch.tensor([[-30.0, -1.0]]), torch.tensor([[-1.0, -1.0]])
    assert kl_estimate(logp, ref)[0].tolist() == [10.0, 0.0]
    data = (logp, logp, ref, torch.zeros(1), torch.ones(1, 2))
    values, gradient = found(policy_loss, data, **RULE)
    assert values[2] == 5.0
    assert gradient.tolist() == [[0.0, 0.0]]


def test_parts_of_a_batch_add_up():
    data = batch(6, 8, torch.float64)
    tokens = data[-1].sum()
    whole, gradient = found(policy_loss, data, **RULE)
    parts = [
        found(policy_loss, tuple(x[part] for x in data), tokens=tokens, **RULE) for part in (slice(2), slice(2, 6))
    ]
    np.testing.assert_allclose(np.sum([values for values, _ in parts], axis=0), whole, rtol=1e-12)
    torch.testing.assert_close(torch.cat([part for _, part in parts]), gradient)


def test_any_layout_and_nothing_outside_is_touched():
    data = batch(5, 8)
    want = found(policy_loss, data, **RULE)
    for arranged in ([strided(x) for x in data], [x.t().contiguous().t() if x.ndim == 2 else x for x in data]):
        got = found(policy_loss, tuple(arranged), **RULE)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        assert torch.equal(got[1].contiguous(), want[1])
    copies, clean = guarded(data, shift=1)
    found(policy_loss, tuple(copies), **RULE)
    assert clean()


def test_gradcheck_and_once_only():
    logp, old, ref, advantages, mask = batch(2, 5, torch.float64)

    def loss(x):
        return policy_loss(x, old, 9.0 * advantages.double(), mask, ref_logp=ref, **RULE).loss

    assert torch.autograd.gradcheck(loss, logp.requires_grad_())
    first = torch.autograd.grad(loss(logp), logp, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiated once only"):
        first.square().sum().backward()


def test_opcheck_and_compile():
    logp, old, ref, advantages, mask = batch(3, 6)
    arguments = (logp, old, ref, advantages, mask, mask.sum(), 0.2, 0.2, 3.0, 0.1, True)
    ops = torch.ops.lightning_weights
    results = torch.library.opcheck(ops.policy_loss.default, arguments)
    gradient = ops.policy_loss(*arguments)[2]
    backward = torch.library.opcheck(ops.policy_loss_backward.default, (torch.tensor(2.0), gradient, logp))
    assert {*results.values(), *backward.values()} == {"SUCCESS"}
    compiled = torch.compile(policy_loss, fullgraph=True, backend="aot_eager")
    data = (logp, old, ref, advantages, mask)
    got, want = (found(function, data, **RULE) for function in (compiled, policy_loss))
    assert got[0] == want[0]
    assert torch.equal(got[1], want[1])


def test_triton_needs_a_device():
    logp, old, _, advantages, mask = batch(2, 3)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET"):
        policy_loss(logp, old, advantages, mask)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"clip_low": -0.1}, "clip_low is -0.1"),
        ({"clip_high": float("nan")}, "clip_high is nan"),
        ({"dual_clip": 1.0}, r"dual_clip is 1.0; allowed is a finite number in \(1.0"),
        ({"kl_coef": -1.0}, "kl_coef is -1.0"),
        ({"kl": "k2"}, "kl is 'k2'; allowed are 'k3', 'mse'"),
        ({"ref_logp": None}, "kl_coef is 0.5 and ref_logp None"),
    ],
)
def test_bad_numbers(rule, message):
    logp, old, ref, advantages, mask = batch(2, 3)
    with pytest.raises(ValueError, match=message):
        policy_loss(logp, old, advantages, mask, **{"ref_logp": ref, **RULE, **rule})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old_logp": torch.zeros(2, 4)}, r"old_logp has shape \(2, 4\) and logp \(2, 3\)"),
        ({"mask": torch.ones(2)}, r"mask has shape \(2,\)"),
        ({"advantages": torch.zeros(3)}, r"advantages have shape \(3,\)"),
        ({"mask": torch.zeros(2, 3)}, "mask has no valid token"),
    ],
)
def test_bad_tensors(change, message):
    logp, old, _, advantages, mask = batch(2, 3)
    with pytest.raises(ValueError, match=message):
        policy_loss(logp, **{"old_logp": old, "advantages": advantages, "mask": mask, **change})


@pytest.mark.parametrize("width", [1, 100, 256, 512, 1024, 4096])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_blocks_hold_a_row_or_the_largest_piece(width, warp_size):
    block, warps = pick_config(width, warp_size)
    assert block >= min(width, 1024)
    assert block == 8 * warps * warp_size  # 128 bits of the narrowest dtype per thread
    assert width % pick_vector(width) == 0


def test_the_cost_model_is_what_moves():
    logp, old, ref, advantages, mask = batch(4, 2048)
    moved = cost(4, 2048)
    blocks = 4 * 2
    assert moved.bytes_read == sum(x.nbytes for x in (logp, old, ref, mask)) + blocks * 8
    assert moved.bytes_written == logp.nbytes + blocks * 12
    leaf, advantage, count = logp.requires_grad_(), advantages[:, None].expand(4, 2048).contiguous(), mask.sum()
    with Traffic() as traffic:
        ratio = (leaf - old).exp()
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * 3.0), loss)
        delta = ref - leaf
        kl = (delta.exp() - delta - 1.0).clamp(-10.0, 10.0)
        ((loss * mask).sum() / count + 0.01 * (kl * mask).sum() / count).backward()
    composed = cost_composed(4, 2048)
    assert traffic.read == pytest.approx(composed.bytes_read, rel=0.02)
    assert traffic.written == pytest.approx(composed.bytes_written, rel=0.02)
    both = (moved.bytes_read + moved.bytes_written) / (composed.bytes_read + composed.bytes_written)
    assert both < 2 / 3

"""The cross-entropy per sample on the CPU against its specification, an oracle in numpy and PyTorch's own loss."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.weighted_cross_entropy import (
    eager,
    weighted_cross_entropy,
    weighted_cross_entropy_reference,
)
from tests.kernels.buffers import guarded, strided
from tests.kernels.cross_entropy_cases import IGNORED, batch, losses_and_gradient, oracle

SHAPES = [(1, 1, 1), (1, 7, 3), (5, 4, 16), (3, 6, 100), (2, 3, 1025)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
BOTH = pytest.mark.parametrize("function", [weighted_cross_entropy_reference, weighted_cross_entropy])


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradient_are_the_oracles(function, shape):
    logits, labels = batch(*shape, torch.float64)
    weights = torch.rand(len(labels), dtype=torch.float64)
    want, want_gradient = oracle(logits, labels, weights)
    losses, gradient = losses_and_gradient(function, logits, labels, weights)
    np.testing.assert_allclose(losses.numpy(), want, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(gradient.numpy(), want_gradient, rtol=1e-11, atol=1e-14)


@BOTH
def test_samples_packed_into_sequences(function):
    logits, labels = batch(2, 9, 5, torch.float64)
    samples = torch.tensor([[0, 0, 0, 3, 3, 3, 3, -1, -1], [2, 2, 2, 2, 2, 1, 1, 1, 3]])
    weights = torch.rand(5, dtype=torch.float64)
    want, want_gradient = oracle(logits, labels, weights, samples, 5)
    losses, gradient = losses_and_gradient(function, logits, labels, weights, samples, 5)
    np.testing.assert_allclose(losses.numpy(), want, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(gradient.numpy(), want_gradient, rtol=1e-11, atol=1e-14)
    assert losses[4] == 0, "a sample that isn't there"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_logits_are_computed_in_fp32(dtype):
    logits, labels = batch(4, 7, 100, dtype)
    weights = torch.rand(4)
    want, want_gradient = oracle(logits, labels, weights)
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, weights)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(losses.numpy(), want, rtol=1e-6)
    np.testing.assert_allclose(gradient.float().numpy(), want_gradient, rtol=TOLERANCE[dtype], atol=1e-7)


def test_one_token_per_sample_is_pytorchs_cross_entropy():
    logits, labels = torch.randn(33, 17), torch.randint(17, (33,))
    torch.testing.assert_close(
        weighted_cross_entropy(logits, labels), F.cross_entropy(logits, labels, reduction="none")
    )


def test_padding_and_a_constant_on_a_row_change_nothing():
    logits, labels = batch(3, 5, 11, torch.float64)
    want = weighted_cross_entropy(logits, labels)
    padded = torch.cat([torch.randn(3, 4, 11), logits, torch.full((3, 2, 11), torch.nan)], dim=1)
    around = F.pad(labels, (4, 2), value=IGNORED)
    torch.testing.assert_close(weighted_cross_entropy(padded, around), want, rtol=1e-14, atol=0)
    shift = 100 * torch.randn(3, 5, 1, dtype=torch.float64)
    torch.testing.assert_close(weighted_cross_entropy(logits + shift, labels), want, rtol=1e-11, atol=0)


def test_ignored_tokens_are_not_read_and_get_no_gradient():
    logits, labels = batch(3, 6, 8)
    labels[1] = IGNORED
    logits[labels == IGNORED] = torch.nan
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.ones(3))
    assert losses.isfinite().all()
    assert losses[1] == 0
    assert not gradient[labels == IGNORED].any()
    assert gradient[labels != IGNORED].any(dim=-1).all()


@pytest.mark.parametrize("layout", [strided, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)])
def test_any_layout(layout):
    logits, labels = batch(4, 5, 12)
    weights = torch.rand(4)
    want = losses_and_gradient(weighted_cross_entropy, logits, labels, weights)
    got = losses_and_gradient(weighted_cross_entropy, layout(logits), strided(labels.double()).long(), weights)
    assert all(map(torch.equal, got, want))


def test_chunks_do_not_change_a_bit(monkeypatch):
    data = (*batch(5, 10, 30), torch.rand(5))
    whole = losses_and_gradient(weighted_cross_entropy, *data)
    monkeypatch.setattr(eager, "CHUNK", 100)
    assert all(map(torch.equal, whole, losses_and_gradient(weighted_cross_entropy, *data)))


def test_inputs_are_only_read():
    logits, labels = batch(3, 4, 9)
    (inside,), clean = guarded([logits])
    losses_and_gradient(weighted_cross_entropy, inside, labels, torch.ones(3))
    assert clean()
    assert torch.equal(inside, logits)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits_do_not_overflow(size):
    logits, labels = batch(3, 4, 9)
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits * size, labels, torch.ones(3))
    torch.testing.assert_close(losses, weighted_cross_entropy_reference(logits.double() * size, labels).float())
    assert gradient.isfinite().all()


def test_excluded_classes_cost_nothing():
    logits, labels = batch(3, 4, 9, torch.float64)
    labels[labels == 2] = 3
    logits[..., 2] = -torch.inf
    keep = [0, 1, 3, 4, 5, 6, 7, 8]
    fewer = torch.where(labels > 2, labels - 1, labels)
    weights = torch.rand(3, dtype=torch.float64)
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, weights)
    want, want_gradient = losses_and_gradient(weighted_cross_entropy, logits[..., keep], fewer, weights)
    torch.testing.assert_close(losses, want)
    torch.testing.assert_close(gradient[..., keep], want_gradient)
    assert not gradient[..., 2].any()


def test_nan_shows_in_its_sample_alone():
    logits, labels = batch(3, 4, 9)
    labels[1, 2] = 4
    logits[1, 2, 0] = torch.nan
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.ones(3))
    assert losses.isnan().tolist() == [False, True, False]
    assert gradient[1].isnan().any()
    assert gradient[[0, 2]].isfinite().all()


def test_no_samples_and_no_tokens():
    assert weighted_cross_entropy(torch.zeros(0, 3, 4), torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)
    losses, gradient = losses_and_gradient(
        weighted_cross_entropy, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.ones(2)
    )
    assert losses.tolist() == [0, 0]
    assert gradient.shape == (2, 0, 4)


def test_loss_scaling_saves_small_half_precision_gradients():
    logits, labels = batch(16, 4, 50, torch.float16)
    weights = torch.full((16,), 1e-3)
    _, want = oracle(logits, labels, weights)
    _, scaled = losses_and_gradient(weighted_cross_entropy, logits, labels, 2.0**12 * weights)
    np.testing.assert_allclose(scaled.double().numpy() / 2.0**12, want, rtol=1e-3, atol=1e-9)


def test_only_weights_make_the_gradient_negative_or_zero():
    logits, labels = batch(2, 3, 5, torch.float64)
    _, once = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.tensor([1.0, 1.0]))
    _, weighted = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.tensor([-2.0, 0.0]))
    torch.testing.assert_close(weighted, once * torch.tensor([-2.0, 0.0])[:, None, None])


@BOTH
def test_gradcheck(function):
    logits, labels = batch(2, 4, 7, torch.float64)
    samples = torch.tensor([[0, 0, 1, 1], [1, 2, 2, -1]])
    for arguments in ((), (samples, 3)):
        assert torch.autograd.gradcheck(lambda x, a=arguments: function(x, labels, *a), logits.requires_grad_())


def test_a_graph_that_is_kept_gives_its_gradients_again():
    logits, labels = batch(3, 4, 7, torch.float64)
    leaf = logits.requires_grad_()
    losses = weighted_cross_entropy(leaf, labels)
    first, second, third = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses)
    _, want = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.ones(3))
    torch.testing.assert_close(first + second + third, want)
    batched = torch.autograd.grad(losses, leaf, torch.eye(3, dtype=torch.float64), is_grads_batched=True)[0]
    torch.testing.assert_close(batched, torch.stack([first, second, third]))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_kept_is_what_is_computed_again(share):
    logits, labels = batch(3, 20, 50, torch.bfloat16)
    labels = torch.where(torch.rand(labels.shape) < share, IGNORED, labels.clamp(min=0))
    kept = weighted_cross_entropy(logits.clone().requires_grad_(), labels)
    with torch.no_grad():
        again = weighted_cross_entropy(logits.clone().requires_grad_(), labels)
    assert not again.requires_grad
    torch.testing.assert_close(kept.detach(), again)
    rows = logits.view(60, 50), labels.view(60), IGNORED
    gradient = torch.full_like(rows[0], torch.nan)
    eager.losses_and_gradients(*rows, gradient)
    losses, normalizers = eager.row_losses(*rows)
    want = eager.row_gradients(torch.ones_like(losses), normalizers, *rows, torch.full_like(rows[0], torch.nan))
    torch.testing.assert_close(gradient, want, rtol=0.01, atol=1e-6)


def test_vanishing_probabilities_have_exact_losses():
    logits = torch.tensor([[[0.0, 100.0], [0.0, 1.0]], [[0.0, 60.0], [0.0, 4000.0]], [[1.0, -torch.inf], [0.0, 0.0]]])
    labels = torch.tensor([[0, IGNORED], [0, 0], [1, IGNORED]])
    losses = weighted_cross_entropy(logits.requires_grad_(), labels)
    torch.testing.assert_close(losses.detach(), torch.tensor([100.0, 2030.0, torch.inf]))


def test_second_derivatives_are_refused():
    logits, labels = batch(2, 4, 7, torch.float64)
    leaf = logits.clone().requires_grad_()
    (first,) = torch.autograd.grad(weighted_cross_entropy(leaf, labels).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        first.square().sum().backward()
    gradient = torch.func.grad(lambda x: weighted_cross_entropy(x, labels).sum())
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.func.grad(lambda x: gradient(x).square().sum())(logits)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_per_sample():
    logits, labels = batch(3, 4, 7, torch.float64)
    single = torch.func.grad(lambda z, y: weighted_cross_entropy(z[None], y[None]).sum())
    _, want = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.ones(3))
    torch.testing.assert_close(torch.func.vmap(single)(logits, labels), want)


def test_opcheck():
    logits, labels = batch(2, 5, 7)
    flat = logits.view(10, 7).requires_grad_(), labels.view(10), IGNORED
    ops = torch.ops.lightning_weights
    results = torch.library.opcheck(ops.weighted_cross_entropy.default, (flat[0].detach(), *flat[1:]))
    losses, normalizers = ops.weighted_cross_entropy(flat[0].detach(), *flat[1:])
    arguments = (torch.ones_like(losses), normalizers, flat[0].detach(), *flat[1:])
    backward = torch.library.opcheck(ops.weighted_cross_entropy_backward.default, arguments)
    kept = torch.library.opcheck(ops.weighted_cross_entropy_kept.default, (flat[0].detach(), *flat[1:]))
    assert len(results) == len(backward) == len(kept) == 4
    assert {*results.values(), *backward.values(), *kept.values()} == {"SUCCESS"}


def test_compiles_without_graph_breaks_and_seldom_again():
    counter = CompileCounter()
    compiled = torch.compile(weighted_cross_entropy, fullgraph=True, backend=counter)
    for length in range(2, 6):
        data = (*batch(3, length, 9), torch.rand(3))
        got, want = (losses_and_gradient(function, *data) for function in (compiled, weighted_cross_entropy))
        torch.testing.assert_close(got, want)
    assert counter.frame_count == 2


def test_compiles_with_autograd():
    data = (*batch(3, 4, 9), torch.rand(3))
    compiled = torch.compile(weighted_cross_entropy, fullgraph=True, backend="aot_eager")
    got, want = (losses_and_gradient(function, *data) for function in (compiled, weighted_cross_entropy))
    torch.testing.assert_close(got, want)


def test_triton_needs_a_device():
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET"):
        weighted_cross_entropy(*batch(2, 3, 4))


@pytest.mark.parametrize("label", [-1, -101, 6])
def test_labels_outside_the_classes(label):
    logits, labels = batch(2, 3, 6)
    labels[1, 2] = label
    with pytest.raises(ValueError, match=r"labels has values from .*; allowed are 0 to 5 for logits of 6 classes"):
        weighted_cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y: (z[0, 0], y), r"logits has shape \(6,\)"),
        (lambda z, y: (z, y[:, :2]), r"labels \(2, 2\)"),
        (lambda z, y: (z, y.int()), "labels torch.int32"),
        (lambda z, y: (z.long(), y), "logits is torch.int64"),
        (lambda z, y: (z, y, y), "samples and num_samples belong together, and num_samples is None"),
        (lambda z, y: (z, y, y[:1], 3), r"samples is torch.int64 of shape \(1, 3\)"),
        (lambda z, y: (z, y, y.float(), 3), r"samples is torch.float32"),
    ],
)
def test_bad_tensors(change, message):
    with pytest.raises(ValueError, match=message):
        weighted_cross_entropy(*change(*batch(2, 3, 6)))

"""The kernels of the cross-entropy per sample in Triton's interpreter, against the oracle and the eager version."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.weighted_cross_entropy import (
    kernel,
    linear_cross_entropy,
    rows,
    weighted_cross_entropy,
    weighted_cross_entropy_reference,
)
from tests.kernels.buffers import Guarded, guarded, strided, ulps
from tests.kernels.cross_entropy_cases import IGNORED, batch, head, losses_and_gradient, oracle

# A product of 0 and infinity, and the power of a logit that is not selected, are computed and then not selected.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
# One class, an odd row, a vector, a ragged block, a full block, one element more, and rows of several blocks.
SHAPES = [(1, 1, 1), (1, 2, 7), (2, 3, 16), (2, 3, 100), (1, 2, 1024), (1, 2, 1025), (2, 2, 9000)]


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradient_are_the_oracles(shape):
    logits, labels = batch(*shape)
    weights = torch.rand(len(labels))
    want, want_gradient = oracle(logits, labels, weights)
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, weights)
    assert losses.dtype == torch.float32
    np.testing.assert_allclose(losses.numpy(), want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), want_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 100), (1, 2, 9000)])
def test_narrow_dtypes(shape, dtype):
    logits, labels = batch(*shape, dtype)
    weights = torch.rand(len(labels))
    want, want_gradient = oracle(logits, labels, weights)
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, weights)
    np.testing.assert_allclose(losses.numpy(), want, rtol=1e-6, atol=1e-7)
    assert gradient.dtype == dtype
    wanted = torch.from_numpy(want_gradient).float()
    # One step of the narrow dtype: the interpreter truncates to bf16 where hardware rounds.
    assert ((gradient.float() - wanted).abs() <= ulps(wanted, dtype) + 1e-7).all()


def test_absorbing_blocks_is_the_whole_row(monkeypatch):
    """Rows that begin with excluded classes, whose first block has no finite logit."""
    logits, labels = batch(2, 2, 1000)
    logits[1, :, :300] = -torch.inf
    labels[:] = 950
    weights = torch.rand(2)
    monkeypatch.setattr(kernel, "pick_config", lambda classes, warp_size: (256, 1))
    got = losses_and_gradient(weighted_cross_entropy, logits, labels, weights)
    with use_kernels("eager"):
        want = losses_and_gradient(weighted_cross_entropy, logits, labels, weights)
    for value, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 3, 100)])
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
def test_nothing_outside_is_touched(shape, shift):
    logits, labels = batch(*shape)
    weights = torch.rand(len(labels))
    (inside,), clean = guarded([logits], shift)
    got = losses_and_gradient(weighted_cross_entropy, inside, labels, weights)
    want = losses_and_gradient(weighted_cross_entropy, logits, labels, weights)
    assert clean()
    assert all(map(torch.equal, got, want))


def test_the_gradient_stays_inside_its_buffer():
    logits, guard = torch.randn(3, 7), Guarded(torch.zeros(3, 7))
    labels = torch.tensor([1, IGNORED, 6])
    kernel.launch_row_gradients(torch.ones(3), torch.zeros(3), logits, labels, IGNORED, guard.tensor)
    assert guard.untouched()
    assert guard.tensor.isfinite().all()
    assert guard.tensor.any(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("layout", [strided, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)])
def test_any_layout(layout):
    logits, labels = batch(3, 4, 12)
    weights = torch.rand(3)
    got = losses_and_gradient(weighted_cross_entropy, layout(logits), strided(labels.double()).long(), weights)
    assert all(map(torch.equal, got, losses_and_gradient(weighted_cross_entropy, logits, labels, weights)))


def test_rows_far_apart_are_reached_with_64_bits(tmp_path):
    stride = 1 << 30  # fits into 32 bits, twice as much does not
    size = 2 * stride + 64
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2 * size)
    memory = torch.from_file(str(tmp_path / "sparse"), size=size, dtype=torch.float16)
    far = memory.as_strided((3, 64), (stride, 1))  # of pages that nobody else touches
    near, labels = batch(1, 3, 64, torch.float16)
    far.copy_(near[0])
    want = losses_and_gradient(weighted_cross_entropy, near[0], labels[0], torch.ones(3))
    got = losses_and_gradient(weighted_cross_entropy, far, labels[0], torch.ones(3))
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits_do_not_overflow(size):
    logits, labels = batch(2, 3, 9)
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits * size, labels, torch.ones(2))
    torch.testing.assert_close(losses, weighted_cross_entropy_reference(logits.double() * size, labels).float())
    assert gradient.isfinite().all()


def test_ignored_tokens_are_not_read_and_nan_shows_elsewhere():
    logits, labels = batch(2, 4, 8)
    labels[0, 1], labels[1] = 3, IGNORED
    logits[labels == IGNORED] = torch.nan
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.ones(2))
    assert losses.isfinite().all()
    assert not gradient[labels == IGNORED].any()
    logits[0, 1, 0] = torch.nan
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.ones(2))
    assert losses.isnan().tolist() == [True, False]
    assert gradient[0, 1].isnan().any()


@pytest.mark.parametrize("label", [-1, 6])
def test_labels_outside_the_classes_give_nan(label, monkeypatch):
    monkeypatch.setattr(rows, "check_labels", lambda *_: None)
    logits, labels = torch.randn(3, 6), torch.tensor([0, label, IGNORED])
    losses, gradient = losses_and_gradient(weighted_cross_entropy, logits, labels, torch.ones(3))
    assert losses.isnan().tolist() == [False, True, False]
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


def test_no_rows():
    losses, gradient = losses_and_gradient(
        weighted_cross_entropy, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.ones(2)
    )
    assert losses.tolist() == [0, 0]
    assert gradient.shape == (2, 0, 4)


@pytest.mark.parametrize("frozen", [False, True])
def test_behind_a_linear_layer(frozen):
    *tensors, labels = head(2, 5, 4, 9, torch.float32)
    found = []
    for mode in ("triton", "eager"):
        leaves = [t.detach().requires_grad_(not frozen or t.ndim == 3) for t in tensors]
        with use_kernels(mode):
            losses = linear_cross_entropy(leaves[0], leaves[1], labels, leaves[2], chunk=3)
            losses.square().sum().backward()
        found.append([losses.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    torch.testing.assert_close(*found)


def test_opcheck():
    logits, labels = torch.randn(5, 7), torch.tensor([0, 6, IGNORED, 3, 1])
    ops = torch.ops.lightning_weights
    results = torch.library.opcheck(ops.weighted_cross_entropy.default, (logits, labels, IGNORED))
    losses, normalizers = ops.weighted_cross_entropy(logits, labels, IGNORED)
    arguments = (torch.ones_like(losses), normalizers, logits, labels, IGNORED)
    backward = torch.library.opcheck(ops.weighted_cross_entropy_backward.default, arguments)
    assert {*results.values(), *backward.values()} == {"SUCCESS"}


def test_dtypes_without_a_kernel_are_refused():
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        weighted_cross_entropy(*batch(2, 3, 6, torch.float64))

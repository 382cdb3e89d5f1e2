"""The kernels of the joint loss in Triton's interpreter, against the oracle and the eager version."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.distillation_loss import distillation_loss, distillation_loss_reference, kernel
from tests.kernels.buffers import Guarded, guarded, strided, ulps
from tests.kernels.distillation_cases import RULE, RULES, batch, oracle, value_and_gradient

# Products of 0 and infinity, and powers of classes outside the teacher's, are computed and then not selected.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
# One class, one odd row, a vector, a ragged block, a full block, one element more, and rows of several blocks.
SHAPES = [(1, 1, 1), (1, 7, 3), (3, 16, 16), (4, 100, 80), (2, 1024, 1024), (2, 1025, 1000), (2, 9000, 4500)]


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_the_oracles(shape, rule):
    data = batch(*shape)
    want, want_gradient = oracle(*data, **rule)
    loss, gradient = value_and_gradient(distillation_loss, *data, **rule)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(want, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient.numpy(), want_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 100, 80), (2, 9000, 4500)])
def test_narrow_dtypes(shape, dtype):
    data = batch(*shape, dtype)
    want, want_gradient = oracle(*data, **RULE)
    loss, gradient = value_and_gradient(distillation_loss, *data, **RULE)
    assert loss.item() == pytest.approx(want, rel=1e-6)
    assert gradient.dtype == dtype
    wanted = torch.from_numpy(want_gradient).float()
    # One step of the narrow dtype: the interpreter truncates to bf16 where hardware rounds.
    assert ((gradient.float() - wanted).abs() <= ulps(wanted, dtype) + 1e-7).all()


def test_student_and_teacher_may_differ_in_dtype():
    student, teacher, targets = batch(6, 9, 5)
    want, want_gradient = oracle(student, teacher.half(), targets, **RULE)
    loss, gradient = value_and_gradient(distillation_loss, student, teacher.half(), targets, **RULE)
    assert loss.item() == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(gradient.numpy(), want_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("block", [256, 1024])
def test_absorbing_blocks_is_the_whole_row(block, monkeypatch):
    """Rows that begin with excluded classes, whose first block has no finite logit."""
    data = batch(4, 1000, 900)
    data[0][1, :300] = data[1][1, :300] = -torch.inf
    data[0][2, 300:900] = data[1][2, 300:900] = -torch.inf
    data[2][:] = 950
    monkeypatch.setattr(kernel, "pick_config", lambda classes, warp_size: (block, block // 256))
    for rule in RULES:
        loss, gradient = value_and_gradient(distillation_loss, *data, **rule)
        with use_kernels("eager"):
            want, want_gradient = value_and_gradient(distillation_loss, *data, **rule)
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(gradient, want_gradient)


@pytest.mark.parametrize("shape", [(3, 7, 5), (3, 100, 80), (2, 300, 8)])
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
def test_nothing_outside_is_touched(shape, shift):
    data = batch(*shape)
    (student, teacher), clean = guarded(data[:2], shift)
    loss, gradient = value_and_gradient(distillation_loss, student, teacher, data[2], **RULE)
    want, want_gradient = oracle(*data, **RULE)
    assert clean()
    assert loss.item() == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(gradient.numpy(), want_gradient, rtol=1e-5, atol=1e-7)


def test_the_gradient_stays_inside_its_buffer(monkeypatch):
    data, guards = batch(3, 7, 5), []

    def empty_like(logits, **options):
        guards.append(Guarded(logits.new_zeros(logits.shape)))
        return guards[0].tensor

    monkeypatch.setattr(kernel.torch, "empty_like", empty_like)
    kernel.launch_distillation_loss_backward(torch.ones(()), torch.zeros(3, 3), *data, 2.0, 0.5, 0.5)
    assert guards[0].untouched()
    assert guards[0].tensor.isfinite().all()


@pytest.mark.parametrize("layout", [strided, lambda x: x.t().contiguous().t(), lambda x: x.repeat(2, 1)[::2]])
def test_any_layout(layout):
    student, teacher, targets = batch(8, 12, 7)
    arranged = layout(student), layout(teacher), strided(targets.double()).long()
    want, want_gradient = oracle(*arranged, **RULE)
    loss, gradient = value_and_gradient(distillation_loss, *arranged, **RULE)
    assert loss.item() == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(gradient.numpy(), want_gradient, rtol=1e-5, atol=1e-7)


def test_rows_far_apart_are_reached_with_64_bits(tmp_path):
    stride = 1 << 30  # fits into 32 bits, twice as much does not
    size = 2 * stride + 64
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2 * size)
    memory = torch.from_file(str(tmp_path / "sparse"), size=size, dtype=torch.float16)
    student = memory.as_strided((3, 64), (stride, 1))  # of pages that nobody else touches
    near, teacher, targets = batch(3, 64, 32, torch.float16)
    student.copy_(near)
    want = value_and_gradient(distillation_loss, near, teacher, targets, **RULE)
    assert all(map(torch.equal, value_and_gradient(distillation_loss, student, teacher, targets, **RULE), want))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits_do_not_overflow(size):
    student, teacher, targets = batch(6, 9, 5)
    loss, gradient = value_and_gradient(distillation_loss, student * size, teacher * size, targets, **RULE)
    want = distillation_loss_reference(student.double() * size, teacher.double() * size, targets, **RULE)
    torch.testing.assert_close(loss, want.float(), rtol=1e-5, atol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("which", [0, 1])
def test_nan_shows(which):
    data = batch(4, 6, 3)
    data[which][1, 2] = torch.nan
    loss, gradient = value_and_gradient(distillation_loss, *data, **RULE)
    assert loss.isnan()
    assert gradient[1].isnan().any()
    assert gradient[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("label", [-100, -1, 6])
def test_labels_outside_the_classes_give_nan(label, monkeypatch):
    monkeypatch.setattr("lightning_weights.kernels.distillation_loss._check_labels", lambda *_: None)
    student, teacher, targets = batch(4, 6, 3)
    targets[2] = label
    loss, gradient = value_and_gradient(distillation_loss, student, teacher, targets, **RULE)
    assert loss.isnan()
    assert gradient[2].isnan().all()
    assert gradient[[0, 1, 3]].isfinite().all()


def test_empty_batch_is_nan_like_cross_entropy():
    loss, gradient = value_and_gradient(distillation_loss, *batch(0, 4, 2), **RULE)
    assert loss.isnan()
    assert gradient.shape == (0, 4)


def test_the_gradient_is_scaled_before_it_is_rounded():
    student, teacher, targets = batch(8, 50, 40, torch.float16)
    _, want = oracle(student, teacher, targets, **RULE)
    _, scaled = value_and_gradient(lambda *x: 2.0**12 * distillation_loss(*x, **RULE), student, teacher, targets)
    np.testing.assert_allclose(scaled.double().numpy() / 2.0**12, want, rtol=1e-3, atol=2e-10)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_per_sample():
    student, teacher, targets = batch(3, 7, 4)
    single = torch.func.grad(lambda o, t, y: distillation_loss(o[None], t[None], y[None], **RULE))
    gradients = torch.func.vmap(single)(student, teacher, targets)
    np.testing.assert_allclose(
        gradients.numpy(), 3 * oracle(student, teacher, targets, **RULE)[1], rtol=1e-5, atol=1e-7
    )


def test_opcheck():
    student, teacher, targets = batch(5, 7, 4)
    tail = (targets, torch.tensor(0.75, dtype=torch.float64), 2.0, 1.0)
    ops = torch.ops.lightning_weights
    results = torch.library.opcheck(ops.distillation_loss.default, (student, teacher, *tail, True, True))
    _, kept = ops.distillation_loss(student, teacher, *tail, True, True)
    arguments = (torch.tensor(2.0), kept, student, teacher, *tail, True)
    backward = torch.library.opcheck(ops.distillation_loss_backward.default, arguments)
    results |= {f"{name} backward": result for name, result in backward.items()}
    assert set(results.values()) == {"SUCCESS"}


def test_dtypes_without_a_kernel_are_refused():
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        distillation_loss(*batch(4, 6, 3, torch.float64), **RULE)

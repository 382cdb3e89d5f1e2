"""The joint loss on the CPU against its specification, an oracle in numpy and PyTorch's own losses."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.distillation_loss import distillation_loss, distillation_loss_reference, eager
from tests.kernels.buffers import guarded, strided
from tests.kernels.distillation_cases import RULE, RULES, batch, oracle, value_and_gradient

SHAPES = [(1, 1, 1), (1, 7, 3), (5, 16, 16), (16, 100, 80), (3, 1025, 1000), (70, 1000, 1)]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("function", [distillation_loss_reference, distillation_loss])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_the_oracles(function, shape, rule):
    data = batch(*shape, torch.float64)
    want, want_gradient = oracle(*data, **rule)
    loss, gradient = value_and_gradient(function, *data, **rule)
    assert loss.item() == pytest.approx(want, rel=1e-13, abs=1e-13)
    np.testing.assert_allclose(gradient.numpy(), want_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_logits_are_computed_in_fp32(dtype, rule):
    data = batch(16, 100, 80, dtype)
    want, want_gradient = oracle(*data, **rule)
    loss, gradient = value_and_gradient(distillation_loss, *data, **rule)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert loss.item() == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(gradient.float().numpy(), want_gradient, rtol=TOLERANCE[dtype], atol=1e-7)


def test_student_and_teacher_may_differ_in_dtype():
    student, teacher, targets = batch(6, 9, 5)
    want, _ = oracle(student, teacher.half(), targets, **RULE)
    assert distillation_loss(student, teacher.half(), targets, **RULE).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("known", [0, 5])
def test_without_distillation_it_is_cross_entropy_bit_for_bit(known, dtype):
    student, teacher, targets = batch(33, 17, known, dtype)
    loss, gradient = value_and_gradient(distillation_loss, student, teacher, targets, **{**RULE, "weight": 0.0})
    want, want_gradient = value_and_gradient(lambda x: F.cross_entropy(x.float(), targets), student)
    assert torch.equal(loss, want)
    assert torch.equal(gradient, want_gradient)


def test_the_relative_form_is_kl_div_as_other_methods_scale_it():
    student, teacher, targets = batch(6, 5, 5, torch.float64)
    alpha, tau = 0.7, 3.0
    log_q, log_p = F.log_softmax(student / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True) * tau**2 / student.numel()
    want = (1 - alpha) * F.cross_entropy(student, targets) + alpha * divergence
    loss = distillation_loss(
        student, teacher, targets, weight=alpha, temperature=tau, kd_scale=tau**2 / 5, relative=True
    )
    torch.testing.assert_close(loss, want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("layout", [strided, lambda x: x.t().contiguous().t(), lambda x: x.repeat(2, 1)[::2]])
def test_any_layout(layout):
    student, teacher, targets = batch(8, 12, 7)
    arranged = layout(student), layout(teacher), strided(targets.double()).long()
    same = arranged[0].contiguous(), arranged[1].contiguous(), arranged[2]
    loss, gradient = value_and_gradient(distillation_loss, *arranged, **RULE)
    want, want_gradient = value_and_gradient(distillation_loss, *same, **RULE)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(gradient, want_gradient)


def test_chunks_do_not_change_a_bit(monkeypatch):
    data = batch(50, 30, 20)
    whole = value_and_gradient(distillation_loss, *data, **RULE)
    monkeypatch.setattr(eager, "CHUNK", 100)
    pieces = value_and_gradient(distillation_loss, *data, **RULE)
    assert all(map(torch.equal, whole, pieces))


def test_inputs_are_only_read():
    data = batch(5, 9, 4)
    (student, teacher), clean = guarded(data[:2])
    value_and_gradient(distillation_loss, student, teacher, data[2], **RULE)
    assert clean()
    assert torch.equal(student, data[0])
    assert torch.equal(teacher, data[1])


@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("rule", RULES)
def test_large_logits_do_not_overflow(size, rule):
    student, teacher, targets = batch(6, 9, 5)
    loss, gradient = value_and_gradient(distillation_loss, student * size, teacher * size, targets, **rule)
    want = distillation_loss_reference(student.double() * size, teacher.double() * size, targets, **rule)
    torch.testing.assert_close(loss, want.float(), rtol=1e-5, atol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_excluded_classes_cost_nothing(rule):
    student, teacher, _ = batch(6, 9, 5, torch.float64)
    targets = torch.tensor([0, 1, 4, 6, 7, 8])
    student[:, 2] = teacher[:, 2] = -torch.inf
    keep = [0, 1, 3, 4, 5, 6, 7, 8]
    relabelled = targets - (targets > 2).long()
    want, want_gradient = oracle(student[:, keep], teacher[:, [0, 1, 3, 4]], relabelled, **rule)
    loss, gradient = value_and_gradient(distillation_loss, student, teacher, targets, **rule)
    assert loss.item() == pytest.approx(want)
    np.testing.assert_allclose(gradient[:, keep].numpy(), want_gradient, rtol=1e-12, atol=1e-15)
    assert not gradient[:, 2].any()


@pytest.mark.parametrize("which", [0, 1])
def test_nan_shows(which):
    data = batch(4, 6, 3)
    data[which][1, 2] = torch.nan
    loss, gradient = value_and_gradient(distillation_loss, *data, **RULE)
    assert loss.isnan()
    assert gradient[1].isnan().any()
    assert gradient[[0, 2, 3]].isfinite().all()


def test_empty_batch_is_nan_like_cross_entropy():
    loss, gradient = value_and_gradient(distillation_loss, *batch(0, 4, 2), **RULE)
    assert loss.isnan()
    assert gradient.shape == (0, 4)


def test_the_teacher_is_a_constant():
    student, teacher, targets = batch(4, 6, 3)
    teacher.requires_grad_()
    distillation_loss(student.requires_grad_(), teacher, targets, **RULE).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_loss_scaling_saves_small_half_precision_gradients():
    student, teacher, targets = batch(64, 50, 40, torch.float16)
    _, want = oracle(student, teacher, targets, **RULE)
    _, scaled = value_and_gradient(lambda *x: 2.0**12 * distillation_loss(*x, **RULE), student, teacher, targets)
    np.testing.assert_allclose(scaled.double().numpy() / 2.0**12, want, rtol=1e-3, atol=2e-10)


@pytest.mark.parametrize("rule", RULES)
def test_gradcheck(rule):
    student, teacher, targets = batch(4, 7, 5, torch.float64)
    for function in (distillation_loss_reference, distillation_loss):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, teacher, targets, **rule), student.requires_grad_())


def test_second_derivatives_are_refused():
    student, teacher, targets = batch(4, 7, 5, torch.float64)
    gradient = torch.func.grad(lambda x: distillation_loss(x, teacher, targets, **RULE))
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.func.grad(lambda x: gradient(x).square().sum())(student)
    loss = distillation_loss(student.requires_grad_(), teacher, targets, **RULE)
    first = torch.autograd.grad(loss, student, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiated once only"):
        first.square().sum().backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("weight", [0.0, 0.75])
def test_gradients_per_sample(weight):
    student, teacher, targets = batch(5, 7, 4, torch.float64)
    rule = {**RULE, "weight": weight}
    single = torch.func.grad(lambda o, t, y: distillation_loss(o[None], t[None], y[None], **rule))
    gradients = torch.func.vmap(single)(student, teacher, targets)
    for row in range(5):
        _, want = value_and_gradient(
            distillation_loss, *(x[row : row + 1] for x in (student, teacher, targets)), **rule
        )
        torch.testing.assert_close(gradients[row], want[0])


def test_opcheck():
    student, teacher, targets = batch(5, 7, 4)
    share, grad_output = torch.tensor(0.75, dtype=torch.float64), torch.tensor(2.0)
    tail = (targets, share, 2.0, 1.0)
    ops = torch.ops.lightning_weights
    results = torch.library.opcheck(ops.distillation_loss.default, (student, teacher, *tail, False, False))
    _, kept = ops.distillation_loss(student, teacher, *tail, False, False)
    arguments = (grad_output, kept, student, teacher, *tail, False)
    backward = torch.library.opcheck(ops.distillation_loss_backward.default, arguments)
    results |= {f"{name} backward": result for name, result in backward.items()}
    assert len(results) == 8
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_twice_for_any_number_of_steps():
    """The first step fixes sizes, the second makes them symbols; λ and C_o then change without a new graph."""
    counter = CompileCounter()
    compiled = torch.compile(distillation_loss, fullgraph=True, backend=counter)
    for known in range(2, 9):
        data = batch(6, known + 2, known)
        rule = {**RULE, "weight": known / (known + 2)}
        got, want = (value_and_gradient(function, *data, **rule) for function in (compiled, distillation_loss))
        assert all(map(torch.equal, got, want))
    assert counter.frame_count == 2


def test_compiles_with_autograd_without_graph_breaks():
    data = batch(5, 9, 4)
    compiled = torch.compile(distillation_loss, fullgraph=True, backend="aot_eager")
    for weight in (0.0, 0.5):
        got, want = (value_and_gradient(f, *data, **{**RULE, "weight": weight}) for f in (compiled, distillation_loss))
        torch.testing.assert_close(got, want)


def test_triton_needs_a_device():
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET"):
        distillation_loss(*batch(4, 6, 3), **RULE)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"temperature": 0.0}, r"temperature is 0.0; allowed is a finite number in \(0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"weight": -0.1}, r"weight is -0.1; allowed is a number in \[0, 1\]"),
        ({"weight": 1.1}, "weight is 1.1"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"kd_scale": -1.0}, "kd_scale is -1.0"),
    ],
)
def test_bad_numbers(rule, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss(*batch(4, 6, 3), **{**RULE, **rule})


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("label", [-100, -1, 6])
def test_labels_outside_the_classes(label, weight):
    student, teacher, targets = batch(4, 6, 3)
    targets[2] = label
    with pytest.raises(ValueError, match=r"targets has labels .*; allowed are 0 to 5 for logits of 6 classes"):
        distillation_loss(student, teacher, targets, **{**RULE, "weight": weight})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, t, y: (o[0], t, y), r"logits has shape \(6,\)"),
        (lambda o, t, y: (o, t[:, 0], y), r"teacher_logits \(4,\)"),
        (lambda o, t, y: (o, t, y[:3]), r"targets \(3,\)"),
        (lambda o, t, y: (o, t[:3], y), r"teacher_logits has shape \(3, 3\) for logits of shape \(4, 6\)"),
        (lambda o, t, y: (o, t[:, :0], y), "use weight=0"),
        (lambda o, t, y: (o[:, :2], t, y % 2), "1 to 2 columns, the student's first classes"),
        (lambda o, t, y: (o, t, y.int()), "targets torch.int32"),
        (lambda o, t, y: (o.long(), t, y), "logits is torch.int64"),
    ],
)
def test_bad_tensors(change, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss(*change(*batch(4, 6, 3)), **RULE)

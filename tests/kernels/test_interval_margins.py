"""The margin head on the CPU against its specification, the corners of the box, and a bound on its memory."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lightning_weights.kernels.interval_affine import interval_margins, interval_margins_reference
from tests.kernels.interval_affine_cases import NAMES, gradients, margin_oracle, operands

# (samples, inputs, classes): empty, two classes, one per class, more classes than samples, ragged tiles, full tiles.
SHAPES = ((0, 3, 4), (5, 3, 2), (4, 6, 4), (3, 7, 20), (33, 20, 10), (16, 64, 8))


def case(shape, dtype=torch.float32):
    data = operands(shape, dtype)
    return [data[name] for name in NAMES[:4]], torch.randint(0, shape[2], (shape[0],))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", [interval_margins, interval_margins_reference])
def test_margins_are_attained_at_corners(function, shape):
    inputs, labels = case(shape, torch.float64)
    got = function(*inputs, labels).numpy()
    np.testing.assert_allclose(
        got, margin_oracle(dict(zip(NAMES, inputs, strict=False)), labels), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sound", [True, False])
def test_fp32_is_the_reference(bias, sound):
    inputs, labels = case((33, 20, 10))
    inputs[3] = inputs[3] if bias else None
    got, want = (function(*inputs, labels, sound=sound) for function in (interval_margins, interval_margins_reference))
    torch.testing.assert_close(got, want)


def test_gradients_pass_gradcheck():
    inputs, labels = case((3, 4, 5), torch.float64)
    inputs[2][:, 0] = torch.arange(5)  # the absolute value has no derivative where two weights are equal
    assert torch.autograd.gradcheck(lambda *each: interval_margins(*each, labels), [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_the_reference(shape):
    inputs, labels = case(shape, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    got, want = (gradients([f(*inputs, labels)], inputs) for f in (interval_margins, interval_margins_reference))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", range(4))
def test_only_what_needs_a_gradient_gets_one(wanted):
    inputs, labels = case((9, 4, 5))
    everything = [tensor.clone().requires_grad_() for tensor in inputs]
    inputs[wanted].requires_grad_()
    (alone,) = gradients([interval_margins(*inputs, labels)], [inputs[wanted]])
    assert torch.equal(alone, gradients([interval_margins(*everything, labels)], everything)[wanted])


def test_merging_is_tighter_than_subtracting_bounds():
    (center, radius, weight, bias), labels = case((33, 20, 10))
    margins = interval_margins(center, radius, weight, bias, labels)
    logits, widths = center @ weight.t() + bias, radius @ weight.abs().t()
    own = (logits - widths).gather(1, labels[:, None])
    others = [[j for j in range(10) if j != y] for y in labels.tolist()]
    apart = own - (logits + widths).gather(1, torch.tensor(others))
    assert (margins >= apart - 1e-5).all()
    assert (margins > apart + 1e-3).any()


def test_sound_margins_are_below_what_exact_arithmetic_gives():
    inputs, labels = case((64, 700, 7))
    inputs[1] *= 1e-5
    exact = margin_oracle(dict(zip(NAMES, inputs, strict=False)), labels)
    plain, sound = (interval_margins(*inputs, labels, sound=sound).double().numpy() for sound in (False, True))
    assert (plain > exact).any()
    assert (sound <= exact).all()
    np.testing.assert_allclose(sound, exact, atol=0.1)


def test_permuted_classes_permute_margins():
    (center, radius, weight, bias), _ = case((6, 5, 4))
    labels, order = torch.zeros(6, dtype=torch.int64), torch.tensor([0, 3, 1, 2])
    margins = interval_margins(center, radius, weight, bias, labels)
    permuted = interval_margins(center, radius, weight[order], bias[order], labels)
    torch.testing.assert_close(permuted, margins[:, order[1:] - 1])


def peak_bytes(function):
    """The most that was allocated at once while a function ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(live.max())


def test_memory_stays_below_a_tenth_of_the_rows_of_all_samples():
    inputs, labels = case((128, 512, 200))
    inputs = [tensor.requires_grad_() for tensor in inputs]
    rows = 128 * 199 * 512 * 4
    assert peak_bytes(lambda: interval_margins_reference(*inputs, labels).sum().backward()) > rows
    assert peak_bytes(lambda: interval_margins(*inputs, labels).sum().backward()) < rows / 10


def test_what_does_not_fit_is_named(monkeypatch):
    (center, radius, weight, bias), labels = case((4, 3, 5))
    for message, arguments in [
        (r"labels contain 5; allowed are 0 to 4", (center, radius, weight, bias, torch.tensor([0, 1, 5, 2]))),
        (r"labels contain -1", (center, radius, weight, bias, torch.tensor([0, 1, -1, 2]))),
        (r"labels are torch.int32 of shape \(4,\)", (center, radius, weight, bias, labels.int())),
        (r"allowed are \(N, in\) and int64 of \(N,\)", (center, radius, weight, bias, labels[1:])),
        (r"weight has 1 rows; a margin needs at least two", (center, radius, weight[:1], bias[:1], labels)),
        (r"bias has shape \(4,\)", (center, radius, weight, bias[1:], labels)),
    ]:
        with pytest.raises(ValueError, match=message):
            interval_margins(*arguments)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    with pytest.raises(ValueError, match="'medium'; sound=True needs"):
        interval_margins(center, radius, weight, bias, labels, sound=True)


def test_per_sample_gradients():
    (center, radius, weight, bias), labels = case((5, 4, 3), torch.float64)

    def loss(weight, center, radius, label, function):
        return function(center[None], radius[None], weight, bias, label[None]).square().sum()

    with pytest.warns(UserWarning, match="batching rule"):
        got = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0, None))(
            weight, center, radius, labels, interval_margins
        )
    samples = zip(center, radius, labels, strict=True)
    want = [torch.func.grad(loss)(weight, *sample, interval_margins_reference) for sample in samples]
    torch.testing.assert_close(got, torch.stack(want))


def test_second_derivatives_raise():
    (center, radius, weight, bias), labels = case((5, 4, 3))
    first = torch.func.grad(lambda weight: interval_margins(center, radius, weight, bias, labels).square().sum())
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.func.grad(lambda weight: first(weight).sum())(weight)


def test_compiles_without_graph_breaks():
    inputs, labels = case((5, 4, 3))
    inputs = [tensor.requires_grad_() for tensor in inputs]
    compiled = torch.compile(lambda *each: interval_margins(*each, labels), fullgraph=True, backend="aot_eager")
    got, want = (
        gradients([function(*inputs)], inputs) for function in (compiled, lambda *x: interval_margins(*x, labels))
    )
    assert all(map(torch.equal, got, want))


def test_opcheck():
    (center, radius, weight, bias), labels = case((5, 4, 3))
    forward = torch.ops.lightning_weights.interval_margins.default
    backward = torch.ops.lightning_weights.interval_margins_backward.default
    for vector in (bias, None):
        results = torch.library.opcheck(forward, (center, radius, weight, vector, labels, False))
        assert set(results.values()) == {"SUCCESS"}
    for needed in ([True] * 4, [False, False, True, False]):
        results = torch.library.opcheck(backward, (torch.randn(5, 2), center, radius, weight, labels, needed))
        assert set(results.values()) == {"SUCCESS"}

"""The CLASSP step on the CPU against its specification and an oracle in numpy."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_weights.kernels.classp_step import classp_step, classp_step_reference, eager, magnitude_threshold
from tests.kernels.buffers import SHAPES, guarded, strided
from tests.kernels.classp_cases import RULE, lists, oracle, take

RULES = [{**RULE, "power": power, "apply_decay": decay} for power in (1.0, 2.0, 3.0) for decay in (True, False)]


@pytest.mark.parametrize("rule", RULES)
def test_reference_is_algorithm_1(rule):
    params, grads, grad_sums = lists([(5, 7)], torch.float64, torch.float64)
    w, a, mask = classp_step_reference(params[0], grads[0], grad_sums[0], **rule)
    for ours, theirs in zip((w, a, mask), oracle(params[0], grads[0], grad_sums[0], rule), strict=True):
        np.testing.assert_allclose(ours.flatten().numpy(), theirs, rtol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_eager_is_the_reference(rule, dtype):
    total = torch.promote_types(dtype, torch.float32)
    data = lists([*SHAPES, (2, 3, 4, 5)], dtype, total)
    params, grad_sums, counts = take(classp_step, data, rule)
    accepted = 0
    for got, got_sum, *triple in zip(params, grad_sums, *data, strict=True):
        want, want_sum, mask = classp_step_reference(*triple, **rule)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(got_sum, want_sum)
        # Bits, not values: rejected weights and accumulators are the ones that were there.
        assert torch.equal(got[~mask], triple[0][~mask])
        assert torch.equal(got_sum[~mask], triple[2][~mask])
        accepted += int(mask.sum())
    assert counts == [accepted, 0]


@pytest.mark.parametrize("rule", RULES[:2])
def test_eager_is_the_oracle_over_several_steps(rule):
    (param,), _, (grad_sum,) = lists([(40,)], torch.float64, torch.float64)
    w, a = param.clone(), grad_sum.clone()
    for _ in range(5):
        grad = torch.randn(40, dtype=torch.float64) * 0.01
        w64, a64, _ = oracle(w, grad, a, rule)
        classp_step([w], [grad], [a], torch.zeros(2, dtype=torch.int64), **rule)
        np.testing.assert_allclose(w.numpy(), w64, rtol=1e-14)
        np.testing.assert_allclose(a.numpy(), a64, rtol=1e-14)


def test_nothing_outside_is_touched():
    params, clean_params = guarded(lists(SHAPES)[0])
    grads, _ = guarded(lists(SHAPES)[1])
    grad_sums, clean_sums = guarded(lists(SHAPES)[2])
    classp_step(params, grads, grad_sums, torch.zeros(2, dtype=torch.int64), **RULE)
    assert clean_params()
    assert clean_sums()


@pytest.mark.parametrize(
    "layout",
    [strided, torch.t, lambda x: x[::3], lambda x: x.view(10, 4, 5, 5).to(memory_format=torch.channels_last)],
    ids=["every second", "transposed", "rows", "channels last"],
)
@pytest.mark.parametrize("chunk", [32, 1 << 19])
def test_any_layout(layout, chunk, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", chunk)
    data = [[layout(tensor) for tensor in tensors] for tensors in lists([(20, 50)])]
    data[1] = [data[1][0].contiguous()]  # gradients may be laid out in another way than their weights
    params, grad_sums, counts = take(classp_step, data, RULE)
    want, want_sum, mask = classp_step_reference(*(tensors[0] for tensors in data), **RULE)
    torch.testing.assert_close(params[0], want)
    torch.testing.assert_close(grad_sums[0], want_sum)
    assert counts[0] == mask.sum()


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_chunks_do_not_change_a_bit(power, monkeypatch):
    data, rule = lists([(3, 1111), (64,)]), {**RULE, "power": power}
    whole = take(classp_step, data, rule)
    monkeypatch.setattr(eager, "CHUNK", 100)
    pieces = take(classp_step, data, rule)
    assert all(map(torch.equal, whole[0] + whole[1], pieces[0] + pieces[1]))
    assert whole[2] == pieces[2]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_gradients_are_skipped_and_counted(power, bad):
    data, rule = lists([(50,), (60,)]), {**RULE, "power": power}
    data[1][0][[3, 7]] = bad
    params, grad_sums, counts = take(classp_step, data, rule)
    mask = classp_step_reference(data[0][0], data[1][0], data[2][0], **rule)[2]
    assert not mask[[3, 7]].any()
    assert counts[1] == 2
    assert torch.equal(params[0][[3, 7]], data[0][0][[3, 7]])
    assert torch.equal(grad_sums[0][[3, 7]], data[2][0][[3, 7]])
    assert all(tensor.isfinite().all() for tensor in params + grad_sums)
    assert not torch.equal(params[0], data[0][0])


def test_cancelling_gradients_are_accepted_with_power_2():
    param, grad_sum = torch.zeros(2), torch.zeros(2)
    rule = {**RULE, "power": 2.0}
    classp_step([param], [torch.tensor([1.0, -1.0])], [grad_sum], torch.zeros(2, dtype=torch.int64), **rule)
    assert grad_sum.tolist() == [1.0, 1.0]


def test_gradients_whose_square_leaves_fp32_are_exact():
    grads = torch.tensor([1e-30, 1e30, 0.0])
    param, grad_sum, counts = torch.zeros(3), torch.zeros(3), torch.zeros(2, dtype=torch.int64)
    classp_step([param], [grads], [grad_sum], counts, **{**RULE, "threshold": 0.0})
    assert torch.equal(grad_sum, grads)
    assert counts.tolist() == [2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_magnitude_threshold_is_the_squared_one(dtype):
    for threshold in (0.0, 1e-6, 0.1, 0.25, 2.0):
        magnitude = torch.tensor(magnitude_threshold(threshold, dtype), dtype=dtype)
        above = torch.nextafter(magnitude, torch.tensor(torch.inf, dtype=dtype))
        assert Fraction(magnitude.item()) ** 2 <= Fraction(threshold) < Fraction(above.item()) ** 2


def test_counting_is_optional_and_adds_up():
    data = lists([(100,)])
    counts = torch.tensor([5, 7])
    classp_step(*data, counts, **RULE, count_accepted=False)
    assert counts.tolist() == [5, 7]


def test_without_history_the_first_step_has_the_length_of_the_rate():
    param, grad_sum = torch.zeros(4), torch.zeros(4)
    grad = torch.tensor([3.0, -2.0, 0.5, -0.1])
    for power in (1.0, 2.0, 3.0):
        rule = {**RULE, "power": power, "eps": 1e-30}
        new, _, _ = classp_step_reference(param, grad, grad_sum, **rule)
        torch.testing.assert_close(new, -0.1 * grad.sign())


def test_opcheck():
    data = lists([(10,), (3, 4)])
    arguments = (*data, torch.zeros(2, dtype=torch.int64), 0.1, 1e-4, 1.0, 1e-5, True, True)
    results = torch.library.opcheck(torch.ops.lightning_weights.classp_step.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_autograd_notices_the_change():
    param = torch.nn.Parameter(torch.ones(3))
    loss = param.square().sum()
    with torch.no_grad():
        classp_step([param], [torch.ones(3)], [torch.zeros(3)], torch.zeros(2, dtype=torch.int64), **RULE)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_compiles_without_graph_breaks():
    data = lists([(10,), (3, 4)])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(params, grads, grad_sums, counts, **rule):
        classp_step(params, grads, grad_sums, counts, **rule)

    eager_result, compiled_result = (take(function, data, RULE) for function in (classp_step, step))
    assert all(map(torch.equal, eager_result[0] + eager_result[1], compiled_result[0] + compiled_result[1]))
    assert eager_result[2] == compiled_result[2]

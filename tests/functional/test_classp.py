"""The compositions of the CLASSP step: multi-tensor, compiled and as published."""

import pytest
import torch

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional import classp as functional
from lightning_weights.functional.classp import classp_step_compiled, classp_step_foreach, published_step
from lightning_weights.kernels.classp_step import classp_step
from tests.kernels.buffers import SHAPES, strided
from tests.kernels.classp_cases import RULE, lists, take

RULES = [{**RULE, "power": power, "apply_decay": decay} for power in (1.0, 2.0, 3.0) for decay in (True, False)]


@pytest.fixture
def small_graphs(monkeypatch):
    monkeypatch.setattr(functional, "GRAPH_SIZE", 2)  # compiles in seconds
    functional._compiled.cache_clear()


def _assert_alike(one, other):
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])
    assert one[2] == other[2]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_foreach_is_the_loop(rule, dtype):
    data = lists(SHAPES, dtype, torch.promote_types(dtype, torch.float32))
    data[1][4][:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    _assert_alike(take(classp_step_foreach, data, rule), take(classp_step, data, rule))


def test_foreach_takes_an_empty_list():
    counts = torch.zeros(2, dtype=torch.int64)
    classp_step_foreach([], [], [], counts, **RULE)
    assert counts.tolist() == [0, 0]


def test_compiled_is_the_loop(small_graphs):
    data = lists([(0,), (1,), (1000,), (40, 50)])
    data = [[*tensors, strided(tensors[2])] for tensors in data]
    data[1][2][:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    _assert_alike(take(classp_step_compiled, data, RULE), take(classp_step, data, RULE))


def test_equal_shapes_share_a_graph_and_schedules_do_not_compile_again(small_graphs):
    compiled = torch._dynamo.utils.counters["stats"]
    data = lists([(64,), (31, 7), (64,), (31, 7), (64,), (64,)])
    before = compiled["unique_graphs"]
    for lr, decay, threshold in ((0.1, True, 0.0), (0.01, False, 1e-4), (1e-3, True, 1e-5)):
        rule = {**RULE, "lr": lr, "apply_decay": decay, "threshold": threshold}
        _assert_alike(take(classp_step_compiled, data, rule), take(classp_step, data, rule))
    assert compiled["unique_graphs"] == before + 2


def _published(w, g, a, rule):
    """One tensor of the published code, in Python numbers."""
    w, g, a = w.double().tolist(), g.double().tolist(), a.double().tolist()
    if not float(any(x * x != 0 for x in g)) > rule["threshold"]:
        return w, a
    a = [y + abs(x) for x, y in zip(g, a, strict=True)]
    scales = [(rule["eps"] + y) ** (1 / rule["power"]) if rule["apply_decay"] else 1.0 for y in a]
    return [z - rule["lr"] * x / s for z, x, s in zip(w, g, scales, strict=True)], a


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99, 1.0])
def test_published_step(rule, threshold):
    data, rule = lists([(20,), (6,), (9,)], torch.float64, torch.float64), {**rule, "threshold": threshold}
    data[1][1].zero_()
    params, grad_sums, counts = take(published_step, data, rule)
    for got, got_sum, *triple in zip(params, grad_sums, *data, strict=True):
        want, want_sum = _published(*triple, rule)
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
        torch.testing.assert_close(got_sum, torch.tensor(want_sum, dtype=torch.float64))
    assert torch.equal(params[1], data[0][1])
    assert counts == ([29, 0] if threshold < 1 else [0, 0])


def test_published_step_skips_and_counts_what_is_not_finite():
    data = lists([(20,)])
    data[1][0][[2, 5]] = torch.tensor([float("nan"), float("inf")])
    params, grad_sums, counts = take(published_step, data, {**RULE, "threshold": 0.5})
    assert counts == [18, 2]
    assert torch.equal(params[0][[2, 5]], data[0][0][[2, 5]])
    assert torch.equal(grad_sums[0][[2, 5]], data[2][0][[2, 5]])
    assert params[0].isfinite().all()


def test_published_step_refuses_shards():
    class Sharded(torch.Tensor):
        placements = ("Shard(0)",)

    data = lists([(4,)])
    data[0] = [data[0][0].as_subclass(Sharded)]
    with pytest.raises(ShardedParameterError, match="cannot act on shards"):
        published_step(*data, torch.zeros(2, dtype=torch.int64), **RULE)

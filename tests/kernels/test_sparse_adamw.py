"""The sparse AdamW step on the CPU against its specification and an oracle in numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import ShardedParameterError
from lightning_weights.kernels.sparse_adamw import eager, mixed, sparse_adamw, sparse_adamw_reference
from lightning_weights.kernels.sparse_adamw.reference import round_stochastically
from tests.kernels.buffers import guarded, strided, ulps
from tests.kernels.sparse_adamw_cases import RULE, chosen_mask, gathered, lists, oracle, sizes, take


def references(data, **changes):
    rows = zip(*data, sizes(data), strict=True)
    return [sparse_adamw_reference(*tensors, step_size=size, **{**RULE, **changes}) for *tensors, size in rows]


def test_reference_is_the_equation():
    data = lists((7, 40), torch.float64, torch.float64)
    rows = zip(references(data), *data, sizes(data), strict=True)
    for ours, *tensors, size in rows:
        for got, want in zip(ours, oracle(*tensors, size), strict=True):
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-13)


@pytest.mark.parametrize("form", [lambda data: data, gathered], ids=["dense", "gathered"])
@pytest.mark.parametrize(
    ("dtype", "state"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_eager_is_the_reference(dtype, state, form):
    data = form(lists(dtype=dtype, state=state))
    results = take(sparse_adamw, data)
    for *got, want, before, indices in zip(*results, references(data), data[0], data[1], strict=True):
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs)
        outside = ~chosen_mask(before, indices)
        assert torch.equal(got[0][outside], before[outside])  # bits, not values


def test_eager_is_the_oracle_over_several_steps():
    (param,), (idx,), _, (m,), (v,) = lists((40,), torch.float64, torch.float64)
    for _ in range(5):
        grad = torch.randn(param.shape, dtype=torch.float64)
        want = oracle(param, idx, grad, m, v, 0.3)
        sparse_adamw([param], [idx], [grad], [m], [v], [0.3], **RULE)
        for ours, theirs in zip((param, m, v), want, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-13)


def test_first_step_has_the_length_of_the_rate():
    w, idx, grad = torch.zeros(2, 3), torch.tensor([0, 2, 4], dtype=torch.int32), torch.randn(2, 3)
    step = 0.1 * (1 - 0.95) ** 0.5 / (1 - 0.9)
    sparse_adamw([w], [idx], [grad], [torch.zeros(3)], [torch.zeros(3)], [step], beta1=0.9, beta2=0.95, eps=0.0)
    torch.testing.assert_close(w, -0.1 * grad.sign() * chosen_mask(w, idx))


def test_all_entries_chosen_is_adamw_of_torch():
    """torch divides the root by its bias correction before it adds eps, so that its eps is another one."""
    weight = torch.randn(4, 5, dtype=torch.float64)
    theirs, idx = torch.nn.Parameter(weight.clone()), torch.arange(20, dtype=torch.int32)
    m, v = (torch.zeros(20, dtype=torch.float64) for _ in range(2))
    optimizer = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.95))
    for t in range(1, 6):
        correction = (1 - 0.95**t) ** 0.5
        optimizer.param_groups[0]["eps"] = 1e-3 / correction
        theirs.grad = torch.randn_like(theirs)
        optimizer.step()
        size = 0.1 * correction / (1 - 0.9**t)
        sparse_adamw([weight], [idx], [theirs.grad], [m], [v], [size], beta1=0.9, beta2=0.95, eps=1e-3)
        torch.testing.assert_close(weight, theirs.data, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "layout",
    [strided, torch.t, lambda x: x[::3], lambda x: x.clone()],
    ids=["every second", "transposed", "rows", "plain"],
)
def test_any_layout(layout):
    params, indices, grads, firsts, seconds = lists((60,))
    params, grads = [layout(params[0])], [layout(grads[0]).contiguous()]
    keep = indices[0] < params[0].numel()
    data = [params, [indices[0][keep]], grads, [firsts[0][keep]], [seconds[0][keep]]]
    (param,), (first,), _ = take(sparse_adamw, data)
    want, want_first, _ = references(data)[0]
    torch.testing.assert_close(param, want)
    torch.testing.assert_close(first, want_first)
    assert param.stride() == params[0].stride()


def test_chunks_do_not_change_a_bit(monkeypatch):
    data = lists((1111, 64))
    whole = take(sparse_adamw, data)
    monkeypatch.setattr(eager, "CHUNK", 100)
    pieces = take(sparse_adamw, data)
    assert all(all(map(torch.equal, *pair)) for pair in zip(whole, pieces, strict=True))


def test_nothing_outside_is_touched():
    data = lists()
    cuts = [guarded(tensors) if i != 1 else (tensors, lambda: True) for i, tensors in enumerate(data)]
    tensors = [cut[0] for cut in cuts]
    sparse_adamw(*tensors, sizes(data), **RULE)
    assert all(clean() for _, clean in cuts)
    assert all(torch.equal(got, want) for got, want in zip(tensors[2], data[2], strict=True)), "a gradient has changed"


@pytest.mark.parametrize("form", [lambda data: data, gathered], ids=["dense", "gathered"])
def test_stochastic_rounding_takes_a_neighbour_and_repeats(form):
    data = form(lists((1000, 1025), torch.bfloat16))
    exact = references([[p.float() for p in data[0]], *data[1:]])
    first, again, other = (take(sparse_adamw, data, rounding_seed=seed)[0] for seed in (3, 3, 4))
    nearest = take(sparse_adamw, data)[0]
    for got, (want, *_) in zip(first, exact, strict=True):
        assert ((got.float() - want).abs() <= ulps(want.abs(), torch.bfloat16)).all()
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not any(map(torch.equal, first, nearest))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_stochastic_rounding_is_right_on_average(part):
    low = torch.tensor(1.0, dtype=torch.bfloat16)
    step = ulps(low.float(), torch.bfloat16).item()
    values = torch.full((100_000,), 1.0 + part * step)
    for sign in (1.0, -1.0):
        rounded = round_stochastically(sign * values, torch.arange(len(values)), seed=7).float()
        share = (rounded.abs() > 1.0).float().mean().item()
        assert share == pytest.approx(part, abs=0.006)  # four standard deviations
    many_steps = torch.stack([round_stochastically(values[:100], torch.arange(100), mixed(s)) for s in range(400)])
    assert ((many_steps > 1).float().mean(0) - part).abs().max() < 0.12


def test_stochastic_rounding_leaves_what_is_no_number():
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -2.0])
    rounded = round_stochastically(values, torch.arange(7), seed=1)
    torch.testing.assert_close(rounded.float(), values, equal_nan=True, rtol=0, atol=0)


def test_other_dtypes_round_to_the_nearest():
    data = lists((100,))
    assert torch.equal(take(sparse_adamw, data)[0][0], take(sparse_adamw, data, rounding_seed=1)[0][0])


def test_opcheck():
    data = lists((10, 3))
    arguments = (*data, sizes(data), 0.9, 0.95, 1e-6, 1.0, None)
    results = torch.library.opcheck(torch.ops.lightning_weights.sparse_adamw.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_empty_lists_are_nothing_to_do():
    assert sparse_adamw([], [], [], [], [], [], **RULE) is None


def test_sharded_tensors_are_refused():
    class Sharded:
        placements = ()

    with pytest.raises(ShardedParameterError, match="one of these is sharded"):
        sparse_adamw([Sharded()], [], [], [], [], [], **RULE)


def test_autograd_notices_the_change():
    (param,), idx, grad, first, second = lists((3,))
    param.requires_grad_()
    loss = param.square().sum()
    with torch.no_grad():
        sparse_adamw([param], idx, grad, first, second, [0.1], **RULE)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_compiles_without_graph_breaks():
    data = lists((10, 3))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(*lists, **rule):
        sparse_adamw(*lists, **rule)

    eager_result, compiled_result = (take(function, data) for function in (sparse_adamw, step))
    assert all(all(map(torch.equal, *pair)) for pair in zip(eager_result, compiled_result, strict=True))

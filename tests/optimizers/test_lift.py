"""LIFTAdamW: what it trains, what it keeps, when it chooses anew, and what a resumed run continues."""

import collections
import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lightning_weights.functional.lift import budget, select_indices
from lightning_weights.optimizers import LIFTAdamW, _sparse_state
from tests.optimizers.lift_cases import (
    RULE,
    SHAPES,
    bits_differ,
    copies,
    gather,
    make_gradients,
    make_params,
    run,
    train,
)

WARNING = "lightning_weights.errors.LightningWeightsWarning"
pytestmark = pytest.mark.filterwarnings(f"ignore:update_interval is:{WARNING}")
FOREVER = {"update_interval": 1000}


def selections(optimizer):
    return [optimizer.selection(param).clone() for param in optimizer.targets]


def adam_of_torch(param, gradients, lr, eps):
    """Train with torch.optim.Adam, whose eps is divided by another bias correction."""
    optimizer = torch.optim.Adam([param], lr=lr, betas=(0.9, 0.95))
    for t, gradient in enumerate(gradients, 1):
        optimizer.param_groups[0]["eps"] = eps / (1 - 0.95**t) ** 0.5
        param.grad = gradient.clone()
        optimizer.step()
    return param


@pytest.mark.filterwarnings(f"ignore:the budget covers all:{WARNING}")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_all_entries_chosen_is_dense_adam(dtype, tolerance):
    params = make_params(dtype=dtype)
    gradients = make_gradients(params, 6)
    ours, _ = train(params, gradients, budget_rank=None, density=1.0)
    for i, param in enumerate(ours):  # the vector is trained densely in any case
        theirs = adam_of_torch(nn.Parameter(params[i].detach().clone()), [g[i] for g in gradients], 0.05, 1e-3)
        torch.testing.assert_close(param, theirs, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings(f"ignore:the budget covers all:{WARNING}")
@pytest.mark.filterwarnings(f"ignore:weight_decay=:{WARNING}")
def test_all_entries_chosen_is_the_dense_rule_of_the_same_optimizer():
    params = make_params(((20, 12), (20, 12)))
    params[1].data.copy_(params[0].data)
    gradients = [[g, g] for g, _ in make_gradients(params, 6)]
    params[1]._lw_sparse = False
    (chosen, dense), _ = train(params, gradients, budget_rank=None, density=1.0, weight_decay=0.1)
    torch.testing.assert_close(chosen, dense, rtol=0, atol=1e-7)


def test_entries_not_chosen_keep_their_bits():
    params = make_params()
    optimizer = LIFTAdamW(params, **RULE)
    optimizer.select()
    ever = [torch.zeros(param.numel(), dtype=torch.bool) for param in params[:2]]
    for gradients in make_gradients(params, 9):
        before = [param.detach().clone() for param in params]
        chosen = selections(optimizer)
        run(optimizer, params, [gradients])
        for i in range(2):
            changed = bits_differ(params[i], before[i]).flatten()
            assert set(changed.nonzero().flatten().tolist()) == set(chosen[i].tolist())
            ever[i][chosen[i].long()] = True
    start = make_params()
    for i in range(2):
        assert torch.equal(bits_differ(params[i], start[i]).flatten(), ever[i])
        assert ever[i].sum() > len(chosen[i]), "no entry was ever replaced"


def test_exactly_k_entries_are_chosen_from_the_weights_at_the_first_step():
    params = make_params()
    optimizer = LIFTAdamW(params, **RULE)
    assert not optimizer.state
    for param in params[:2]:
        param.data.add_(torch.randn(param.shape))  # a checkpoint that is loaded after the optimizer was built
    expected = [select_indices(p, budget(p.shape, budget_rank=2), filter_rank=3) for p in params[:2]]
    run(optimizer, params, make_gradients(params, 1))
    assert all(map(torch.equal, selections(optimizer), expected))
    assert [len(idx) for idx in expected] == [64, 68]


def test_state_is_twelve_bytes_per_chosen_entry():
    params = make_params()
    _, optimizer = train(params, make_gradients(params, 5))
    sizes = [sum(v.nbytes for v in s.values() if isinstance(v, torch.Tensor)) for s in optimizer.state.values()]
    counts = [min(2 * (m + n), m * n) for m, n in SHAPES[:2]]
    assert sizes == [12 * counts[0], 12 * counts[1], 8 * 6]
    bf16 = train(params, make_gradients(params, 2), state_dtype="bfloat16")[1]
    assert sum(t.nbytes for t in bf16.state[bf16.targets[0]].values() if isinstance(t, torch.Tensor)) == 8 * counts[0]


def test_five_percent_need_a_thirteenth_of_adam():
    (param,) = make_params(((200, 100),))
    optimizer = LIFTAdamW([param], budget_rank=None, density=0.05, filter_rank=4)
    run(optimizer, [param], make_gradients([param], 1))
    adam = torch.optim.Adam([nn.Parameter(param.detach().clone())])
    run(adam, adam.param_groups[0]["params"], make_gradients([param], 1))
    bytes_of = [
        sum(t.nbytes for s in o.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.dim())
        for o in (optimizer, adam)
    ]
    assert bytes_of[1] / bytes_of[0] == pytest.approx(40 / 3)


@pytest.mark.parametrize("interval", [1, 4, 5])
def test_chooses_anew_after_the_steps_before_multiples(interval):
    params = make_params()
    optimizer = LIFTAdamW(params, **{**RULE, "update_interval": interval})
    optimizer.select()
    for step, gradients in enumerate(make_gradients(params, 11), 1):
        before = [optimizer.selection(param) for param in optimizer.targets]
        run(optimizer, params, [gradients])
        replaced = [optimizer.selection(p) is not old for p, old in zip(optimizer.targets, before, strict=True)]
        assert replaced == [(step + 1) % interval == 0] * 2
        for param in optimizer.targets:
            if replaced[0]:
                expected = select_indices(param, len(optimizer.selection(param)), filter_rank=3)
                assert torch.equal(optimizer.selection(param), expected)


def test_a_long_interval_keeps_the_first_masks():
    params = make_params()
    _, optimizer = train(params, make_gradients(params, 6), **FOREVER)
    expected = [select_indices(p, budget(p.shape, budget_rank=2), filter_rank=3) for p in params[:2]]
    assert all(map(torch.equal, selections(optimizer), expected))


def test_kept_entries_keep_their_moments_and_new_ones_begin_at_zero():
    params = make_params()
    gradients = make_gradients(params, 3)
    _, before = train(params, gradients, **FOREVER)
    _, after = train(params, gradients)
    for old, new in zip(before.targets, after.targets, strict=True):
        for name in ("m", "v"):
            dense = torch.zeros(old.numel())
            dense[before.selection(old).long()] = before.state[old][name]
            assert torch.equal(after.state[new][name], dense[after.selection(new).long()])
        assert (after.state[new]["m"] == 0).any(), "nothing was replaced"
        assert after.state[new]["step"] == 3


@pytest.mark.parametrize("selector", ["lift", "magnitude", "random", "bottom"])
def test_choosing_anew_from_unchanged_weights_changes_nothing(selector):
    params = make_params()
    gradients = make_gradients(params, 3)
    rule = {"lr": 0.0, "selector": selector}
    (_, kept), (_, chosen_anew) = (train(params, gradients, **rule, **interval) for interval in (FOREVER, {}))
    for one, other in zip(kept.targets, chosen_anew.targets, strict=True):
        for name in ("idx", "m", "v"):
            assert torch.equal(kept.state[one][name], chosen_anew.state[other][name])


def test_a_new_entry_moves_less_than_the_rate():
    """What the documentation says about its first move: (1 - b1) / sqrt(1 - b2) learning rates."""
    (param,) = make_params(((20, 12),))
    optimizer = LIFTAdamW([param], **{**RULE, "eps": 0.0, "lr": 1e-3, "update_interval": 200})
    gradients = make_gradients([param], 199)
    run(optimizer, [param], gradients)
    state, before = optimizer.state[param], param.detach().clone()
    state["m"][0] = state["v"][0] = 0.0
    run(optimizer, [param], make_gradients([param], 1, seed=7))
    move = (param - before).flatten()[optimizer.selection(param)[0].long()].abs().item()
    assert move == pytest.approx(1e-3 * 0.1 / 0.05**0.5, rel=1e-3)


def resumed(params, optimizer, **changes):
    """Write an optimizer to a file as a Trainer does, and read it into a new one."""
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    params = copies(params)
    new = LIFTAdamW(params, **{**RULE, **changes})
    new.load_state_dict(torch.load(buffer, weights_only=True))
    return params, new


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_continues_bit_for_bit(steps, dtype):
    params = make_params(dtype=dtype)
    gradients = make_gradients(params, 9)
    rule = {"stochastic_rounding": dtype == torch.bfloat16}
    whole, kept = train(params, gradients, **rule)
    half, optimizer = train(params, gradients[:steps], **rule)
    half, optimizer = resumed(half, optimizer, **rule)
    assert all(optimizer.state[p]["idx"].dtype == torch.int32 for p in optimizer.targets)
    assert all(optimizer.state[p]["m"].dtype == torch.float32 for p in half)
    run(optimizer, half, gradients[steps:])
    for a, b in zip(whole, half, strict=True):
        assert torch.equal(a, b)
        for name, value in kept.state[a].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer.state[b][name]))


def test_resuming_does_not_choose_anew(monkeypatch):
    params = make_params()
    half, optimizer = train(params, make_gradients(params, 2))
    before = selections(optimizer)
    monkeypatch.setattr(_sparse_state, "select_indices", None)
    half, optimizer = resumed(half, optimizer)
    optimizer.select()
    assert all(map(torch.equal, selections(optimizer), before))


def test_saved_state_is_a_copy():
    params = make_params()
    half, optimizer = train(params, make_gradients(params, 2))
    saved = optimizer.state_dict()
    expected = copy.deepcopy(saved)
    other = copies(half)
    new = LIFTAdamW(other, **RULE)
    new.load_state_dict(saved)
    run(new, other, make_gradients(params, 2))
    for number, state in expected["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(saved["state"][number][k])) for k, v in state.items()
        )


@pytest.mark.parametrize("change", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies_go_on_alone(change):
    params, optimizer = train(make_params(), make_gradients(make_params(), 2))
    twin = change(optimizer)
    theirs = twin.param_groups[0]["params"]
    before = [param.detach().clone() for param in params]
    vars(theirs[0]).setdefault("_lw_sparse", True)  # pickle keeps marks, deepcopy of parameters does not
    vars(theirs[1]).setdefault("_lw_sparse", True)
    run(twin, theirs, make_gradients(params, 3))
    assert all(map(torch.equal, params, before))
    run(optimizer, params, make_gradients(params, 3))
    assert all(map(torch.equal, params, theirs))


@pytest.mark.parametrize("batches", [1, 3])
def test_gathered_gradients_are_dense_ones(batches):
    """With accumulation the vectors add up."""
    params = make_params()
    steps = [make_gradients(params, batches, seed=step) for step in range(9)]
    dense, one = train(params, [[sum(g) for g in zip(*parts, strict=True)] for parts in steps])
    theirs = copies(params)
    optimizer = LIFTAdamW(theirs, **RULE)
    for parts in steps:
        optimizer.zero_grad()
        for gradients in parts:
            for param, gradient in zip(theirs[:2], gradients, strict=False):
                gather(optimizer, param, gradient)
        theirs[2].grad = sum(gradients[2] for gradients in parts)
        theirs[0].grad = torch.full((20, 12), 9.0)  # nobody looks at it
        optimizer.step()
    assert all(map(torch.equal, dense, theirs))
    assert all(map(torch.equal, selections(one), selections(optimizer)))


def test_zero_grad_forgets_gathered_gradients():
    params = make_params()
    optimizer = LIFTAdamW(params, **RULE)
    gather(optimizer, params[0], torch.ones(20, 12))
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(params[0]._lw_sparse_grad, torch.zeros(64))
    optimizer.zero_grad()
    assert params[0]._lw_sparse_grad is None


def test_a_static_mask_is_a_sparse_delta():
    """What other packages train beside the weight, from zero, is what is trained here in place."""
    params = make_params(((20, 12),), dtype=torch.float64)
    gradients = make_gradients(params, 6)
    (param,), optimizer = train(params, gradients, **FOREVER)
    idx = optimizer.selection(param).long()
    delta = nn.Parameter(torch.zeros(len(idx), dtype=torch.float64))
    adam_of_torch(delta, [g.flatten()[idx] for (g,) in gradients], 0.05, 1e-3)
    expected = params[0].detach().flatten().index_add(0, idx, delta.detach()).view(20, 12)
    torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-12)


def test_only_marked_matrices_get_masks_wherever_the_mark_comes_from():
    params = [nn.Parameter(torch.randn(8, 6)) for _ in range(2)]
    optimizer = LIFTAdamW(params, **RULE)
    params[1]._lw_sparse = True  # after the optimizer was built
    run(optimizer, params, make_gradients(params, 1))
    assert optimizer.targets == [params[1]]
    assert set(optimizer.state[params[0]]) == {"step", "m", "v"}
    with pytest.raises(ValueError, match=r"shape \(8, 6\) gets no mask"):
        optimizer.selection(params[0])


def test_parameters_without_gradients_wait():
    params = make_params()
    optimizer = LIFTAdamW(params, **RULE)
    params[0].grad = torch.ones_like(params[0])
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before)
    assert [optimizer.state[p].get("step") for p in params] == [1, 0, None]


def test_groups_have_rules_of_their_own():
    first, second = make_params(((20, 12), (20, 12)))
    optimizer = LIFTAdamW([{"params": [first], "budget_rank": 1}], **RULE)
    optimizer.add_param_group({"params": [second], "budget_rank": None, "density": 0.5, "selector": "magnitude"})
    run(optimizer, [first, second], make_gradients([first, second], 1))
    assert [len(s) for s in selections(optimizer)] == [32, 120]


def test_betas_of_configurations_are_stored_as_plain_numbers():
    betas = collections.UserList([0.8, 0.9])
    optimizer = LIFTAdamW(make_params(), betas=betas)
    optimizer.add_param_group({"params": make_params(), "betas": betas})
    assert [group["betas"] for group in optimizer.state_dict()["param_groups"]] == [(0.8, 0.9)] * 2


def test_a_random_mask_depends_on_seed_and_place_alone():
    params = [make_params(((20, 12),))[0] for _ in range(2)]
    chosen = [selections(train(params, make_gradients(params, 5), selector="random", seed=s)[1]) for s in (0, 0, 9)]
    assert all(map(torch.equal, chosen[0], chosen[1]))
    assert not torch.equal(chosen[0][0], chosen[0][1])
    assert not torch.equal(chosen[0][0], chosen[2][0])


def test_the_gradient_selector_chooses_by_the_gradients_of_its_steps():
    params = make_params(((20, 12),))
    gradients = make_gradients(params, 4)
    optimizer = LIFTAdamW(params, **{**RULE, "selector": "gradient"})
    wanted, chosen = [], []
    for gradient in gradients:
        wanted.append(optimizer.wants_dense_gradient(params[0]))
        run(optimizer, params, [gradient])
        chosen.append(optimizer.selection(params[0]))
    assert wanted == [True, False, True, False]  # the first step, and the one after which entries are chosen anew
    by_size = [select_indices(params[0], 64, "gradient", gradient=gradients[i][0]) for i in (0, 2)]
    assert all(map(torch.equal, chosen, (by_size[0], by_size[0], by_size[1], by_size[1])))


def test_other_selectors_never_want_dense_gradients():
    params = make_params()
    assert not LIFTAdamW(params, **RULE).wants_dense_gradient(params[0])


def test_stochastic_rounding_moves_what_rounding_to_the_nearest_leaves():
    params = make_params(((20, 12),), dtype=torch.bfloat16)
    gradients = [[torch.ones(20, 12, dtype=torch.bfloat16)]] * 50
    rule = {"lr": 1e-4, **FOREVER}
    (nearest,), optimizer = train(params, gradients, **rule)
    (random,), _ = train(params, gradients, stochastic_rounding=True, **rule)
    idx = optimizer.selection(nearest).long()
    moved = [(params[0] - p).flatten()[idx].float() for p in (nearest, random)]
    assert moved[0].abs().mean() < 1e-3
    assert moved[1].mean().item() == pytest.approx(50e-4, rel=0.25)


def test_closures_and_schedulers():
    params = make_params()
    optimizer = LIFTAdamW(iter(params), **RULE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    before = [param.detach().clone() for param in params]
    assert optimizer.step(closure) > 0
    assert not any(map(torch.equal, params, before))
    scheduler.step()
    before = [param.detach().clone() for param in params]
    optimizer.step(closure)
    assert all(map(torch.equal, params, before))


def test_transposed_weights():
    (plain,) = make_params(((20, 12),))
    turned = nn.Parameter(plain.detach().t().contiguous().t())
    turned._lw_sparse = True
    gradients = make_gradients([plain], 6)
    (left,), (right,) = (train([param], gradients)[0] for param in (plain, turned))
    run(optimizer := LIFTAdamW([turned], **RULE), [turned], gradients)
    assert torch.equal(left, turned)
    assert torch.equal(left, right)
    assert optimizer.selection(turned).max() < 240

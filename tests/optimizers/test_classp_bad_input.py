"""CLASSP: what it says about bad input."""

import warnings

import pytest
import torch
from torch import nn

from lightning_weights.errors import KernelUnavailableError, LightningWeightsWarning
from lightning_weights.optimizers import CLASSP
from tests.helpers.gradients import BACKENDS, assert_equal, make_gradients, make_params, run, train


@pytest.mark.parametrize("name", ["lr", "threshold", "power", "eps"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "0.1", None])
def test_bad_numbers_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        CLASSP(make_params(), **{name: value})
    with pytest.raises(ValueError, match=f"{name} is"):
        CLASSP([{"params": make_params(), name: value}])


def test_contradictions_are_refused():
    params = make_params()
    with pytest.raises(ValueError, match=r"power is 0\.0"):
        CLASSP(params, power=0.0)
    with pytest.raises(ValueError, match="eps is 0 with apply_decay=True"):
        CLASSP(params, eps=0.0)
    CLASSP(params, eps=0.0, apply_decay=False)
    with pytest.raises(ValueError, match="variant is 'papr'; allowed are 'paper', 'reference'"):
        CLASSP(params, variant="papr")
    with pytest.raises(ValueError, match="foreach and fused cannot be combined"):
        CLASSP(params, foreach=True, fused=True)
    with pytest.raises(ValueError, match=r"compile cannot be combined with .*variant='reference'"):
        CLASSP(params, compile=True, variant="reference")
    with pytest.raises(ValueError, match=r"torch.int64 tensor"):
        CLASSP([torch.zeros(3, dtype=torch.int64)])


def test_a_group_spoiled_later_is_refused_before_anything_changes():
    params = make_params()
    optimizer = CLASSP(params)
    optimizer.param_groups[0]["lr"] = float("nan")
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="lr is nan"):
        run(optimizer, params, make_gradients(params, 1))
    assert_equal(params, before)
    assert not optimizer.state


def test_fused_without_a_gpu_says_why():
    params = make_params()
    optimizer = CLASSP(params, fused=True)
    with pytest.raises(KernelUnavailableError, match=r"fused=True\), but .* TRITON_INTERPRET=1"):
        run(optimizer, params, make_gradients(params, 1))
    assert not optimizer.state


def test_another_optimizers_state_is_refused():
    params = make_params()
    other = torch.optim.Adagrad(params)
    run(other, params, make_gradients(params, 1))
    with pytest.raises(ValueError, match="holds step, sum and no grad_sum: it is another optimizer's"):
        CLASSP(params).load_state_dict(other.state_dict())


def test_an_enormous_threshold_freezes():
    params = make_params()
    with pytest.warns(LightningWeightsWarning):
        frozen, _ = train(params, make_gradients(params, 2), threshold=1e80)
    assert_equal(frozen, params)


def test_steps_without_gradients_are_no_problem_at_the_end_of_the_window():
    params = make_params()
    optimizer = CLASSP(params)
    run(optimizer, params, [[torch.zeros_like(p) for p in params]] * 99)
    for param in params:
        param.grad = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.average_grad_sum() == 0.0


def test_a_non_finite_gradient_at_the_end_of_the_window_does_not_spoil_the_next():
    params = make_params()
    gradients = make_gradients(params, 1)[0]
    optimizer = CLASSP(params)
    run(optimizer, params, [gradients] * 99)
    spoiled = [gradients[0].clone().fill_(float("nan")), *gradients[1:]]
    with pytest.raises(FloatingPointError, match="24 gradient elements"):
        run(optimizer, params, [spoiled])
    before = params[0].detach().clone()
    run(optimizer, params, [gradients])
    assert bool((before != params[0]).any())


def test_published_threshold_warns():
    with pytest.warns(LightningWeightsWarning, match="compared with squared gradients"):
        CLASSP(make_params(), threshold=0.5)
    with pytest.warns(LightningWeightsWarning, match="compared with squared gradients"):
        CLASSP([{"params": make_params(), "threshold": 0.99}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CLASSP(make_params(), threshold=0.5, variant="reference")
        CLASSP(make_params())


def test_frozen_network_warns_with_quantiles_after_100_steps():
    params = make_params()
    gradients = [[torch.full_like(p, 1e-5) for p in params]] * 100
    optimizer = CLASSP(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(optimizer, params, gradients[:99])
    with pytest.warns(LightningWeightsWarning, match=r"updated 0.0000% .* 50% 1.0e-10.*threshold is 1e-06"):
        run(optimizer, params, gradients[:1])


def test_training_network_does_not_warn():
    params = make_params()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, optimizer = train(params, make_gradients(params, 120))
    assert optimizer.free_fraction() < 1, "nothing was updated, and no warning said so"


def test_sparse_gradients_are_refused_before_anything_changes():
    embedding = nn.Embedding(4, 3, sparse=True)
    dense = nn.Parameter(torch.ones(3))
    optimizer = CLASSP([dense, *embedding.parameters()])
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="CLASSP does not support sparse gradients"):
        optimizer.step()
    assert bool((dense == 1).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_finite_gradients_never_enter_the_accumulator(bad, backend):
    params = make_params()
    gradients = make_gradients(params, 2)
    spoiled = [g.clone() for g in gradients[0]]
    spoiled[0][1, 2] = bad
    before = params[0][1, 2].item()
    ours = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = CLASSP(ours, **backend)
    with pytest.raises(FloatingPointError, match="1 gradient elements were NaN or infinite"):
        run(optimizer, ours, [spoiled])
    assert ours[0][1, 2].item() == before
    assert optimizer.state[ours[0]]["grad_sum"][1, 2] == 0
    spoiled[0][1, 2] = 0.0  # everything else moved as if that gradient had been zero
    theirs, _ = train(params, [spoiled], **backend)
    assert_equal(ours, theirs)
    run(optimizer, ours, gradients[1:])
    assert all(bool(p.isfinite().all()) for p in ours)

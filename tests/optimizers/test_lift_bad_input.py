"""LIFTAdamW: what it says about bad input."""

import warnings

import pytest
import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.optimizers import LIFTAdamW
from tests.optimizers.lift_cases import RULE, copies, gather, make_gradients, make_params, run, train

QUIET = {**RULE, "update_interval": 400}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, r"lr is -1\.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"eps": -1e-9}, "eps is"),
        ({"weight_decay": None}, "weight_decay is None"),
        ({"betas": (0.9, 1.0)}, r"betas is 1\.0"),
        ({"betas": 0.9}, "allowed are two numbers"),
        ({"betas": (0.9,)}, "allowed are two numbers"),
        ({"budget_rank": None}, "exactly one"),
        ({"density": 0.05}, "exactly one"),
        ({"budget_rank": 0}, "budget_rank is 0"),
        ({"budget_rank": None, "density": 0.0}, r"density is 0\.0"),
        ({"budget_rank": None, "density": 1.5}, r"density is 1\.5"),
        ({"filter_rank": 0}, "filter_rank is 0"),
        ({"filter_rank": -4}, "filter_rank is -4"),
        ({"update_interval": 0}, "update_interval is 0"),
        ({"selector": "largest"}, "selector is 'largest'; allowed are 'lift', 'magnitude'"),
        ({"svd": "lanczos"}, "svd is 'lanczos'"),
        ({"seed": -1}, "seed is -1"),
        ({"state_dtype": "int8"}, "state_dtype is 'int8'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LIFTAdamW(make_params(), **changes)
    optimizer = LIFTAdamW(make_params())
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": make_params(), **changes})
    assert len(optimizer.param_groups) == 1


def test_a_group_spoiled_later_is_refused_before_anything_changes():
    params = make_params()
    optimizer = LIFTAdamW(params, **QUIET)
    optimizer.param_groups[0]["lr"] = float("nan")
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="lr is nan"):
        run(optimizer, params, make_gradients(params, 1))
    assert all(map(torch.equal, params, before))
    assert not optimizer.state


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1, 1)])
def test_marked_parameters_must_be_matrices(shape):
    param = nn.Parameter(torch.zeros(shape))
    param._lw_sparse = True
    with pytest.raises(ValueError, match=r"is marked; only matrices have principal weights"):
        LIFTAdamW([*make_params(), param])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype):
    param = nn.Parameter(torch.zeros(4, 4).to(dtype), requires_grad=False)
    param._lw_sparse = True
    with pytest.raises(ValueError, match=r"quantised weight .* Bone or LoRA"):
        LIFTAdamW([("net.q_proj.weight", param)])


def test_frozen_targets_and_complex_parameters_are_refused():
    params = make_params()
    params[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"parameter 1 .* marked and frozen"):
        LIFTAdamW(params)
    with pytest.raises(ValueError, match="complex"):
        LIFTAdamW([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])


def test_nothing_to_choose_from_says_what_is_missing():
    frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    optimizer = LIFTAdamW([nn.Parameter(torch.zeros(3)), frozen])
    with pytest.raises(ValueError, match=r"no parameter is a trainable matrix.*LIFTFinetuning"):
        optimizer.select()


def test_an_optimizer_without_marks_warns_once():
    params = [nn.Parameter(param.detach()) for param in make_params()]
    optimizer = LIFTAdamW(params, **QUIET)
    with pytest.warns(LightningWeightsWarning, match=r"all 2 trainable matrices get masks.*LIFTFinetuning"):
        run(optimizer, params, make_gradients(params, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(optimizer, params, make_gradients(params, 2))
        train(make_params(), make_gradients(params, 2), update_interval=400)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("names", ["callback", "user", "nobody"])
def test_weights_that_are_no_numbers_are_named(bad, names):
    params = make_params()
    params[1].data[2, 3] = bad
    given = params
    if names == "user":
        given = [(f"layer.{i}", param) for i, param in enumerate(params)]
    if names == "callback":
        params[1]._lw_name = "layer.1"
    optimizer = LIFTAdamW(given, **QUIET)
    expected = r"parameter 1 of its group, of shape \(10, 24\)" if names == "nobody" else r"layer\.1"
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match=f"^{expected}: .*NaN or infinity"):
        run(optimizer, params, make_gradients(params, 1))
    assert torch.equal(params[0], before[0])


def test_ranks_and_budgets_beyond_the_matrix_warn_once():
    params = make_params()
    optimizer = LIFTAdamW(params, **{**QUIET, "filter_rank": 11})
    with pytest.warns(LightningWeightsWarning, match=r"filter_rank=11 is more than the rank of parameter 1"):
        optimizer.select()
    optimizer = LIFTAdamW(params, **{**QUIET, "budget_rank": 100})
    with pytest.warns(LightningWeightsWarning, match=r"covers all of parameter 0 .*trained densely"):
        optimizer.select()
    assert len(optimizer.selection(params[0])) == 240
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LIFTAdamW(params, **{**QUIET, "filter_rank": 500, "selector": "magnitude"}).select()


def test_short_intervals_warn_with_the_time_they_cost():
    with pytest.warns(LightningWeightsWarning, match=r"update_interval is 19: choosing .* 2 matrices took [\d.e-]+ s"):
        LIFTAdamW(make_params(), **{**QUIET, "update_interval": 19}).select()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LIFTAdamW(make_params(), **{**QUIET, "update_interval": 19, "selector": "magnitude"}).select()


def test_long_first_moves_and_decay_warn():
    with pytest.warns(LightningWeightsWarning, match=r"first moves by 3\.16 learning rates"):
        LIFTAdamW(make_params(), betas=(0.9, 0.999))
    with pytest.warns(LightningWeightsWarning, match=r"weight_decay=0\.1 reaches only the chosen entries"):
        LIFTAdamW(make_params(), weight_decay=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LIFTAdamW(make_params())


def test_sparse_and_complex_gradients_are_refused_before_anything_changes():
    embedding = nn.Embedding(4, 3, sparse=True)
    dense = make_params()[0]
    optimizer = LIFTAdamW([dense, *embedding.parameters()], **QUIET)
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    before = dense.detach().clone()
    with pytest.raises(RuntimeError, match=r"torch.sparse_coo .* takes dense real ones"):
        optimizer.step()
    assert torch.equal(dense, before)


def test_gathered_gradients_of_another_selection_are_refused():
    params = make_params()
    optimizer = LIFTAdamW(params, **QUIET)
    params[0]._lw_sparse_grad = torch.ones(64)
    with pytest.raises(RuntimeError, match="its selection does not exist"):
        optimizer.step()
    optimizer.select()
    params[0]._lw_sparse_grad = torch.ones(63)
    with pytest.raises(RuntimeError, match=r"has shape \(63,\), its selection \(64,\)"):
        optimizer.step()


def test_choosing_by_gradients_needs_whole_ones():
    params = make_params(((20, 12),))
    optimizer = LIFTAdamW(params, **{**RULE, "selector": "gradient", "update_interval": 3})
    optimizer.select()
    with pytest.raises(RuntimeError, match="first whole gradient, and there is none yet"):
        optimizer.selection(params[0])
    run(optimizer, params, make_gradients(params, 1))
    params[0].grad = None
    gather(optimizer, params[0], torch.ones(20, 12))
    with pytest.raises(RuntimeError, match="wants_dense_gradient"):
        optimizer.step()


def test_sharded_matrices_are_refused():
    params = make_params()
    params[0].placements = ("Shard(0)",)
    with pytest.raises(ShardedParameterError, match=r"parameter 0 .* is sharded.* DDP"):
        LIFTAdamW(params, **QUIET).select()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_rank": 3}, "budget_rank is 3, the checkpoint was made with 2.*Resume with budget_rank=2"),
        ({"filter_rank": 4}, "filter_rank is 4, the checkpoint was made with 3"),
        ({"selector": "magnitude"}, "selector is 'magnitude', the checkpoint was made with 'lift'"),
        ({"state_dtype": "bfloat16"}, "state_dtype is 'bfloat16'"),
        ({"budget_rank": None, "density": 0.5}, "budget_rank is None"),
    ],
    ids=str,
)
def test_resuming_with_other_rules_explains_and_changes_nothing(changes, message):
    params = make_params()
    _, optimizer = train(params, make_gradients(params, 2), update_interval=400)
    new = LIFTAdamW(copies(params), **{**QUIET, "lr": 0.7, **changes})
    with pytest.raises(ValueError, match=message):
        new.load_state_dict(optimizer.state_dict())
    assert new.param_groups[0]["lr"] == 0.7
    assert not new.state


def test_other_networks_and_other_optimizers_are_told_apart():
    params = make_params()
    _, optimizer = train(params, make_gradients(params, 2), update_interval=400)
    new = LIFTAdamW(make_params(((20, 11), (10, 24), (6,))), **QUIET)
    with pytest.raises(ValueError, match=r"parameter 0 .* have shape \(64,\), allowed is \(62,\)"):
        new.load_state_dict(optimizer.state_dict())
    adam = torch.optim.Adam(copies(params))
    with pytest.raises(ValueError, match="has no budget_rank: it is another optimizer's"):
        new.load_state_dict(adam.state_dict())
    state = optimizer.state_dict()
    state["state"][0] = {"exp_avg": torch.zeros(3)}
    with pytest.raises(ValueError, match="holds exp_avg and no m"):
        LIFTAdamW(copies(params), **QUIET).load_state_dict(state)

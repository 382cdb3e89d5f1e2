"""What GradNormLoRPAdamW refuses, and what it says."""

import logging
import warnings

import pytest
import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning, MissingDependencyError, ShardedParameterError
from lightning_weights.kernels.projected_adam import blockwise
from lightning_weights.optimizers import GradNormLoRPAdamW


def matrix(rows=6, columns=4):
    param = nn.Parameter(torch.randn(rows, columns))
    param.grad = torch.randn(rows, columns)
    return param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -0.1), ("betas", (0.9, 1.0)), ("betas", (0.9,)), ("eps", 0.0), ("weight_decay", -1.0), ("rank", 0),
        ("rank", 1.5), ("update_proj_gap", 0), ("scale", 0.0), ("proj_type", "both"), ("state_bits", 4),
        ("svd", "fast"), ("moment_transport", "keep"), ("sign_fix", 2),
    ],
)  # fmt: skip
def test_hyper_parameters(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        GradNormLoRPAdamW([matrix()], **{name: value})
    optimizer = GradNormLoRPAdamW([matrix()])
    with pytest.raises(ValueError, match=f"{name} is"):
        optimizer.add_param_group({"params": [matrix()], name: value})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"{name} is"):
        optimizer.step()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 2, 2)])
def test_only_matrices_in_a_group_with_a_rank(shape):
    params = [("head.weight", matrix()), ("head.other", nn.Parameter(torch.randn(shape)))]
    with pytest.raises(ValueError, match=rf"head.other has {len(shape)} dimensions"):
        GradNormLoRPAdamW([{"params": params, "rank": 2}])
    marked = nn.Parameter(torch.randn(shape))
    marked._lw_project = True
    with pytest.raises(ValueError, match=f"parameter 0 of its group, .* has {len(shape)} dimensions"):
        GradNormLoRPAdamW([marked])


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"is a torch\.int64 tensor"):
        GradNormLoRPAdamW([torch.zeros(3, 3, dtype=torch.int64)])


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 4, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="is sparse"):
        GradNormLoRPAdamW(embedding.parameters()).step()


def test_projected_gradients_that_are_no_use():
    param = nn.Parameter(torch.randn(4, 3))
    optimizer = GradNormLoRPAdamW([param], rank=2, update_proj_gap=5)
    param.grad = torch.randn(4, 3)
    optimizer.step()
    optimizer.expect_gradient(param, projected=True)
    for projected in (True, False):
        with pytest.raises(RuntimeError, match=r"shape \(4, 3\) is projected already, .* no_sync\(\) .* zero_grad\(\)"):
            optimizer.expect_gradient(param, projected)
    optimizer.param_groups[0]["update_proj_gap"] = 1
    before = param.detach().clone()
    with pytest.raises(RuntimeError, match=r"^the gradient of parameter 0 .* came projected, .* update_proj_gap"):
        optimizer.step()
    assert torch.equal(param, before)
    optimizer.zero_grad()
    optimizer.expect_gradient(param, projected=False)
    param.grad = torch.randn(4, 3)
    optimizer.step()
    assert not torch.equal(param, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("svd", ["exact", "gram", "randomized"])
def test_gradients_that_are_not_finite_change_nothing(bad, svd):
    params = [("first", matrix()), ("second", matrix(4, 6))]
    optimizer = GradNormLoRPAdamW(params, rank=2, update_proj_gap=2, svd=svd)
    optimizer.step()
    optimizer.step()
    before = [param.detach().clone() for _, param in params]
    projection = optimizer.state[params[0][1]]["projection_right"].clone()
    params[1][1].grad[0, 0] = bad
    with pytest.raises(FloatingPointError, match=r"gradient of second holds NaN or infinity in step 3"):
        optimizer.step()
    assert all(torch.equal(old, param) for old, (_, param) in zip(before, params, strict=True))
    assert torch.equal(projection, optimizer.state[params[0][1]]["projection_right"])
    assert optimizer.state[params[0][1]]["step"] == 2


@pytest.mark.parametrize("rank", [4, 9])
def test_a_rank_that_saves_nothing_warns_once(rank):
    params = [("narrow", matrix()), ("wide", matrix(20, 30))]
    optimizer = GradNormLoRPAdamW(params, rank=rank)
    message = r"rank reaches the shorter side of 1 of 2 .*narrow: rotation only, no memory saved"
    with pytest.warns(LightningWeightsWarning, match=message):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.state[params[0][1]]["projection_right"].shape == (4, 4)


def test_without_marks_it_says_that_it_is_galore(caplog):
    optimizer = GradNormLoRPAdamW([matrix()], rank=2)
    with caplog.at_level(logging.INFO):
        optimizer.step()
        optimizer.step()
    assert [record.message for record in caplog.records if "plain GaLore-AdamW" in record.message] != []
    assert len(caplog.records) == 1


def test_sharded_matrices_are_refused():
    param = matrix()
    param.placements = ("Shard(0)",)
    with pytest.raises(ShardedParameterError, match="is sharded, and its projection needs the whole gradient"):
        GradNormLoRPAdamW([param], rank=2).step()


def test_8_bits_need_bitsandbytes(monkeypatch):
    def missing():
        raise MissingDependencyError("bitsandbytes", "bnb", "state_bits=8")

    blockwise.code_map.cache_clear()
    monkeypatch.setattr(blockwise, "_bitsandbytes", missing)
    with pytest.raises(MissingDependencyError, match="bitsandbytes"):
        GradNormLoRPAdamW([matrix()], state_bits=8)


def test_states_of_others_are_refused():
    param = matrix()
    optimizer = GradNormLoRPAdamW([param], rank=2)
    stranger = torch.optim.SGD([param], lr=0.1, momentum=0.9)
    stranger.step()
    with pytest.raises(ValueError, match="it is another optimizer's"):
        optimizer.load_state_dict(stranger.state_dict())
    for shape in ((7, 4), (6, 5), (4, 6)):
        other = GradNormLoRPAdamW([matrix(*shape)], rank=2)
        other.step()
        with pytest.raises(ValueError, match="does not belong to a parameter of shape"):
            optimizer.load_state_dict(other.state_dict())
    assert not optimizer.state

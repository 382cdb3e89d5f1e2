"""LIFT against the vectors of the authors' optimizer, run with the mask of the paper."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.lift import budget, low_rank_approximation, select_indices
from lightning_weights.optimizers import LIFTAdamW
from tests.helpers.golden import cases, load

pytestmark = pytest.mark.filterwarnings("ignore::lightning_weights.errors.LightningWeightsWarning")

GOLDEN = load("lift")
LORA_RANK, FILTER_RANK, INTERVAL, LR, BETA1, BETA2, EPS, DECAY = GOLDEN["hyper"].tolist()
MASKED = cases(GOLDEN, "", "_mask_0")
DENSE = sorted(set(cases(GOLDEN, "", "_grad_1")) - set(MASKED))
STEPS = len(cases(GOLDEN, f"{MASKED[0]}_grad_", ""))
METHODS = pytest.mark.parametrize("svd", ["exact", "gram", "randomized"])


def tensor(name):
    return torch.tensor(GOLDEN[name])


def mask(indices, like):
    result = np.zeros(like.size, dtype=bool)
    result[indices.numpy()] = True
    return result.reshape(like.shape)


def assert_near(actual, name, tolerance=1e-6):
    if name in GOLDEN:
        np.testing.assert_allclose(actual.detach().numpy(), GOLDEN[name], rtol=0, atol=tolerance, err_msg=name)


@METHODS
@pytest.mark.parametrize("name", MASKED)
def test_rank_reduction(name, svd):
    weight = tensor(f"{name}_0").double()  # as in the vectors: where singular values lie close, fp32 is not enough
    assert_near(low_rank_approximation(weight, int(FILTER_RANK), svd), f"{name}_lowrank_0")


@METHODS
@pytest.mark.parametrize("name", MASKED)
def test_masks(name, svd):
    """The released default takes the smallest entries; here that has another name and is not the default."""
    weight = tensor(f"{name}_0")
    count = budget(weight.shape, budget_rank=int(LORA_RANK))
    rule = {"filter_rank": int(FILTER_RANK), "svd": svd}
    np.testing.assert_array_equal(mask(select_indices(weight, count, **rule), weight.numpy()), GOLDEN[f"{name}_mask_0"])
    bottom = mask(select_indices(weight, count, "bottom", **rule), weight.numpy())
    np.testing.assert_array_equal(bottom, GOLDEN[f"{name}_mask_release_default"])


@METHODS
@pytest.mark.parametrize("gathered", [False, True], ids=["dense gradients", "gathered gradients"])
def test_training(svd, gathered):
    params = {name: torch.nn.Parameter(tensor(f"{name}_0")) for name in (*MASKED, *DENSE)}
    optimizer = LIFTAdamW(
        params.items(),
        lr=LR,
        betas=(BETA1, BETA2),
        eps=EPS,
        weight_decay=DECAY,
        budget_rank=int(LORA_RANK),
        filter_rank=int(FILTER_RANK),
        update_interval=int(INTERVAL),
        svd=svd,
    )
    for step in range(1, STEPS + 1):
        for name, param in params.items():
            gradient = tensor(f"{name}_grad_{step}")
            if gathered and name in MASKED:
                param._lw_sparse_grad = gradient.flatten()[optimizer.selection(param).long()]
            else:
                param.grad = gradient
        optimizer.step()
        for name, param in params.items():
            assert_near(param, f"{name}_{step}")
            state = optimizer.state[param]
            if f"{name}_mask_{step}" in GOLDEN:
                np.testing.assert_array_equal(mask(state["idx"], GOLDEN[f"{name}_0"]), GOLDEN[f"{name}_mask_{step}"])
                assert_near(state["m"], f"{name}_m_{step}")
                assert_near(state["v"], f"{name}_v_{step}")

"""Bone against the vectors of PEFT's layer and of the author's formulas."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weights.functional.bone import bone_row, bone_weight
from lightning_weights.modules import BoneLinear
from tests.helpers.golden import cases, load

GOLDEN = load("bone")
R, MINI_R, R_ODD = (int(value) for value in GOLDEN["meta"])
SETTINGS = {
    "bat": {"r": R, "variant": "col"},
    "miss": {"r": R, "variant": "miss"},
    "missnd": {"r": R_ODD, "variant": "miss"},
    "mini": {"r": R, "variant": "mini", "mini_r": MINI_R},
}
CASES = cases(GOLDEN, "", "_block_after3")
LEARNING_STEPS = 3


def vector(name):
    return torch.tensor(GOLDEN[name])


def assert_near(actual, name, tolerance):
    np.testing.assert_allclose(actual.detach().numpy(), GOLDEN[name], rtol=0, atol=tolerance, err_msg=name)


def layer(case, block="block", **change):
    base = nn.Linear(*reversed(GOLDEN["W"].shape))
    base.load_state_dict({"weight": vector("W"), "bias": vector("b")})
    bone = BoneLinear(base, **SETTINGS[case], **change)
    bone.bone_block.data.copy_(vector(f"{case}_{block}"))
    return bone


def test_every_case_of_the_file_is_known():
    assert set(CASES) == set(SETTINGS)


@pytest.mark.parametrize("case", CASES)
def test_start(case):
    fresh = layer(case, block="init")
    assert tuple(fresh.bone_block.shape) == GOLDEN[f"{case}_init"].shape
    assert_near(fresh(vector("X")), f"{case}_y_at_init", 1e-6)


@pytest.mark.parametrize("impl", ["auto", "materialize"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case, impl):
    bone, x = layer(case, impl=impl), vector("X").requires_grad_()
    y = bone(x)
    assert_near(y, f"{case}_y", 1e-6)
    (y * vector("GY")).sum().backward()
    assert_near(bone.bone_block.grad, f"{case}_gblock", 1e-5)
    assert_near(x.grad, f"{case}_gx", 1e-5)
    assert bone.weight.grad is None


@pytest.mark.parametrize("keep", ["never", "backward", "step"])
@pytest.mark.parametrize("case", CASES)
def test_training(case, keep):
    bone = layer(case, **({"keep": keep} if case == "bat" else {}))
    optimizer = torch.optim.SGD([bone.bone_block], lr=float(GOLDEN["lr"]))
    for step in range(LEARNING_STEPS):
        loss = 0.5 * (bone(vector("X")) - vector("GY")).square().mean()
        if step == 0:
            assert_near(loss, f"{case}_loss0", 1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_near(bone.bone_block, f"{case}_block_after3", 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_merging_and_back(case):
    bone = layer(case)
    plain = bone.merge()
    assert_near(plain.weight, f"{case}_Wmerged", 1e-6)
    assert_near(plain(vector("X")), f"{case}_y", 1e-5)
    bone.unmerge()
    assert_near(bone.weight, f"{case}_Wunmerged", 1e-5)


def test_the_authors_formulas():
    assert_near(bone_weight(vector("W"), vector("bat_block"), "col"), "col_W", 1e-6)
    assert_near(bone_weight(vector("W"), vector("row_block"), "row"), "row_W", 1e-6)
    block = vector("row_block").requires_grad_()
    y = bone_row(vector("X"), lambda x: nn.functional.linear(x, vector("W"), vector("b")), block)
    assert_near(y, "row_y", 1e-6)
    (y * vector("GY")).sum().backward()
    assert_near(block.grad, "row_gblock", 1e-5)

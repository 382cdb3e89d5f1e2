"""Robust weight signatures against vectors of the authors' functions."""

import re

import pytest
import torch
from torch import nn

from lightning_weights.functional.rws import dequantize_levels, quantize_levels
from lightning_weights.modules import RobustWeightSignature, ShallowSelector, extract_rws, patched
from tests.helpers.golden import load

GOLDEN = load("rws")
TOLERANCE, ROUNDED = 1e-6, 2e-6
TIES = 1e-3  # share of entries that may be one level off
GROUPS: dict[str, dict[str, torch.Tensor]] = {}
for key in GOLDEN:
    if "/" in key:
        GROUPS.setdefault(key.partition("/")[0], {})[key.partition("/")[2]] = torch.from_numpy(GOLDEN[key])
PATCHED = {
    group: match.groups() for group in GROUPS if (match := re.fullmatch(r"patched_(base|target)_w1_robust(\d+)", group))
}
QUANTIZED = {
    group: tuple(map(int, match.groups()))
    for group in GROUPS
    if (match := re.fullmatch(r"quant_linear_levels(\d+)_rws(\d+)", group))
}
CORRUPTIONS = sorted(group.removeprefix("robust") for group in GROUPS if re.fullmatch(r"robust\d+", group))


def network(group):
    """Return modules that hold the tensors of a group under their names."""
    root = nn.Module()
    for name, tensor in GROUPS[group].items():
        *path, leaf = name.split(".")
        part = root
        for step in path:
            if step not in part._modules:
                part.add_module(step, nn.Module())
            part = part._modules[step]
        part.register_parameter(leaf, nn.Parameter(tensor.clone()))
    return root


def signature(corruption):
    select = ShallowSelector(n_modules=int(GOLDEN["keep_num"]))
    networks = [GROUPS[group] for group in ("pre", "base", f"robust{corruption}")]
    return extract_rws(*networks, select, corruption=f"corruption {corruption}")


def assert_patched(module, group):
    assert module.state_dict().keys() == GROUPS[group].keys()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(
            tensor, GROUPS[group][name], rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_all_vectors_are_looked_at():
    inputs = {"pre", "base", "target", *(f"robust{c}" for c in CORRUPTIONS), *(f"rws{c}" for c in CORRUPTIONS)}
    assert set(GROUPS) == inputs | PATCHED.keys() | QUANTIZED.keys() | {"official_multi_alpha1", "composed_sum"}
    assert {key for key in GOLDEN if "/" not in key} == {"keep_num"}
    assert PATCHED
    assert QUANTIZED


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_signatures(corruption):
    found, expected = signature(corruption).dequantize(), GROUPS[f"rws{corruption}"]
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("group", PATCHED)
def test_patched_networks(group):
    start, corruption = PATCHED[group]
    module = network(start)
    with patched(module, signature(corruption)):
        assert_patched(module, group)
        untouched = [name for name in GROUPS[start] if name not in GROUPS[f"rws{corruption}"]]
        assert all(torch.equal(module.state_dict()[name], GROUPS[start][name]) for name in untouched)
    assert all(torch.equal(tensor, GROUPS[start][name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(("group", "weighting"), [("composed_sum", "sum"), ("official_multi_alpha1", "published")])
def test_compositions(group, weighting):
    module = network("base")
    with patched(module, [signature(corruption) for corruption in CORRUPTIONS], weighting=weighting):
        assert_patched(module, group)


@pytest.mark.parametrize("group", QUANTIZED)
def test_levels(group):
    levels, corruption = QUANTIZED[group]
    values, expected = GROUPS[f"rws{corruption}"], GROUPS[group]
    assert values.keys() == expected.keys()
    packed = RobustWeightSignature.from_tensors(values, levels).dequantize()
    off = 0
    for name, value in values.items():
        found = dequantize_levels(quantize_levels(value, levels), levels)
        assert torch.equal(found, packed[name])
        step = (value.max() - value.min()) / (levels - 1)
        error = (found - expected[name]).abs()
        assert error.max() <= step + ROUNDED
        off += int((error > ROUNDED).sum())
    assert off <= TIES * sum(value.numel() for value in values.values())

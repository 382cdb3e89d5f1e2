"""The column solver's invariants, in float64 unless said otherwise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.column_solver import (
    CompensationConfig,
    dequantize,
    factorize,
    group_index,
    quantize_weight,
    relative_error,
)
from tests.functional.column_cases import METHODS, config, layer

EACH = pytest.mark.parametrize("method", METHODS)
WIDE = {"dtype": torch.float64}


def solve(made, chosen, **change):
    return quantize_weight(made.weight, made.hessian, made.asymmetry, config=chosen, **{**WIDE, **change})


def assert_same(first, second):
    assert torch.equal(first.codes, second.codes)
    for a, b in ((first.scale, second.scale), (first.zero, second.zero), (first.g_idx, second.g_idx)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outer", ["auto", "current", "quantized", "clamped"])
@pytest.mark.parametrize("grouping", [{}, {"group_size": 8}, {"group_size": 5, "act_order": False}])
def test_zero_coefficients_are_gptq_bit_for_bit(outer, grouping, dtype):
    made = layer(dtype=dtype)
    gptq = solve(made, config("gptq", **grouping), dtype=dtype)
    for method, zero in (
        ("gptaq", {"alpha": 0.0}),
        ("rescomp", {"alpha": 0.0, "alpha_cae": 0.0}),
        ("foem", {"beta": 0.0}),
    ):
        found = solve(made, config(method, outer=outer, **zero, **grouping), dtype=dtype)
        assert_same(found, gptq)
        assert torch.equal(found.dequantized, gptq.dequantized)


@pytest.mark.parametrize("outer", ["current", "quantized", "clamped"])
def test_zero_coefficients_are_gptaq_bit_for_bit(outer):
    made = layer(dtype=torch.float32)
    gptaq = solve(made, config("gptaq", outer=outer, alpha=0.5), dtype=torch.float32)
    for method, zero in (("rescomp", {"alpha_cae": 0.0}), ("foem", {"beta": 0.0})):
        assert_same(solve(made, config(method, outer=outer, alpha=0.5, **zero), dtype=torch.float32), gptaq)
    authors = solve(made, config("gptaq", alpha=0.5), dtype=torch.float32)
    assert_same(solve(made, config("foem", alpha=0.5, beta=0.0), dtype=torch.float32), authors)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_equal_streams_need_no_correction(alpha):
    made = layer()._replace(asymmetry=torch.zeros(24, 24, dtype=torch.float64))
    gptq = solve(made, config("gptq", group_size=8))
    assert_same(solve(made, config("gptaq", group_size=8, alpha=alpha)), gptq)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.0, 0.5),
    bits=st.integers(2, 4),
    size=st.sampled_from([-1, 6, 8]),
    outer=st.sampled_from(["current", "quantized", "clamped"]),
    act_order=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:beta is")
def test_rescomp_with_gptq_is_foem_without_pull(seed, share, bits, size, outer, act_order):
    made = layer(seed=seed)
    common = {"bits": bits, "group_size": size, "outer": outer, "act_order": act_order, "damp": 0.01, "grid": "gptq"}
    rescomp = solve(made, config("rescomp_gptq", alpha_cae=share, **common))
    assert_same(solve(made, config("foem", beta=share, pull="none", **common)), rescomp)


@EACH
def test_the_first_column_is_rounded_to_the_nearest(method):
    for act_order in (False, True):
        made, chosen = layer(), config(method, act_order=act_order)
        first = int(made.hessian.diagonal().argmax()) if act_order else 0
        nearest = quantize_weight(made.weight, config=config("rtn"), **WIDE)
        assert torch.equal(solve(made, chosen).codes[:, first], nearest.codes[:, first])


@EACH
@pytest.mark.parametrize("size", [-1, 8, 7])
def test_uncorrelated_inputs_leave_nothing_to_compensate(method, size):
    made = layer()._replace(hessian=3.0 * torch.eye(24, dtype=torch.float64), asymmetry=torch.zeros(24, 24).double())
    nearest = quantize_weight(made.weight, config=config("rtn", group_size=size), **WIDE)
    assert_same(solve(made, config(method, group_size=size)), nearest)
    if size == -1:  # with groups, the order of columns matters
        made = made._replace(hessian=torch.diag(torch.rand(24, dtype=torch.float64) + 0.1))
        assert_same(solve(made, config(method)), nearest)
        one = made._replace(weight=made.weight[:, :1], hessian=made.hessian[:1, :1], asymmetry=made.asymmetry[:1, :1])
        assert_same(solve(one, config(method)), quantize_weight(one.weight, config=config("rtn"), **WIDE))


@EACH
def test_weights_on_the_grid_stay(method):
    made = layer()
    nearest = quantize_weight(made.weight, config=config("rtn"), **WIDE)
    made = made._replace(weight=nearest.dequantized)
    found = solve(made, config(method, alpha=0.0))
    torch.testing.assert_close(found.dequantized, made.weight, rtol=1e-12, atol=1e-12)


@EACH
@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(1, 5))
def test_rows_are_independent(method, order, cut):
    made, chosen = layer(), config(method, group_size=8)
    whole = solve(made, chosen)
    assert_same(solve(made._replace(weight=made.weight[order]), chosen), whole._replace(
        codes=whole.codes[order], scale=whole.scale[order], zero=whole.zero[order]
    ))  # fmt: skip
    parts = [solve(made._replace(weight=part), chosen) for part in (made.weight[:cut], made.weight[cut:])]
    assert torch.equal(torch.cat([part.codes for part in parts]), whole.codes)
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss)


@EACH
@pytest.mark.parametrize("act_order", [False, True])
def test_the_weights_given_are_left_as_they_were(method, act_order):
    """One row is as contiguous as its transpose, of which no copy has to be made."""
    made = layer()
    row = made.weight[:1].clone()
    solve(made._replace(weight=row), config(method, act_order=act_order, group_size=8))
    assert torch.equal(row, made.weight[:1])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("gptq", {}),
        ("gptaq", {"outer": "current"}),
        ("rescomp", {"outer": "current"}),
        ("rescomp_gptq", {"outer": "current"}),
        ("foem", {"pull": "none"}),
        ("foem", {"pull": "all"}),
        ("foem", {"pull_block_start": True}),
    ],
)
def test_blocks_do_not_matter(method, change, act_order):
    found = [
        solve(layer(), config(method, act_order=act_order, **{**change, "block_size": size}))
        for size in (1, 5, 8, 24, 99)
    ]
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize(("method", "change"), [("gptaq", {"alpha": 1.0}), ("foem", {"beta": 0.5})])
def test_blocks_matter_where_the_authors_code_cuts_corners(method, change):
    small, large = (solve(layer(), config(method, **change, block_size=size)) for size in (4, 24))
    assert not torch.equal(small.codes, large.codes)


@EACH
@pytest.mark.parametrize("grid", [{"sym": False}, {"sym": True, "grid": "quarot"}, {"sym": True, "grid": "gptq"}])
def test_scales_of_inputs_and_weights(method, grid):
    made, chosen = layer(), config(method, group_size=8, **grid)
    whole = solve(made, chosen)
    assert_same(solve(made._replace(hessian=64.0 * made.hessian, asymmetry=64.0 * made.asymmetry), chosen), whole)
    scaled = solve(made._replace(weight=0.25 * made.weight), chosen)
    assert torch.equal(scaled.codes, whole.codes)
    assert torch.equal(scaled.dequantized, 0.25 * whole.dequantized)


@EACH
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [-1, 8, 7])
def test_results_are_on_the_grid(method, bits, size):
    for change in ({}, {"act_order": False}, *([{"static_groups": True}] if size > 0 else [])):
        chosen = config(method, bits=bits, group_size=size, mse_clip=bits == 2, **change)
        found = solve(layer(dtype=torch.float32), chosen, dtype=torch.float32)
        assert found.codes.dtype == torch.uint8
        assert int(found.codes.max()) < 2**bits
        assert found.g_idx.dtype == torch.int32
        assert torch.equal(found.dequantized, dequantize(*found[:4]))
        counts = found.g_idx.bincount()
        assert torch.equal(counts, group_index(24, size).bincount())
        if not chosen.act_order or chosen.static_groups:
            assert torch.equal(found.g_idx, group_index(24, size))


def test_act_order_groups_columns_by_their_inputs():
    made = layer()
    found = solve(made, config("gptq", group_size=8))
    order = made.hessian.diagonal().argsort(descending=True)
    assert found.g_idx[order].tolist() == [0] * 8 + [1] * 8 + [2] * 8


@EACH
def test_dead_columns(method):
    made = layer(dtype=torch.float32)
    hessian, asymmetry = made.hessian.clone(), made.asymmetry.clone()
    hessian[3], hessian[:, 3], asymmetry[:, 3] = 0.0, 0.0, 0.0
    for change in ({}, {"group_size": 8}, {"group_size": 8, "static_groups": True}):
        found = solve(
            made._replace(hessian=hessian, asymmetry=asymmetry), config(method, **change), dtype=torch.float32
        )
        assert torch.equal(found.dequantized[:, 3], torch.zeros(6))


def test_arguments_are_left_alone_and_dtypes_kept():
    made = layer(dtype=torch.float32)
    weight = made.weight.half()
    before = [tensor.clone() for tensor in (weight, made.hessian, made.asymmetry)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantize_weight(weight, made.hessian, made.asymmetry, config=config("rescomp"))
    plain = quantize_weight(weight, made.hessian, made.asymmetry, config=config("rescomp"))
    assert torch.equal(found.codes, plain.codes)
    assert found.dequantized.dtype == torch.half
    assert found.scale.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, made.hessian, made.asymmetry), strict=True))


def test_shared_factors_change_nothing():
    made, chosen = layer(), config("rescomp", group_size=8)
    factors = factorize(made.hessian, made.asymmetry, config=chosen, **WIDE)
    shared = quantize_weight(made.weight, config=chosen, factors=factors, **WIDE)
    assert_same(shared, solve(made, chosen))


@pytest.mark.parametrize("panel", [256, 7])
def test_factors_are_those_of_the_definition(panel, monkeypatch):
    monkeypatch.setattr("lightning_weights.functional.column_solver.factors.PANEL", panel)
    made, chosen = layer(), CompensationConfig(method="gptaq", act_order=False, alpha=0.7)
    factors = factorize(made.hessian, made.asymmetry, config=chosen, **WIDE)
    damped = made.hessian + 0.01 * made.hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    upper = factors.upper
    torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-10)
    assert torch.equal(upper, upper.triu())
    p = 0.7 * torch.triu(made.asymmetry @ upper.T, 1) @ upper
    torch.testing.assert_close(factors.coefficients[:, 1], p.triu(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [-1, 8])
def test_compensation_lowers_the_error(size):
    errors = {}
    for method in ("rtn", "gptq"):
        chosen = config(method, group_size=size)
        errors[method] = [
            relative_error(made.weight, solve(made, chosen).dequantized, made.hessian)
            for made in (layer(seed=seed) for seed in range(8))
        ]
    assert sum(errors["gptq"]) < 0.8 * sum(errors["rtn"])


def test_the_loss_of_gptq_is_the_error_of_the_damped_layer():
    made = layer()
    found = solve(made, config("gptq"))
    damped = made.hessian + 0.01 * made.hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    change = found.dequantized - made.weight
    assert found.loss == pytest.approx(0.5 * float((change @ damped * change).sum()))
    direct = (made.inputs @ change.T).square().sum() / (made.inputs @ made.weight.T).square().sum()
    assert relative_error(made.weight, found.dequantized, made.hessian) == pytest.approx(float(direct))


@pytest.mark.parametrize("bits", [2, 3])
def test_the_range_of_the_clamped_mode_is_the_columns_own(bits):
    made = layer(m=16)
    common = {"bits": bits, "outer": "clamped", "act_order": False, "block_size": 8}
    own, last = (
        solve(made, config("rescomp", group_size=4, clamp_scope=scope, **common)) for scope in ("column", "block_last")
    )
    assert not torch.equal(own.codes, last.codes)
    own, last = (
        solve(made, config("rescomp", group_size=8, clamp_scope=scope, **common)) for scope in ("column", "block_last")
    )
    assert torch.equal(own.codes, last.codes)

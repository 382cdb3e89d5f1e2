"""Settings and layers that cannot be quantized, and those that can in spite of it."""

import math

import pytest
import torch

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.column_solver import CompensationConfig, factorize, quantize_weight
from tests.functional.column_cases import config, layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "awq"}, "method is 'awq'"),
        ({"method": "foem"}, "method is 'foem'"),
        ({"bits": 1}, "bits is 1"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": 3.5}, "bits is 3.5"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": -2}, "group_size is -2"),
        ({"block_size": 0}, "block_size is 0"),
        ({"damp": 0.0}, "damp is 0.0"),
        ({"damp": 1.0}, "damp is 1.0"),
        ({"damp_increment": -0.1}, "damp_increment is -0.1"),
        ({"grid": "nf4"}, "grid is 'nf4'"),
        ({"outer": "last"}, "outer is 'last'"),
        ({"clamp_scope": "row"}, "clamp_scope is 'row'"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha_cae": math.inf}, "alpha_cae is inf"),
        ({"group_size": -1, "static_groups": True}, "static_groups is True with group_size -1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        CompensationConfig(**change)


@pytest.mark.parametrize("change", [{"alpha": 1.5}, {"alpha_cae": -0.25}])
def test_unusual_coefficients_are_pointed_out(change):
    with pytest.warns(LightningWeightsWarning, match=r"outside \[0, 1\]"):
        CompensationConfig(**change)


NAN = torch.full((6, 24), math.nan)
BAD = torch.full((24, 24), math.inf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": NAN}, r"weight of blocks\.0 holds NaN"),
        ({"weight": torch.zeros(6)}, r"weight of blocks\.0 has shape \(6,\)"),
        ({"weight": torch.zeros(0, 24)}, "has shape"),
        ({"weight": torch.zeros(6, 23)}, r"statistics of blocks\.0 have 24 input features, its weight has 23"),
        ({"hessian": BAD}, r"hessian of blocks\.0 holds NaN or infinity"),
        ({"hessian": torch.eye(24)[:20]}, r"hessian of blocks\.0 has shape|statistics of"),
        ({"hessian": None}, r"hessian and factors of blocks\.0 are both missing"),
        ({"asymmetry": BAD}, r"asymmetry of blocks\.0 holds NaN or infinity"),
        ({"asymmetry": torch.eye(23)}, r"asymmetry of blocks\.0 has shape \(23, 23\)"),
        ({"asymmetry": None}, r"asymmetry of blocks\.0 is missing; rescomp .* asymmetric=True"),
    ],
)
def test_layers_that_cannot_be_quantized_are_named(change, message):
    arguments = {**layer(dtype=torch.float32)._asdict(), **change}
    with pytest.raises(ValueError, match=message):
        quantize_weight(
            arguments["weight"], arguments["hessian"], arguments["asymmetry"], config=config("rescomp"), name="blocks.0"
        )


def test_statistics_and_factors_are_alternatives():
    made, chosen = layer(), config("gptq")
    factors = factorize(made.hessian, config=chosen)
    with pytest.raises(ValueError, match="are both given"):
        quantize_weight(made.weight, made.hessian, config=chosen, factors=factors)
    with pytest.raises(ValueError, match="nothing to factorize"):
        factorize(made.hessian, config=config("rtn"))


def test_an_indefinite_hessian_gets_more_damping():
    made, chosen = layer(), config("gptq", damp=0.01, damp_increment=0.05)
    smallest = torch.linalg.eigvalsh(made.hessian)[0]
    shift = smallest + 0.08 * (made.hessian.diagonal().mean() - smallest) / 0.92
    hessian = made.hessian - shift * torch.eye(24, dtype=torch.float64)
    with pytest.warns(
        LightningWeightsWarning, match=r"H of fc could not be factorized with damp 0\.01; 0\.11 was used"
    ):
        found = quantize_weight(made.weight, hessian, config=chosen, name="fc", dtype=torch.float64)
    assert found.damp == pytest.approx(0.11)
    for increment in (0.0, 0.9995):
        stuck = config("gptq", damp=0.01, damp_increment=increment)
        with pytest.raises(ValueError, match=r"H of fc cannot be factorized with damp 0\.01"):
            quantize_weight(made.weight, hessian, config=stuck, name="fc", dtype=torch.float64)


def test_singular_statistics_are_enough():
    made = layer(tokens=8)
    found = quantize_weight(made.weight.float(), made.hessian.float(), config=config("gptq"))
    assert found.damp == 0.01
    assert math.isfinite(found.loss)


def test_rounding_to_the_nearest_needs_no_statistics():
    made = layer()
    found = quantize_weight(made.weight, config=config("rtn", group_size=7))
    assert math.isnan(found.loss)
    assert math.isnan(found.damp)
    step = found.scale[:, found.g_idx.long()]
    assert bool(((found.dequantized - made.weight).abs() <= 0.5001 * step + 1e-6).all())


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("grid", ["quarot", "gptq"])
@pytest.mark.parametrize("clip", [False, True])
def test_rows_of_zeros_stay_zero(grid, sym, clip):
    made = layer(dtype=torch.float32)
    weight = made.weight.clone()
    weight[2] = 0.0
    chosen = config("gptq", group_size=8, grid=grid, sym=sym, mse_clip=clip)
    found = quantize_weight(weight, made.hessian, config=chosen)
    assert torch.equal(found.dequantized[2], torch.zeros(24))
    assert bool(found.dequantized.isfinite().all())


def test_tiny_and_huge_weights_survive():
    made = layer(dtype=torch.float32)
    for size in (1e-42, 1e-30, 1e30):
        found = quantize_weight(size * made.weight, made.hessian, config=config("gptq", group_size=8))
        assert bool(found.dequantized.isfinite().all())

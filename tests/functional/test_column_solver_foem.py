"""What is FOEM's alone: the pull, the first preprint's variant and the choice of β."""

import math
import re
from dataclasses import replace

import pytest
import torch

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.column_solver import (
    FOEMConfig,
    InputStatistics,
    factorize,
    quantize_weight,
    relative_error,
    sweep_beta,
)
from tests.functional.column_cases import config, layer

WIDE = {"dtype": torch.float64}
QUIET = pytest.mark.filterwarnings("ignore:beta is 1.0")


def solve(made, chosen):
    return quantize_weight(made.weight, made.hessian, made.asymmetry, config=chosen, **WIDE)


@QUIET
@pytest.mark.parametrize("change", [{"block_size": 24}, {"pull_block_start": True}, {"pull": "all"}])
def test_a_full_pull_resets_every_column(change):
    made = layer()
    nearest = quantize_weight(made.weight, config=config("rtn"), **WIDE)
    found = solve(made, config("foem", beta=1.0, **change))
    assert torch.equal(found.codes, nearest.codes)


@QUIET
def test_the_authors_code_does_not_reset_the_first_column_of_a_block():
    made = layer(m=32)
    nearest = quantize_weight(made.weight, config=config("rtn"), **WIDE).codes
    found = solve(made, config("foem", beta=1.0, act_order=False)).codes
    starts = torch.arange(24) % 8 == 0
    assert torch.equal(found[:, ~starts], nearest[:, ~starts])
    assert not torch.equal(found[:, starts], nearest[:, starts])


def test_pulling_all_columns_in_every_step_undoes_the_compensation():
    errors = dict.fromkeys(("next", "all", "rtn", "gptq"), 0.0)
    for seed in range(4):
        made = layer(m=16, n=48, seed=seed, tokens=192)
        for name in errors:
            chosen = config(name) if name in ("rtn", "gptq") else config("foem", pull=name, beta=0.2)
            errors[name] += relative_error(made.weight, solve(made, chosen).dequantized, made.hessian)
    assert errors["gptq"] < errors["next"] < errors["all"] < errors["rtn"]
    assert errors["all"] - errors["next"] > errors["next"] - errors["gptq"]


def falling_layer(seed, tokens, n=64):
    """Inputs with falling variances in a random basis, as those of trained networks have them."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    spread = torch.arange(1, n + 1, dtype=torch.float64) ** -0.3

    def hessian(count):
        statistics = InputStatistics(n, **WIDE)
        statistics.update(torch.randn(1, count, n, generator=generator, dtype=torch.float64) * spread @ basis.T)
        return statistics.hessian

    return torch.randn(48, n, generator=generator, dtype=torch.float64), hessian(tokens), hessian(4096)


def test_with_few_tokens_foem_fits_them_less_and_others_better():
    calibration, held_out = dict.fromkeys((0.0, 0.1, 0.2), 0.0), dict.fromkeys((0.0, 0.1, 0.2), 0.0)
    for seed in range(4):
        weight, hessian, others = falling_layer(seed, tokens=48)
        for beta in calibration:
            found = quantize_weight(weight, hessian, config=config("foem", beta=beta, group_size=16), **WIDE)
            calibration[beta] += relative_error(weight, found.dequantized, hessian)
            held_out[beta] += relative_error(weight, found.dequantized, others)
    assert calibration[0.0] < calibration[0.1] < calibration[0.2]
    assert held_out[0.0] > held_out[0.1] > held_out[0.2]


def test_the_sweep_keeps_what_is_best_on_other_inputs():
    weight, hessian, others = falling_layer(0, tokens=48)
    chosen = config("foem", group_size=16)
    sweep = sweep_beta(weight, hessian, others, betas=[0.0, 0.1, 0.3], config=chosen, **WIDE)
    for beta, error in sweep.errors.items():
        alone = quantize_weight(weight, hessian, config=replace(chosen, beta=beta), **WIDE)
        assert relative_error(weight, alone.dequantized, others) == error
        assert (beta == sweep.beta) == torch.equal(alone.codes, sweep.quantized.codes)
    assert sweep.beta > 0.0
    with pytest.raises(ValueError, match="betas is empty"):
        sweep_beta(weight, hessian, others, betas=[], config=chosen)
    with pytest.raises(ValueError, match="beta is 2"):
        sweep_beta(weight, hessian, others, betas=[0.1, 2.0], config=chosen)


def literal_v1(made, chosen):
    """The first preprint's step for one block that holds all columns, with the inverse built."""
    factors = factorize(made.hessian, made.asymmetry, config=chosen, **WIDE)
    upper, w = factors.upper, made.weight[:, factors.order].clone()
    w0, codes = w.clone(), torch.zeros_like(w)
    grid = quantize_weight(made.weight, config=config("rtn"), **WIDE)
    for q in range(w.shape[1]):
        s, z = grid.scale[:, 0], grid.zero[:, 0]
        codes[:, q] = ((w[:, q] / s).round() + z).clamp(0, 2**chosen.bits - 1)
        error = (w[:, q] - s * (codes[:, q] - z)) / upper[q, q]
        trailing = upper[q:, q:]
        step = -error[:, None] * upper[q, q:] - chosen.beta * (w - w0)[:, q:] @ (trailing.T @ trailing)
        if chosen.alpha:
            step = step + w[:, q, None] * factors.coefficients[q, 1, q:]
        w[:, q:] += step
    return codes[:, factors.order.argsort()].to(torch.uint8)


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_v1_is_the_literal_step(alpha):
    made = layer()
    chosen = config("foem", variant="v1", beta=0.05, alpha=alpha, block_size=24)
    assert torch.equal(solve(made, chosen).codes, literal_v1(made, chosen))
    gptq = solve(made, config("gptaq" if alpha else "gptq", outer="quantized", block_size=8))
    assert torch.equal(solve(made, config("foem", variant="v1", beta=0.0, alpha=alpha)).codes, gptq.codes)


def test_v1_depends_on_the_size_of_the_inputs_and_says_when_it_would_diverge():
    made, chosen = layer(), config("foem", variant="v1", beta=0.05)
    scaled = made._replace(hessian=1e4 * made.hessian)
    assert not torch.equal(solve(scaled, chosen).codes, solve(made, chosen).codes)
    small = made._replace(hessian=1e-3 * made.hessian)
    with pytest.raises(ValueError, match="the largest allowed is") as caught:
        solve(small, chosen)
    largest = float(re.search(r"allowed is (\S+)\. Use", str(caught.value)).group(1))
    damped = small.hessian + 0.01 * small.hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    assert largest == pytest.approx(float(torch.linalg.eigvalsh(damped)[0]), rel=0.2)
    assert math.isfinite(solve(small, replace(chosen, beta=0.5 * largest)).loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": 1.5}, "beta is 1.5"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"beta": True}, "beta is True"),
        ({"beta": "0.1"}, "beta is '0.1'"),
        ({"variant": "v3"}, "variant is 'v3'"),
        ({"pull": "some"}, "pull is 'some'"),
        ({"method": "gptq"}, "method is 'gptq'"),
        ({"alpha_cae": 0.25}, "alpha_cae is 0.25"),
        ({"bits": 1}, "bits is 1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        FOEMConfig(**change)


@pytest.mark.parametrize(("beta", "reason"), [(0.6, "above 0.5"), (3e-4, "looks like a value of v1")])
def test_unusual_coefficients_are_pointed_out(beta, reason):
    with pytest.warns(LightningWeightsWarning, match=reason):
        FOEMConfig(beta=beta)


def test_usual_coefficients_are_not(recwarn):
    FOEMConfig(beta=3e-4, variant="v1")
    FOEMConfig(beta=0.0)
    FOEMConfig(beta=0.25)
    assert not recwarn.list


def test_the_second_stream_is_asked_for():
    made = layer()
    with pytest.raises(ValueError, match="asymmetry of the layer is missing"):
        quantize_weight(made.weight, made.hessian, config=config("foem_gptaq"))

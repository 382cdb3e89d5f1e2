"""GPTQ, GPTAQ and ResComp against the vectors of the authors' classes."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.column_solver import CompensationConfig, InputStatistics, factorize, quantize_weight
from tests.helpers.golden import load

GOLDEN = load("rescomp")
METHODS = ("gptq", "gptaq", "rescomp_gptaq", "rescomp_gptq")
CASES = range(len(GOLDEN["cases"]))


def vector(name):
    return torch.tensor(GOLDEN[name])


def statistics(dtype=torch.float32):
    found = InputStatistics(GOLDEN["W"].shape[1], asymmetric=True, dtype=dtype)
    for quantized, full in zip(vector("X_q"), vector("X_fp"), strict=True):
        found.update(quantized[None], full[None])
    return found


def config(method, case, **change):
    bits, group_size, sym, clip, act_order, static, block = (int(value) for value in GOLDEN["cases"][case])
    return CompensationConfig(
        method={"rescomp_gptaq": "rescomp"}.get(method, method),
        bits=bits,
        group_size=group_size,
        sym=bool(sym),
        mse_clip=bool(clip),
        act_order=bool(act_order),
        static_groups=bool(static),
        block_size=block,
        damp=float(GOLDEN["percdamp"]),
        alpha=float(GOLDEN["alpha"]),
        alpha_cae=float(GOLDEN["alpha_cae"]),
        clamp_scope="block_last",
        **change,
    )


def assert_near(actual, name, rtol=0.0, atol=1e-5):
    np.testing.assert_allclose(actual.numpy(), GOLDEN[name], rtol=rtol, atol=atol, err_msg=name)


def explicit_matrices(h_raw, d, damp):
    """U, striu(D Uᵀ) U and striu((D + H) Uᵀ) U as the papers have them."""
    h = h_raw.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1.0
    d = d.masked_fill(dead, 0.0)
    damped = h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped)).mT
    return upper, *(torch.triu(matrix @ upper.mT, 1) @ upper for matrix in (d, d + h_raw))


def test_statistics():
    found = statistics()
    assert_near(found.hessian, "H", rtol=1e-5, atol=1e-5)
    assert_near(found.asymmetry, "dXXT", rtol=1e-5, atol=1e-5)
    assert (found.samples, found.tokens) == (len(GOLDEN["X_q"]), GOLDEN["X_q"][..., 0].size)


def test_factors():
    factors = factorize(vector("H"), vector("dXXT"), config=config("gptaq", 0))
    assert_near(factors.upper, "U", rtol=1e-4, atol=1e-6)
    assert_near(factors.coefficients[:, 1], "P", rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_matrix_of_rescomp_need_not_be_built(dtype, tolerance):
    found, chosen = statistics(dtype), config("gptaq", 0)
    factors = factorize(found.hessian, found.asymmetry, config=chosen, dtype=dtype)
    ratio = chosen.alpha_cae / chosen.alpha
    implied = ratio * factors.coefficients[:, 1] + chosen.alpha_cae * factors.coefficients[:, 0]
    *_, r = explicit_matrices(found.hessian.double(), found.asymmetry.double(), chosen.damp)
    r = chosen.alpha_cae * r
    assert (implied.double() - r).abs().max() <= tolerance * r.abs().max()
    assert torch.equal(implied, implied.triu(1))
    assert_near(implied.float(), "R", rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_weights(case, method, dtype):
    result = quantize_weight(vector("W"), vector("H"), vector("dXXT"), config=config(method, case), dtype=dtype)
    assert_near(result.dequantized, f"Q_{method}_{case}")


def test_every_entry_of_the_file_is_used():
    names = {f"Q_{method}_{case}" for method in METHODS for case in CASES}
    assert names == {name for name in GOLDEN if name.startswith("Q_")}

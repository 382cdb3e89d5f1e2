"""Truncated decompositions against numpy's, and what no decomposition may do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.low_rank import fix_signs, truncated_svd

METHODS = ("exact", "gram", "randomized")


def decaying(rows, columns, dtype=torch.float32):
    """A matrix whose singular values fall by a tenth from one to the next."""
    count = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(size, count, dtype=torch.float64)).Q for size in (rows, columns))
    return (left * 0.9 ** torch.arange(count) @ right.T).to(dtype)


def approximation(svd):
    return (svd.u * svd.s) @ svd.vh


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (200, 220), (220, 200)])
def test_the_best_approximation(method, shape):
    matrix = decaying(*shape)
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    svd = truncated_svd(matrix, 4, method)
    np.testing.assert_allclose(svd.s, s[:4], rtol=1e-5)
    np.testing.assert_allclose(approximation(svd), (u[:, :4] * s[:4]) @ vh[:4], atol=1e-5)
    for vectors in (svd.u.T, svd.vh):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(METHODS), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_at_full_rank_nothing_is_lost(rows, columns, method, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    svd = truncated_svd(matrix, min(rows, columns), method)
    np.testing.assert_allclose(approximation(svd), matrix, atol=2e-5)
    assert (svd.s[1:] <= svd.s[:-1] + 1e-6).all()


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_matrices_give_a_basis_all_the_same(method):
    single = torch.outer(torch.arange(6.0), torch.ones(5))
    for matrix, values in ((torch.zeros(6, 5), [0.0, 0.0]), (single, [single.norm().item(), 0.0])):
        svd = truncated_svd(matrix, 2, method)
        np.testing.assert_allclose(svd.s, values, atol=1e-4)
        for vectors in (svd.u.T, svd.vh):
            np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_any_scale(method, factor):
    matrix = decaying(6, 5)
    one, other = truncated_svd(matrix, 2, method), truncated_svd(matrix * factor, 2, method)
    np.testing.assert_allclose(other.s / factor, one.s, rtol=1e-5)


def test_slowly_decaying_spectra_agree_on_the_largest_entries():
    matrix = torch.randn(200, 300) * torch.arange(1, 301) ** -0.3
    wanted = approximation(truncated_svd(matrix, 8)).abs().flatten().topk(3000).indices
    for method in METHODS[1:]:
        found = approximation(truncated_svd(matrix, 8, method)).abs().flatten().topk(3000).indices
        assert torch.isin(found, wanted).float().mean() >= 0.99


@pytest.mark.parametrize("method", METHODS)
def test_repeatable_and_without_a_trace(method):
    matrix = decaying(200, 210).requires_grad_()
    state = torch.get_rng_state()
    first, second = truncated_svd(matrix, 3, method, seed=1), truncated_svd(matrix, 3, method, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part.requires_grad for part in first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)]
)
def test_dtypes(method, dtype, wide):
    matrix = decaying(20, 9, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        svd = truncated_svd(matrix, 3, method)
    assert {part.dtype for part in svd} == {wide}
    np.testing.assert_allclose(svd.s, np.linalg.svd(matrix.double())[1][:3], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_shapes_without_numbers(method):
    svd = truncated_svd(torch.empty(500, 700, device="meta"), 3, method)
    assert [tuple(part.shape) for part in svd] == [(500, 3), (3,), (3, 700)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_never_reaches_the_library(method, bad):
    matrix = torch.ones(3, 4)
    matrix[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        truncated_svd(matrix, 1, method)


def test_bad_input():
    with pytest.raises(ValueError, match="method is 'fast'"):
        truncated_svd(torch.ones(3, 4), 1, "fast")
    for rank in (0, 4, 1.5):
        with pytest.raises(ValueError, match="rank is"):
            truncated_svd(torch.ones(3, 4), rank)
    with pytest.raises(ValueError, match="matrix has 3 dimensions"):
        truncated_svd(torch.ones(3, 4, 2), 1)


def test_signs_do_not_depend_on_where_they_started():
    vectors = torch.randn(5, 8)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0]).unsqueeze(1)
    fixed = fix_signs(vectors)
    assert torch.equal(fixed, fix_signs(vectors * signs))
    assert (fixed.gather(1, fixed.abs().argmax(1, keepdim=True)) > 0).all()
    assert torch.equal(fixed.abs(), vectors.abs())


def test_eigenvectors_that_are_not_found_in_fp32_are_sought_in_fp64(monkeypatch):
    eigh, matrix = torch.linalg.eigh, torch.randn(9, 6)

    def fails_in_fp32(symmetric):
        if symmetric.dtype == torch.float32:
            raise torch.linalg.LinAlgError("too many repeated eigenvalues")
        return eigh(symmetric)

    expected = truncated_svd(matrix, 3, "gram")
    monkeypatch.setattr("torch.linalg.eigh", fails_in_fp32)
    found = truncated_svd(matrix, 3, "gram")
    torch.testing.assert_close(found.s, expected.s)
    torch.testing.assert_close(found.u.abs(), expected.u.abs(), atol=1e-5, rtol=1e-4)

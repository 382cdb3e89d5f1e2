"""Blocks of columns on the CPU against their specification and an oracle in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.errors import ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.compensate_columns import (
    compensate_columns,
    compensate_columns_reference,
    search_grid,
)
from lightning_weights.kernels.compensate_columns.eager import COLUMNS
from tests.kernels.buffers import guarded, strided
from tests.kernels.compensate_cases import GRIDS, SETTINGS, best_grid, inputs, options, oracle

EACH = pytest.mark.parametrize("name", SETTINGS)
BLOCKS = ((1, 3), (8, 1), (19, 5), (37, 2))


def run(tensors, function=compensate_columns, **told):
    """Results and the grids that were found."""
    copies = [tensor.clone() for tensor in tensors]
    return *function(*copies, **told), copies[4], copies[5]


def defaults(told):
    rest = {"clip": False, "search": 0, "start": 0, "cae": 0.0, "blend": 0.0, "pull": 0.0, "pull_all": False}
    return {**rest, "outer": "current", "block_last": False, **told}


@EACH
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("block", "rows"), BLOCKS)
def test_results_are_the_oracles(block, rows, grid, name):
    made, told = options(SETTINGS[name], grid)
    tensors = inputs(block, rows, dtype=torch.float64, beyond=5, **made)
    copies = [tensor.clone() for tensor in tensors]
    wanted = (*oracle(*copies, **told), copies[4], copies[5])
    for function, said in ((compensate_columns, told), (compensate_columns_reference, defaults(told))):
        for found, want in zip(run(tensors, function, **said), wanted, strict=True):
            np.testing.assert_allclose(found.numpy(), want, rtol=1e-9, atol=1e-11)


@EACH
def test_single_precision_is_near(name):
    made, told = options(SETTINGS[name], "asymmetric")
    tensors = inputs(2 * COLUMNS + 3, 6, **made)
    tensors[2] *= 0.3  # errors that do not grow from column to column, so that codes at a tie stay rare
    codes, pushed, loss, *_ = run(tensors, **told)
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    want_codes, want_pushed, want_loss, *_ = run(wide, compensate_columns_reference, **defaults(told))
    assert codes.dtype == torch.uint8
    assert torch.equal(codes, want_codes)
    torch.testing.assert_close(pushed.double(), want_pushed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.double(), want_loss, rtol=1e-4, atol=1e-5)


@EACH
def test_nothing_else_is_written_and_strides_do_not_matter(name):
    made, told = options(SETTINGS[name], "asymmetric")
    tensors = inputs(COLUMNS + 3, 9, beyond=4, **made)
    wanted = run(tensors, **told)
    guards, untouched = guarded(tensors[:6], shift=1)
    found = compensate_columns(*guards, tensors[6], **told)
    assert untouched()
    for tensor, want in zip((*found, *guards[4:]), wanted, strict=True):
        assert torch.equal(tensor, want)
    assert all(torch.equal(guard, tensor) for guard, tensor in zip(guards[:4], tensors[:4], strict=True))
    odd = [*(strided(tensor) for tensor in tensors[:4]), *(tensor.clone() for tensor in tensors[4:])]
    for tensor, want in zip(compensate_columns(*odd, **told), wanted[:3], strict=True):
        torch.testing.assert_close(tensor, want, rtol=1e-6, atol=1e-6)


@EACH
def test_rows_do_not_know_of_each_other(name):
    made, told = options(SETTINGS[name], "asymmetric")
    tensors = inputs(COLUMNS + 5, 8, dtype=torch.float64, **made)
    order = torch.randperm(8)
    whole = run(tensors, **told)
    mixed = [t[:, order] if i in (0, 1, 4, 5) else t for i, t in enumerate(tensors)]
    for found, want in zip(run(mixed, **told), whole, strict=True):
        torch.testing.assert_close(found, want[..., order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pairs", [1, 2])
def test_columns_may_be_pulled_without_correcting_errors(pairs):
    tensors = inputs(COLUMNS + 3, 4, pairs=pairs, dtype=torch.float64)
    told = defaults({"bits": 3, "grid": "gptq", "pull": 0.3})
    for found, want in zip(run(tensors, **told), run(tensors, compensate_columns_reference, **told), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)


def test_only_later_columns_count():
    tensors = inputs(20, 4)
    wanted = run(tensors, bits=3, grid="gptq")
    tensors[2] += 100 * torch.tril(torch.ones(20, 20))[:, None]
    for found, want in zip(run(tensors, bits=3, grid="gptq"), wanted, strict=True):
        assert torch.equal(found, want)


def test_ties_go_to_the_even_code():
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5]])
    one = torch.ones(1, 4)
    codes, *_ = compensate_columns(
        weight, None, torch.zeros(1, 1, 1), torch.ones(1), one, 2 * one, torch.zeros(1, dtype=torch.int32),
        bits=3, grid="gptq",
    )  # fmt: skip
    assert codes.tolist() == [[2, 4, 4, 2]]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("clip", [False, True])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), bits=st.integers(2, 8))
def test_grids_are_the_oracles(grid, clip, data, bits):
    values = data.draw(st.lists(st.floats(-4, 4, width=32, allow_subnormal=False), min_size=1, max_size=12))
    column = torch.tensor(values, dtype=torch.float64)[:, None]
    scale, zero = search_grid(column, bits, grid, clip)
    s, z = best_grid(column.numpy().ravel(), bits, grid, clip)
    quantized = scale * ((column / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero)
    assert 0 <= float(zero) <= 2**bits - 1
    error, want = (float((abs(q - column) ** 2.4).sum()) for q in (quantized, _rounded(column, s, z, bits)))
    assert error == pytest.approx(want, rel=1e-9, abs=1e-12)  # two ranges may be equally good
    if not clip:
        assert (float(scale), float(zero)) == pytest.approx((s, z), rel=1e-12)


def _rounded(column, s, z, bits):
    return s * ((column / s).round() + z).clamp(0, 2**bits - 1).sub(z)


def test_clipping_goes_piece_by_piece():
    columns = torch.randn(64, 5000)
    whole = search_grid(columns, 3, "asymmetric", True)
    parts = [search_grid(part, 3, "asymmetric", True) for part in columns.split(300, dim=1)]
    for found, want in zip(whole, (torch.cat(grids) for grids in zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("name", ["gptq, clipped groups", "foem and gptaq"])
def test_registration(name):
    made, told = options(SETTINGS[name], "asymmetric")
    told = defaults(told)
    tensors = inputs(6, 3, **made)
    torch.library.opcheck(torch.ops.lightning_weights.compensate_columns.default, (*tensors, *_ordered(told)))


def _ordered(told):
    names = ("bits", "grid", "clip", "search", "start", "cae", "blend", "pull", "pull_all", "outer", "block_last")
    return [told[name] for name in names]


def test_compiles():
    tensors = inputs(6, 3)
    compiled = torch.compile(
        lambda *t: compensate_columns(*t, bits=3, grid="gptq"), fullgraph=True, backend="aot_eager"
    )
    for found, want in zip(compiled(*tensors), compensate_columns(*tensors, bits=3, grid="gptq"), strict=True):
        assert torch.equal(found, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": "nf4"}, "grid is 'nf4'"),
        ({"outer": "last"}, "outer is 'last'"),
        ({"pull": 0.1, "original": None}, "original has shape None"),
        ({"original": torch.zeros(2, 2)}, r"original has shape \(2, 2\)"),
        ({"coefficients": torch.zeros(4, 3, 4)}, r"coefficients have shape \(4, 3, 4\)"),
        ({"weight": torch.zeros(3, 3)}, "coefficients have shape"),
        ({"zero": torch.zeros(1, 3)}, "scale has shape"),
        ({"diagonal": torch.zeros(3)}, "diagonal"),
    ],
)
def test_bad_input(change, message):
    names = ("weight", "original", "coefficients", "diagonal", "scale", "zero", "groups")
    arguments = {**dict(zip(names, inputs(4, 3), strict=True)), "bits": 3, "grid": "gptq", **change}
    tensors = [arguments.pop(name) for name in names]
    with pytest.raises(ValueError, match=message):
        compensate_columns(*tensors, **arguments)


def test_sharded_weights_are_refused():
    tensors = inputs(4, 3)
    tensors[0].placements = ()
    with pytest.raises(ShardedParameterError, match="full_tensor"):
        compensate_columns(*tensors, bits=3, grid="gptq")


def test_eager_mode_takes_the_same_path():
    tensors = inputs(20, 4)
    with use_kernels("eager"):
        eager = run(tensors, bits=3, grid="gptq")
    for found, want in zip(run(tensors, bits=3, grid="gptq"), eager, strict=True):
        assert torch.equal(found, want)

"""The kernel for a block of columns in Triton's interpreter, against its specification and an oracle in numpy."""

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.compensate_columns import (
    compensate_columns,
    compensate_columns_reference,
    grid_search,
    search_kernels,
)
from lightning_weights.kernels.compensate_columns.cost import LONGEST_BLOCK, LONGEST_GROUP, ROWS, cost
from tests.kernels.buffers import guarded, strided
from tests.kernels.compensate_cases import GRIDS, SETTINGS, inputs, options, oracle

PLAIN = {"clip": False, "search": 0, "start": 0, "cae": 0.0, "blend": 0.0, "pull": 0.0, "pull_all": False}
PLAIN |= {"outer": "current", "block_last": False}
CLIPPED = "gptq, clipped groups"  # 80 ranges for every group, which takes long in the interpreter


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def case(name, grid, block, rows, beyond=3, **changes):
    """Tensors whose errors do not grow from column to column, so that no code is near a tie, and what to do."""
    made, told = options({**SETTINGS[name], **changes}, grid)
    tensors = inputs(block, rows, beyond=beyond, **made)
    tensors[2] *= 0.3
    return tensors, told


def run(tensors, function=compensate_columns, **told):
    """Results and the grids that were found."""
    copies = [tensor.clone() for tensor in tensors]
    return *function(*copies, **told), copies[4], copies[5]


def check(tensors, told):
    """Compare with both; of all roundings, only those of the loss are not the specification's."""
    *found, loss, scale, zero = run(tensors, **told)
    *want, want_loss, want_scale, want_zero = run(tensors, compensate_columns_reference, **{**PLAIN, **told})
    for result, wanted in zip((*found, scale, zero), (*want, want_scale, want_zero), strict=True):
        assert torch.equal(result, wanted)
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-7)
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    codes, pushed, losses = oracle(*wide, **told)
    np.testing.assert_array_equal(found[0], codes)
    for result, wanted in ((found[1], pushed), (loss, losses), (scale, wide[4]), (zero, wide[5])):
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != CLIPPED])
def test_numbers(name, grid):
    check(*case(name, grid, 6, 4))


def test_all_ranges_are_tried():
    check(*case(CLIPPED, "asymmetric", 3, 4))


@pytest.mark.parametrize(
    ("name", "block", "rows"),
    [("foem", 1, 1), ("foem", 16, 2 * ROWS), ("rescomp, unequal", 1, 1), ("rescomp, unequal", 19, ROWS + 1)],
)
def test_several_programs_and_ragged_tiles(name, block, rows):
    check(*case(name, "quarot", block, rows, start=3))


@pytest.mark.parametrize("grid", GRIDS)
def test_groups_longer_than_what_is_held(grid):
    check(*case("gptq", grid, 2, 3, beyond=LONGEST_GROUP + 4, search=LONGEST_GROUP + 6))
    check(*case("gptq", grid, 2, 3, beyond=LONGEST_GROUP, search=LONGEST_GROUP + 6))  # there are fewer columns


@pytest.mark.interpreter  # elsewhere the number of steps is compiled in
@pytest.mark.parametrize("grid", GRIDS)
def test_groups_longer_than_what_is_held_clipped(monkeypatch, grid):
    monkeypatch.setattr(grid_search, "CLIP_STEPS", 6)
    monkeypatch.setattr(search_kernels, "STEPS", 6)
    tensors, told = case(CLIPPED, grid, 2, 3, beyond=LONGEST_GROUP, search=LONGEST_GROUP + 2, bits=2)
    *_, scale, zero = run(tensors, **told)
    *_, want_scale, want_zero = run(tensors, compensate_columns_reference, **{**PLAIN, **told})
    assert torch.equal(scale, want_scale)
    assert torch.equal(zero, want_zero)
    *_, unclipped, _ = run(tensors, **{**told, "clip": False})
    assert (scale < unclipped).all()


@pytest.mark.parametrize("bits", [2, 8])
def test_numbers_of_bits(bits):
    check(*case("foem and gptaq", "asymmetric", 5, 4, bits=bits))


def test_grids_are_written_where_groups_begin_in_the_block():
    tensors, told = case("rescomp", "gptq", 6, 3, start=6)  # columns 6 to 11 of groups of 4, which begin at 8
    tensors[4:6] = [torch.full((4, 3), number) for number in (0.5, 4.0)]
    *_, scale, zero = run(tensors, **told)
    assert [row.item() for row in (scale != 0.5).all(1)] == [False, False, True, False]
    assert zero.eq(4).all()
    assert scale[[0, 1, 3]].eq(0.5).all()
    check(tensors, told)


def test_zeros_ties_and_nan():
    weight = torch.tensor([[0.0, 0.5, 1.5, -2.5, torch.nan]])
    one = torch.ones(1, 5)
    tensors = [weight, None, torch.zeros(1, 1, 1), torch.ones(1), one, 4 * one, torch.zeros(1, dtype=torch.int32)]
    codes, pushed, loss = compensate_columns(*tensors, bits=3, grid="gptq")
    assert codes[0, :4].tolist() == [4, 4, 6, 2]
    assert pushed.flatten()[:4].tolist() == [0.0, 0.5, -0.5, -0.5]
    assert loss[4].isnan()
    for grid, smallest in (("asymmetric", 2 / 7), ("quarot", 1e-5 / 3), ("gptq", 2 / 7)):
        tensors[0], tensors[4] = torch.zeros(1, 5), torch.zeros(1, 5)
        compensate_columns(*tensors, bits=3, grid=grid, search=1)
        torch.testing.assert_close(tensors[4], torch.full((1, 5), smallest))


@pytest.mark.parametrize("rows", [5, 16])
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
def test_nothing_outside_is_read_or_written(rows, shift):
    tensors, told = case("rescomp", "asymmetric", 5, rows)
    wanted = run(tensors, **told)
    guards, clean = guarded(tensors[:6], shift)
    found = compensate_columns(*guards, tensors[6], **told)
    assert clean()
    for tensor, want in zip((*found, *guards[4:]), wanted, strict=True):
        assert torch.equal(tensor, want)
    assert all(torch.equal(guard, tensor) for guard, tensor in zip(guards[:4], tensors[:4], strict=True))


def test_any_layout_also_of_the_grids():
    tensors, told = case("gptaq", "asymmetric", 6, 4)
    wanted = run(tensors, **told)
    odd = [*(strided(tensor) for tensor in tensors[:6]), tensors[6]]
    parts = torch.full((6, 4, 9), torch.nan)  # coefficients as the solver has them: part of a longer table
    parts[:, :2, 1:7] = tensors[2]
    for table in (odd[2], parts[:, :2, 1:7]):
        found = compensate_columns(*odd[:2], table, *odd[3:], **told)
        for tensor, want in zip((*found, *odd[4:6]), wanted, strict=True):
            assert torch.equal(tensor, want)


def test_only_later_columns_count():
    tensors, told = case("gptaq", "gptq", 6, 3)
    wanted = run(tensors, **told)
    tensors[2] += torch.where(torch.ones(6, 6).tril().bool(), torch.nan, 0.0)[:, None]
    for found, want in zip(run(tensors, **told), wanted, strict=True):
        assert torch.equal(found, want)


def test_no_columns_and_no_rows():
    for block, rows in ((0, 3), (3, 0)):
        codes, pushed, loss = compensate_columns(*inputs(block, rows), bits=3, grid="gptq")
        assert (codes.shape, pushed.shape) == ((block, rows), (block, 1, rows))
        assert loss.tolist() == [0.0] * rows


def test_what_has_no_kernel_is_refused():
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        compensate_columns(*inputs(4, 3, dtype=torch.float64), bits=3, grid="gptq")
    with pytest.raises(KernelUnavailableError, match=rf"up to {LONGEST_BLOCK}"):
        compensate_columns(*inputs(LONGEST_BLOCK + 1, 1), bits=3, grid="gptq")


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("name", "drifts"), [("gptq", False), ("gptaq", False), ("rescomp", True), ("foem", True), ("foem, all", True)]
)
def test_cost_is_what_is_moved(monkeypatch, name, drifts):
    moved = {"load": 0, "store": 0}

    def counting(way, original):
        def wrapper(builder, pointers, *rest):
            mask = rest[0] if way == "load" else rest[1]
            moved[way] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return original(builder, pointers, *rest)

        return wrapper

    block, rows = 8, ROWS + 3
    tensors, told = case(name, "asymmetric", block, rows, beyond=4)
    for way in moved:
        attribute = f"create_masked_{way}"
        monkeypatch.setattr(InterpreterBuilder, attribute, counting(way, getattr(InterpreterBuilder, attribute)))
    tensors[1] = tensors[1] if drifts else None
    compensate_columns(*tensors, **told)
    model = cost(block, rows, pairs=tensors[2].shape[1], drifts=drifts, search=told.get("search", 0))
    assert moved == {"load": model.bytes_read, "store": model.bytes_written}

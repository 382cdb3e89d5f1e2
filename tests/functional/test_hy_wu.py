"""Sheets, rotary positions and cosines against their definitions, on any sizes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.hy_wu import (
    centred_similarity,
    cosine_matrix,
    from_sheets,
    group_means,
    rotary_table,
    rotate,
    sheet_count,
    to_sheets,
)

few = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 7)


@few
@given(st.data(), sizes, sizes, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0.0, math.nan]))
def test_sheets_are_undone(data, rank, width, experts, second, by_rank, fill):
    """The property holds for A and B, with experts or without, with anything in front."""
    long, group = data.draw(sizes), ((data.draw(sizes),) if experts else ())
    shape = (*group, long, rank) if second else (*group, rank, long)
    axis = (-1 if second else -2) if by_rank else None
    tensor = torch.arange(2.0 * math.prod(shape)).view(2, *shape)
    sheets = to_sheets(tensor, len(shape), rank, width, rank_axis=axis, fill=fill)
    assert sheets.shape == (2, sheet_count(shape, rank, width), rank, width)
    assert torch.equal(from_sheets(sheets, shape, rank_axis=axis), tensor)
    filled = sheets.numel() - tensor.numel()
    assert 0 <= filled < 2 * rank * width
    wrong = sheets.isnan().sum() if math.isnan(fill) else (sheets == 0).sum() - 1  # one number is zero itself
    assert wrong == filled


def test_rows_of_a_sheet_are_ranks_only_by_rank():
    a = torch.arange(3.0)[:, None].expand(3, 10)  # every number is its rank
    by_rank = to_sheets(a, 2, rank=3, width=4, rank_axis=-2, fill=math.nan)
    assert torch.equal(by_rank.nanmean(dim=-1), torch.arange(3.0).expand(3, 3))
    assert torch.equal(to_sheets(a, 2, rank=3, width=4)[0], torch.tensor([[0.0] * 4, [0.0] * 4, [0.0] * 2 + [1.0] * 2]))
    b = a.t()
    assert torch.equal(to_sheets(b, 2, 3, 4, rank_axis=-1, fill=math.nan).nanmean(-1), torch.arange(3.0).expand(3, 3))


def test_flat_and_by_rank_agree_where_inputs_fill_a_token():
    a = torch.randn(4, 8)
    assert torch.equal(to_sheets(a, 2, 4, 8), to_sheets(a, 2, 4, 8, rank_axis=-2))


def test_rotations_are_those_of_complex_numbers():
    place, head = torch.tensor([0.0, 3.0, 11.0]), 8
    x = torch.randn(5, 3, head, dtype=torch.float64)
    steps = 10000.0 ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.exp(1j * place.double()[:, None] * steps)
    torch.testing.assert_close(
        rotate(x, rotary_table([place], head).double()), torch.view_as_real(turned).flatten(-2), rtol=0, atol=2e-6
    )


@few
@given(st.integers(0, 20), st.integers(0, 20), st.integers(-15, 15), st.integers(-15, 15))
def test_scores_depend_on_differences_of_positions_only(first, second, down, across):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 16, generator=generator, dtype=torch.float64) for _ in range(2))

    def score(shift_down, shift_across):
        tables = [
            rotary_table([torch.tensor([place + shift_down]), torch.tensor([2 * place + shift_across])], 16).double()
            for place in (first, second)
        ]
        return rotate(query, tables[0]) @ rotate(key, tables[1]).t()

    torch.testing.assert_close(score(down, across), score(0, 0), rtol=1e-4, atol=1e-4)


def test_axes_turn_their_own_half():
    table = rotary_table([torch.tensor([5]), torch.tensor([0])], 8)
    x = torch.randn(1, 8)
    turned = rotate(x, table)
    assert torch.equal(turned[:, 4:], x[:, 4:])
    assert (turned[:, :4] != x[:, :4]).any()
    assert rotate(x.half(), table).dtype == torch.float16


@pytest.mark.parametrize(("axes", "head"), [(1, 3), (2, 6), (0, 4)])
def test_heads_that_cannot_be_shared_out(axes, head):
    with pytest.raises(ValueError, match=f"head_dim is {head} with {axes} axes"):
        rotary_table([torch.tensor([0])] * axes, head)


def test_means_and_cosines_of_groups():
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    present, means = group_means(vectors, torch.tensor([4, 4, 9, 1]))
    assert present.tolist() == [1, 4, 9]
    assert means.tolist() == [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]
    assert cosine_matrix(means).tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_similarity_within_and_across():
    centre = torch.tensor([10.0, 10.0])
    vectors = centre + torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    groups = torch.tensor([0, 0, 1, 1])
    within, across = centred_similarity(vectors, groups)
    expected = torch.nn.functional.cosine_similarity(vectors[0] - centre, vectors[1] - centre, dim=0)
    torch.testing.assert_close(within, expected)
    assert across < -0.9
    assert centred_similarity(vectors, torch.arange(4))[0].isnan()

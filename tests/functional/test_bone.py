"""The equations of Bone against block-wise arithmetic in float64 and the properties that they must have."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_weights.functional.bone import (
    VARIANTS,
    as_grid,
    block_shape,
    bone_delta,
    bone_left,
    bone_miss,
    bone_row,
    bone_weight,
    nearest_r,
    unmerged_weight,
)

OUT, IN, R = 12, 8, 4
EXTRA = {"free": {"grid": (3, 2)}, "mini": {"mini_r": 3}}
FACTORIZED = ("row", "left", "miss", "mini")


def example(variant, scale=0.1, dtype=torch.float64, r=R):
    weight = torch.randn(OUT, IN, dtype=dtype)
    shape = block_shape(variant, OUT, IN, r, **EXTRA.get(variant, {}))
    return weight, scale * torch.randn(shape, dtype=dtype)


def factorized(variant, x, weight, block, bias=None, **change):
    def linear(inputs):
        return F.linear(inputs, weight, bias)

    if variant == "row":
        return bone_row(x, linear, block, **change)
    if variant == "left":
        return bone_left(x, linear, block, bias, **change)
    return bone_miss(x, linear, block, **change)


def block_by_block(weight, block, variant):
    """ΔW by the definition of each variant, one block after the other."""
    r = block.shape[0] if variant in ("miss", "mini") else block.shape[-1]
    delta = torch.zeros_like(weight)
    if variant in ("miss", "mini"):
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                delta[row, column] = block[column % r, row % block.shape[1]]
        return delta
    for a in range(weight.shape[0] // r):
        for b in range(weight.shape[1] // r):
            here = slice(a * r, a * r + r), slice(b * r, b * r + r)
            if variant == "left":
                delta[here] = block[a] @ weight[here] + block[a]
                continue
            own = {"col": lambda a, b: block[a], "row": lambda a, b: block[b]}.get(
                variant, lambda a, b: block[a % block.shape[0], b % block.shape[1]]
            )(a, b)
            delta[here] = weight[here] @ own + own
    return delta


@pytest.mark.parametrize("variant", VARIANTS)
def test_update_is_the_definition(variant):
    weight, block = example(variant)
    want = block_by_block(weight, block, variant)
    torch.testing.assert_close(bone_delta(weight, block, variant), want)
    torch.testing.assert_close(bone_weight(weight, block, variant), weight + want)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_weight_are_right(variant):
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    shape = block_shape(variant, 4, 4, 2, **{"free": {"grid": (1, 2)}, "mini": {"mini_r": 2}}.get(variant, {}))
    block = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, b: bone_weight(w, b, variant), (weight, block))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variant", FACTORIZED)
def test_factorized_forms_are_the_materialized_ones(variant, bias):
    weight, block = example(variant)
    bias = torch.randn(OUT, dtype=torch.float64) if bias else None
    x = torch.randn(3, 2, IN, dtype=torch.float64).transpose(0, 1).requires_grad_()
    block.requires_grad_()
    ours = factorized(variant, x, weight, block, bias)
    theirs = F.linear(x, bone_weight(weight, block, variant), bias)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, (x, block), upstream) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("variant", FACTORIZED)
def test_gradcheck_of_the_factorized_forms(variant):
    weight, block = example(variant)
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(OUT, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, b: factorized(variant, x, weight, b, bias), (x, block.requires_grad_()))


@pytest.mark.parametrize("variant", FACTORIZED)
def test_without_a_block_outputs_are_the_layers_in_every_bit(variant):
    for dtype in (torch.float32, torch.bfloat16):
        weight, block = example(variant, scale=0.0, dtype=dtype)
        x, bias = torch.randn(5, IN).to(dtype), torch.randn(OUT).to(dtype)
        assert torch.equal(factorized(variant, x, weight, block, bias), F.linear(x, weight, bias))


class Shapes(TorchDispatchMode):
    """Collects the numbers of elements of all tensors that operators make, in the backward pass, too."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple) else (result,)
        inputs = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        self.sizes += [
            t.numel() for t in made if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in inputs
        ]
        return result


@pytest.mark.parametrize("variant", FACTORIZED)
def test_factorized_forms_make_nothing_of_the_weights_size(variant):
    out_features, in_features, tokens = 96, 64, 3
    weight = torch.randn(out_features, in_features)
    shape = block_shape(variant, out_features, in_features, 4, **EXTRA.get(variant, {}))
    block = torch.zeros(shape, requires_grad=True)
    x = torch.randn(tokens, in_features, requires_grad=True)
    with Shapes() as shapes:
        factorized(variant, x, weight, block).sum().backward()
    assert len(shapes.sizes) > 5
    assert max(shapes.sizes) <= max(block.numel(), tokens * out_features)


@pytest.mark.parametrize("variant", VARIANTS)
def test_unmerging_recovers_the_weight(variant):
    for scale, dtype, tolerance in ((0.1, torch.float32, 1e-5), (1.0, torch.float64, 1e-9)):
        weight, block = example(variant, scale=scale, dtype=dtype)
        back = unmerged_weight(bone_weight(weight, block, variant), block, variant)
        torch.testing.assert_close(back, weight, rtol=0, atol=tolerance * float(weight.abs().max()))


@pytest.mark.parametrize("variant", ["col", "row", "left", "free"])
def test_unmerging_a_singular_block_is_refused(variant):
    weight, block = example(variant)
    block.view(-1, R, R)[-1] = -torch.eye(R, dtype=block.dtype)
    with pytest.raises(ValueError, match=r"condition number of .* the weight from before the merge is lost"):
        unmerged_weight(weight, block, variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_in_sequence_are_one_merge_after_the_other(variant):
    weight, first = example(variant)
    second = example(variant)[1]
    once = weight + block_by_block(weight, first, variant)
    want = once + block_by_block(once, second, variant)
    torch.testing.assert_close(bone_weight(bone_weight(weight, first, variant), second, variant), want)


def test_left_is_right_of_the_transposed():
    weight, block = example("left")
    right = bone_weight(weight.mT.contiguous(), block.mT.contiguous(), "row")
    torch.testing.assert_close(bone_weight(weight, block, "left"), right.mT)


def test_col_and_miss_agree_without_a_weight():
    block = torch.randn(OUT // R, R, R)
    rows = block.flatten(0, 1)  # the blocks above one another
    zero = torch.zeros(OUT, IN)
    torch.testing.assert_close(bone_weight(zero, block, "col"), bone_weight(zero, rows.t().contiguous(), "miss"))


def test_small_and_large_blocks():
    weight, block = torch.randn(3, 2), torch.randn(3, 1, 1)
    torch.testing.assert_close(bone_weight(weight, block, "col"), weight * (1 + block[:, 0]) + block[:, 0])
    weight, block = torch.randn(4, 4), torch.randn(1, 4, 4)
    want = weight @ (torch.eye(4) + block[0]) + block[0]
    for variant in ("col", "row"):
        torch.testing.assert_close(bone_weight(weight, block, variant), want)


def test_free_contains_the_others():
    for variant in ("col", "row"):
        weight, block = example(variant)
        grid = as_grid(block, variant)
        assert tuple(grid.shape[:2]) == ((3, 1) if variant == "col" else (1, 2))
        torch.testing.assert_close(bone_weight(weight, grid, "free"), bone_weight(weight, block, variant))


def test_gradient_without_a_block():
    weight, block = example("col", scale=0.0)
    upstream = torch.randn_like(weight)
    (slope,) = torch.autograd.grad(bone_weight(weight, block.requires_grad_(), "col"), block, upstream)
    tiles, slopes = (t.view(3, R, 2, R).transpose(1, 2) for t in (weight, upstream))
    want = ((tiles + torch.eye(R, dtype=torch.float64)).mT @ slopes).sum(1)
    torch.testing.assert_close(slope, want)
    assert bool((slope != 0).all())


@settings(max_examples=25, deadline=None)
@given(r=st.integers(1, IN), order=st.permutations(range(3)), seed=st.integers(0, 99))
def test_miss_adds_a_low_rank_update_that_ignores_the_order_of_shards(r, order, seed):
    torch.manual_seed(seed)
    weight, block = torch.zeros(OUT, 3 * r), torch.randn(r, OUT)
    assert torch.linalg.matrix_rank(bone_delta(weight, block, "miss")) <= r
    x = torch.randn(2, 3, r)
    moved = x[:, list(order)]
    torch.testing.assert_close(
        factorized("miss", x.flatten(1), weight, block), factorized("miss", moved.flatten(1), weight, block)
    )


@pytest.mark.parametrize("r", [3, 5, 7])
def test_miss_pads(r):
    weight, block = torch.randn(OUT, IN, dtype=torch.float64), torch.randn(r, OUT, dtype=torch.float64)
    x = torch.randn(4, IN, dtype=torch.float64)
    padded = F.pad(x, (0, -IN % r)).unflatten(1, (-1, r)).sum(1)
    ours = factorized("miss", x, weight, block)
    torch.testing.assert_close(ours, x @ weight.t() + padded @ block)
    torch.testing.assert_close(ours, x @ bone_weight(weight, block, "miss").t())


@pytest.mark.parametrize("variant", FACTORIZED)
def test_dropout_hits_the_adapter_alone(variant):
    weight, block = example(variant)
    x = torch.randn(64, IN, dtype=torch.float64)
    base = F.linear(x, weight)
    torch.manual_seed(0)
    dropped = factorized(variant, x, weight, block, dropout=0.5) - base
    kept = factorized(variant, x, weight, block) - base
    assert not torch.allclose(dropped, kept)
    assert torch.equal(factorized(variant, x, weight, torch.zeros_like(block), dropout=0.5), base)
    many = factorized(variant, x[:1].expand(4000, -1), weight, block, dropout=0.5) - base[0]
    torch.testing.assert_close(many.mean(0), kept[0], rtol=0, atol=0.1 * float(many.std()))


@given(out_features=st.integers(1, 60), in_features=st.integers(1, 60), r=st.integers(1, 70))
def test_nearest_r_is_the_largest_that_is_valid(out_features, in_features, r):
    found = nearest_r(out_features, in_features, r)
    valid = [d for d in range(1, r + 1) if out_features % d == 0 and in_features % d == 0]
    assert found == max(valid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("col", 12, 8, 3), r"r is 3 of a layer with 12 outputs and 8 inputs, .* nearest valid r is 2\. .* 'miss'"),
        (("row", 10, 8, 4), r"nearest valid r is 2"),
        (("left", 10, 8, 8), r"nearest valid r is 2"),
        (("free", 10, 8, 4), r"nearest valid r is 2"),
        (("miss", 12, 8, 9), r"r is 9 .*; allowed are whole numbers from 1 to 8"),
        (("col", 12, 8, 0), r"r is 0; allowed is a whole number"),
        (("col", 12, 8, 2.0), r"r is 2.0; allowed is a whole number"),
        (("bat", 12, 8, 4), r"variant is 'bat'; allowed are 'col'"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        block_shape(*arguments)


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("mini", {"mini_r": 5}, r"mini_r is 5 of a layer with 12 outputs .*; allowed are divisors of the outputs"),
        ("mini", {"mini_r": 0}, r"mini_r is 0"),
        ("col", {"mini_r": 3}, r"mini_r is 3 with variant 'col'; it belongs to 'mini'"),
        ("col", {"grid": (3, 1)}, r"grid is \(3, 1\) with variant 'col'"),
        ("free", {}, r"grid is None; variant 'free' needs its two sizes \(g_o, g_i\), up to \(3, 2\)"),
        ("free", {"grid": (4, 1)}, r"g_o of grid is 4; .* \[1, 4\)"),
    ],
)
def test_other_arguments_that_do_not_fit_are_named(variant, change, message):
    with pytest.raises(ValueError, match=message):
        block_shape(variant, OUT, IN, R, **change)


def test_padding_can_be_forbidden():
    assert block_shape("miss", 12, 8, 4, pad=False) == (4, 12)
    with pytest.raises(ValueError, match=r"r is 3 .* pad is False; the nearest valid r is 2"):
        block_shape("miss", 12, 8, 3, pad=False)

"""The convolution over positions and orientations on the CPU, against its specification and an oracle in numpy."""

from itertools import product

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.fiber_conv import SortedEdges, chunks, fiber_conv, fiber_conv_reference, sort_edges
from lightning_weights.kernels.fiber_conv.cost import cost, cost_composed
from tests.kernels.buffers import guarded, strided
from tests.kernels.fiber_conv_cases import CASES, check, inputs

NEAR = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("fiber", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_result_and_gradients_are_the_oracles(case, fiber):
    for function in (fiber_conv, fiber_conv_reference):
        check(function, case, torch.float64, NEAR[torch.float64], fiber)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_dtypes(dtype):
    check(fiber_conv, CASES[1], dtype, NEAR[dtype])


def test_data_types_may_differ():
    operands, edges, upstream = inputs(CASES[1])
    mixed = [operands[0], operands[1].half(), operands[2], operands[3].bfloat16(), operands[4]]
    result = fiber_conv(*mixed, edges=edges)
    want = fiber_conv_reference(*(tensor.float() for tensor in mixed), edges=edges)
    torch.testing.assert_close(result, want)
    gradients = torch.autograd.grad(result, mixed, upstream)
    assert [g.dtype for g in gradients] == [tensor.dtype for tensor in mixed]


@pytest.mark.parametrize("chunk", [1, 100, 1000])
def test_chunks_change_no_sum_over_edges(chunk, monkeypatch):
    operands, edges, upstream = inputs((5, 40, 4, 8, 6), torch.float64)
    results = []
    for size in (chunks.CHUNK, chunk):
        monkeypatch.setattr(chunks, "CHUNK", size)
        result = fiber_conv(*operands, edges=edges)
        results.append([result, *torch.autograd.grad(result, operands, upstream)])
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-13, atol=1e-13)


def test_nothing_but_the_gradient_of_the_basis_is_as_large_as_the_edges(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 64)
    operands, edges, upstream = inputs((4, 300, 2, 8, 3))
    largest, original = [], torch.Tensor.new_empty

    def new_empty(self, *size, **options):
        made = original(self, *size, **options)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    fiber_conv(*operands, edges=edges).backward(upstream)
    assert largest
    assert max(largest) <= 3 * 64


def test_any_layout_and_read_only():
    operands, edges, _ = inputs(CASES[1])
    (features, basis, weight), clean = guarded([tensor.detach() for tensor in operands[:3]])
    want = fiber_conv(features, basis, weight, edges=edges)
    assert clean()
    assert torch.equal(features, operands[0])
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (features, basis, weight)]
    for arranged in (turned, [*map(strided, (features, basis, weight))]):
        torch.testing.assert_close(fiber_conv(*arranged, edges=edges), want)


def test_edges_are_sorted_both_ways():
    edge_index = torch.randint(6, (2, 30))
    edges = sort_edges(edge_index, 6)
    assert sorted(zip(*edge_index.tolist(), strict=True)) == sorted(
        zip(edges.senders.tolist(), edges.receivers.tolist(), strict=True)
    )
    assert bool((edges.receivers[1:] >= edges.receivers[:-1]).all())
    for node in range(6):
        incoming = slice(edges.offsets[node], edges.offsets[node + 1])
        outgoing = edges.by_sender[edges.sender_offsets[node] : edges.sender_offsets[node + 1]]
        assert bool((edges.receivers[incoming] == node).all())
        assert bool((edges.senders[outgoing] == node).all())
    assert edges.offsets[-1] == edges.sender_offsets[-1] == 30


@pytest.mark.parametrize("fiber", [True, False])
def test_gradients_of_gradients(fiber):
    operands, edges, _ = inputs((2, 4, 2, 2, 3), torch.float64)
    given = operands if fiber else operands[:3]
    assert torch.autograd.gradcheck(lambda *tensors: fiber_conv(*tensors, edges=edges), given)
    assert torch.autograd.gradgradcheck(lambda *tensors: fiber_conv(*tensors, edges=edges), given)


def test_third_derivatives():
    operands, edges, _ = inputs((3, 5, 2, 3, 4), torch.float64)
    found = []
    for function in (fiber_conv, fiber_conv_reference):
        value = function(*operands, edges=edges).square().sum()
        for _ in range(2):
            gradients = torch.autograd.grad(value, operands, create_graph=True)
            value = sum(gradient.square().sum() for gradient in gradients)
        found.append(torch.autograd.grad(value, operands))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("wanted", list(product([True, False], repeat=3))[1:-1], ids=str)
def test_gradients_come_alone(wanted):
    operands, edges, upstream = inputs(CASES[1])
    leaves = [tensor.detach().requires_grad_(want) for tensor, want in zip(operands[:3], wanted, strict=True)]
    fiber_conv(*leaves, edges=edges).backward(upstream)
    want = torch.autograd.grad(fiber_conv_reference(*operands[:3], edges=edges), operands[:3], upstream)
    for leaf, exact, given in zip(leaves, want, wanted, strict=True):
        assert (leaf.grad is not None) == given
        if given:
            torch.testing.assert_close(leaf.grad, exact)


def test_functional_transforms():
    operands, edges, _ = inputs((3, 5, 2, 3, 4), torch.float64)

    def slope(function):
        inner = torch.func.grad(lambda f: function(f, *operands[1:], edges=edges).pow(3).sum())
        return torch.func.grad(lambda f: inner(f).square().sum())(operands[0].detach())

    torch.testing.assert_close(slope(fiber_conv), slope(fiber_conv_reference))


def test_opcheck():
    operands, edges, upstream = inputs(CASES[1])
    plain = [tensor.detach() for tensor in operands]
    ops = torch.ops.lightning_weights
    results = [torch.library.opcheck(ops.fiber_conv.default, (*plain, *edges))]
    arguments = (upstream, *plain[:3], [False, True, True], *edges)
    results.append(torch.library.opcheck(ops.fiber_conv_backward.default, arguments))
    assert {outcome for result in results for outcome in result.values()} == {"SUCCESS"}


def test_compiles_with_autograd_without_graph_breaks():
    compiled = torch.compile(fiber_conv, fullgraph=True, backend="aot_eager")
    operands, edges, upstream = inputs(CASES[1])
    got, want = compiled(*operands, edges=edges), fiber_conv(*operands, edges=edges)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(result, operands, upstream) for result in (got, want)))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*operands, edges=edges), want)


def test_costs_count_the_tensors():
    operands, _, _ = inputs((10, 60, 8, 64, 64))
    forward, backward = cost(10, 60, 8, 64, 64)
    features, basis, weight, fiber = (tensor.nbytes for tensor in operands[:4])
    gathered = 60 * features // 10
    assert forward.bytes_read == gathered + basis + weight + fiber + 8 * (60 + 2 * 10)
    assert forward.bytes_written == 2 * features
    assert backward.bytes_written >= features + basis + weight
    composed, composed_backward = cost_composed(10, 60, 8, 64, 64)
    assert composed.bytes_read == basis + 4 * gathered + features
    assert composed.bytes_read + composed.bytes_written > 2 * (forward.bytes_read + forward.bytes_written)
    assert backward.flops > composed_backward.flops  # kernels are made anew


def test_triton_needs_a_device():
    operands, edges, _ = inputs(CASES[0])
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET"):
        fiber_conv(*operands, edges=edges)


@pytest.mark.parametrize(
    ("place", "shape"), [(0, (3, 2)), (0, (4, 2, 3)), (1, (4, 2, 4)), (2, (3, 5)), (3, (2, 3, 3)), (4, (2,))]
)
def test_bad_shapes(place, shape):
    operands, edges, _ = inputs((3, 5, 2, 3, 4))
    operands[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"shapes are features .*; allowed are\s+features \(N, O, C\)"):
        fiber_conv(*operands, edges=edges)


def test_bad_dtypes_and_devices():
    operands, edges, _ = inputs(CASES[0])
    with pytest.raises(ValueError, match="allowed are floating-point numbers on one device"):
        fiber_conv(operands[0], operands[1].long(), operands[2], edges=edges)
    elsewhere = SortedEdges(*(tensor.to("meta") for tensor in edges))
    with pytest.raises(ValueError, match="edges on meta"):
        fiber_conv(*operands, edges=elsewhere)

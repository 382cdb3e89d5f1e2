"""Inputs and a float64 oracle for the tests of the convolution over positions and orientations."""

import numpy as np
import torch

from lightning_weights.kernels.fiber_conv import sort_edges

# nodes, edges, orientations, channels, basis functions: full tiles, ragged ones, single orientations, no edges at all
CASES = ((3, 7, 8, 16, 16), (4, 9, 3, 20, 10), (2, 5, 1, 16, 70), (3, 6, 20, 8, 5), (3, 0, 4, 5, 6), (1, 1, 1, 1, 1))


def inputs(case, dtype=torch.float32):
    """Features, basis, weight, fiber kernel and bias, the sorted graph, and the result's gradient."""
    nodes, count, orientations, channels, basis = case
    edges = sort_edges(torch.randint(nodes, (2, count)), nodes)
    shapes = ((nodes, orientations, channels), (count, orientations, basis), (channels, basis))
    shapes += ((orientations, orientations, channels), (channels,))
    operands = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return operands, edges, torch.randn(nodes, orientations, channels).to(dtype)


def oracle(operands, edges, upstream, fiber=True):
    """Result and gradients of features, basis, weight, fiber kernel and bias, edge by edge in numpy's float64."""
    f, phi, w, kernel, bias = (tensor.detach().double().numpy() for tensor in operands)
    g = upstream.double().numpy()
    ends = list(zip(edges.senders.tolist(), edges.receivers.tolist(), strict=True))
    sums = np.zeros_like(f)
    for e, (j, i) in enumerate(ends):
        sums[i] += phi[e] @ w.T * f[j]
    count = f.shape[1]
    result = (np.einsum("opc,noc->npc", kernel, sums) / count if fiber else sums) + bias
    inner = np.einsum("opc,npc->noc", kernel, g) / count if fiber else g
    to_f, to_phi, to_w = np.zeros_like(f), np.zeros_like(phi), np.zeros_like(w)
    for e, (j, i) in enumerate(ends):
        to_f[j] += phi[e] @ w.T * inner[i]
        to_phi[e] = (inner[i] * f[j]) @ w
        to_w += (inner[i] * f[j]).T @ phi[e]
    to_fiber = np.einsum("noc,npc->opc", sums, g) / count
    return result, [to_f, to_phi, to_w, *([to_fiber] if fiber else []), g.sum((0, 1))]


def check(function, case, dtype, tolerance, fiber=True):
    """Compare a function's result and gradients with the oracle's."""
    operands, edges, upstream = inputs(case, dtype)
    given = operands if fiber else [*operands[:3], None, operands[4]]
    result = function(*given, edges=edges)
    gradients = torch.autograd.grad(result, [tensor for tensor in given if tensor is not None], upstream)
    want, want_gradients = oracle(operands, edges, upstream, fiber)
    assert result.dtype == dtype
    for ours, exact in zip([result, *gradients], [want, *want_gradients], strict=True):
        largest = np.abs(exact).max(initial=0.0)
        got = ours.detach().double().numpy()
        np.testing.assert_allclose(got, exact, rtol=tolerance, atol=tolerance * largest)

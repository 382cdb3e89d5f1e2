"""PONITA against the vectors of the authors' layers and network."""

import re

import pytest
import torch
from torch.nn import functional as F

from lightning_weights.functional.ponita import (
    bi_invariants,
    lift,
    orientation_grid,
    polynomial_cutoff,
    polynomial_features,
    readout,
)
from lightning_weights.kernels.fiber_conv import fiber_conv, fiber_conv_reference, sort_edges
from lightning_weights.modules import Ponita, SeparableFiberConv
from tests.helpers.golden import load

GOLDEN = load("ponita")
NAMES = ("nodes", "orientations", "hidden", "basis", "degree", "layers", "c_s", "c_v", "out_s", "out_v", "plane")
HYPER = dict(zip(NAMES, GOLDEN["hp"].tolist(), strict=True))
RENAMED = {
    r"^basis_fn\.1": "basis.linear_1",
    r"^basis_fn\.3": "basis.linear_2",
    r"^fiber_basis_fn\.1": "fiber_basis.linear_1",
    r"^fiber_basis_fn\.3": "fiber_basis.linear_2",
    r"^x_embedder": "embedding",
    r"^interaction_layers": "blocks",
    r"^read_out_layers": "readouts",
}
DTYPES = {torch.float64: 1e-8, torch.float32: 1e-4}


def vector(name, dtype=None):
    tensor = torch.from_numpy(GOLDEN[name].copy())
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def assert_near(tensor, name, tolerance=1e-8):
    want = vector(name).reshape(tensor.shape)
    torch.testing.assert_close(tensor.detach().double(), want, rtol=tolerance, atol=tolerance)


SENDERS, RECEIVERS = vector("edge_index")


def displacements(pos):
    return pos[SENDERS] - pos[RECEIVERS]


def test_grids():
    assert_near(orientation_grid(HYPER["orientations"]), "fib_grid")
    assert_near(orientation_grid(HYPER["plane"], dim=2), "s1_grid")


@pytest.mark.parametrize("plane", [False, True])
def test_invariants(plane):
    grid, pos = vector("s1_grid" if plane else "fib_grid"), vector("pos2" if plane else "pos")
    between = (grid[:, None] * grid[None]).sum(-1, keepdim=True)
    relative = displacements(pos)
    assert_near(bi_invariants(relative[:, None], grid), "inv_r2s1" if plane else "inv_r3s2")
    assert_near(between, "inv_fiber2" if plane else "inv_fiber")
    looks = vector("pc_ori2" if plane else "pc_ori")
    attributes = bi_invariants(relative, looks[RECEIVERS], looks[SENDERS])
    assert_near(attributes, "inv_r2s1_pointcloud" if plane else "inv_r3s2_pointcloud")
    if not plane:
        assert_near(bi_invariants(relative), "dists")
        full = bi_invariants(relative[:, None, None], grid[:, None], grid[None])
        assert_near(full, "inv_r3s2_full")


@pytest.mark.parametrize("degree", [int(name.removeprefix("poly_deg")) for name in GOLDEN if "poly_deg" in name])
def test_polynomials(degree):
    assert_near(polynomial_features(vector("poly_in"), degree), f"poly_deg{degree}")


def test_window():
    assert_near(polynomial_cutoff(vector("win_r"), float(GOLDEN["win_rmax"]), int(GOLDEN["win_p"])), "win_out")


def test_lifting_and_readout():
    grid = vector("fib_grid")
    lifted = lift(vector("scal"), vector("vec"), grid)
    assert_near(lifted[..., : HYPER["c_s"]], "lift_scal")
    assert_near(lifted[..., HYPER["c_s"] :], "lift_vec")
    sphere = vector("sph")
    scalars, vectors = readout(torch.cat([sphere, sphere], dim=-1), grid, sphere.shape[-1])
    assert_near(scalars, "sph_to_scal")
    assert_near(vectors, "sph_to_vec")


def sorted_basis(edge_index, dtype):
    edges = sort_edges(edge_index, HYPER["nodes"])
    order = (edge_index[1] * HYPER["nodes"] + edge_index[0]).argsort()
    return edges, vector("conv_kbasis", dtype)[order]


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution(dtype):
    edges, basis = sorted_basis(vector("edge_index"), dtype)
    fiber = F.linear(vector("conv_fbasis", dtype), vector("conv_fiber_w", dtype))
    operands = vector("conv_x", dtype), basis, vector("conv_kernel_w", dtype), fiber, vector("conv_bias", dtype)
    for function in (fiber_conv, fiber_conv_reference):
        assert_near(function(*operands, edges=edges), "conv_out_eval", DTYPES[dtype])


def test_calibration():
    edges, basis = sorted_basis(vector("edge_index"), None)
    layer = SeparableFiberConv(HYPER["hidden"], HYPER["basis"]).double()
    with torch.no_grad():
        layer.kernel.weight.copy_(vector("conv_kernel_w"))
        layer.fiber_kernel.weight.copy_(vector("conv_fiber_w"))
        layer.bias.copy_(vector("conv_bias"))
    arguments = vector("conv_x"), basis, vector("conv_fbasis"), edges
    assert_near(layer(*arguments), "conv_out_first_train")
    layer.calibrate(*arguments)
    assert_near(layer.kernel.weight, "conv_kernel_w_calibrated")
    assert_near(layer.fiber_kernel.weight, "conv_fiber_w_calibrated")
    assert_near(layer(*arguments), "conv_out_second_train")


def network(dtype, **options):
    radius = float(GOLDEN["hp_radius"])
    net = Ponita(
        *(HYPER[name] for name in ("c_s", "c_v", "out_s", "out_v")),
        hidden_dim=HYPER["hidden"],
        basis_dim=HYPER["basis"],
        num_layers=HYPER["layers"],
        num_orientations=HYPER["orientations"],
        degree=HYPER["degree"],
        radius=radius if radius > 0 else None,
        random_grid="off",
        **options,
    )
    state = {}
    for name in [name for name in GOLDEN if name.startswith("model.")]:
        ours = name.removeprefix("model.")
        for pattern, replacement in RENAMED.items():
            ours = re.sub(pattern, replacement, ours)
        state[ours] = vector(name)
    missing, unexpected = net.double().load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name == "grid" or name.endswith("calibrated") for name in missing)
    net.grid.copy_(vector("fib_grid"))
    return net.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_network(dtype):
    tolerance = DTYPES[dtype]
    pos = vector("pos", dtype).requires_grad_()
    inputs = {"edge_index": vector("edge_index"), "vectors": vector("vec", dtype)}
    scalars, vectors = network(dtype)(vector("scal", dtype), pos, **inputs)
    assert_near(scalars, "model_scalar", tolerance)
    assert_near(vectors, "model_vector", tolerance)
    assert_near(torch.autograd.grad(scalars.sum(), pos)[0], "model_dscalar_dpos", tolerance)
    pooled = network(dtype, pooling="sum")(vector("scal", dtype), pos, **inputs)
    assert_near(pooled.scalars, "model_scalar_pooled", tolerance)

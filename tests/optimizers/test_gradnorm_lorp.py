"""GradNormLoRPAdamW against a plain AdamW, GaLore's rule written out, and its promises about state and resuming."""

import copy
import io
import sys

import pytest
import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.gradient_projection import gradnorm_lorp_numel, keep_projection, projected_numel
from lightning_weights.optimizers import GradNormLoRPAdamW

PROJECTIONS = ("std", "reverse_std", "left", "right", "full")
TRANSPORTS = ("none", "rotate", "reset")
RULE = {"lr": 0.05, "rank": 3, "update_proj_gap": 3, "scale": 0.5, "weight_decay": 0.01}


def parameters(*shapes, dtype=torch.float32):
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


def gradients(params, steps=7, seed=1):
    """The same gradients for everybody, one list per step."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(param.shape, generator=generator).to(param.dtype) for param in params] for _ in range(steps)]


def train(optimizer, params, steps):
    for grads in steps:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()


def clones(params):
    return [nn.Parameter(param.detach().clone()) for param in params]


def galore(params, steps, lr, rank, update_proj_gap, scale, weight_decay, sides):
    """GaLore-AdamW written out for matrices; `sides` are its projection's."""
    moments = [[0.0, 0.0, None, None] for _ in params]
    for t, grads in enumerate(steps, 1):
        for param, grad, moment in zip(params, grads, moments, strict=True):
            if (t - 1) % update_proj_gap == 0:
                u, _, vh = torch.linalg.svd(grad, full_matrices=False)
                moment[2:] = u[:, :rank], vh[:rank]
            left = moment[2] if "left" in sides(param) else torch.eye(len(param), dtype=grad.dtype)
            right = moment[3] if "right" in sides(param) else torch.eye(param.shape[1], dtype=grad.dtype)
            projected = left.T @ grad @ right.T
            moment[0] = 0.9 * moment[0] + 0.1 * projected
            moment[1] = 0.999 * moment[1] + 0.001 * projected**2
            update = left @ (moment[0] / (moment[1].sqrt() + 1e-6)) @ right
            size = lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
            param.data = (param.data - size * scale * update) * (1 - lr * weight_decay)


SIDES = {
    "std": lambda p: ("right",) if p.shape[0] >= p.shape[1] else ("left",),
    "reverse_std": lambda p: ("left",) if p.shape[0] >= p.shape[1] else ("right",),
    "left": lambda p: ("left",),
    "right": lambda p: ("right",),
    "full": lambda p: ("left", "right"),
}


@pytest.mark.parametrize("proj_type", PROJECTIONS)
def test_matrices_follow_galore(proj_type):
    ours = parameters((9, 5), (4, 8), (6, 6), dtype=torch.float64)
    theirs, steps = clones(ours), gradients(ours)
    train(GradNormLoRPAdamW(ours, **RULE, proj_type=proj_type, sign_fix=False), ours, steps)
    galore(theirs, steps, sides=SIDES[proj_type], **RULE)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("proj_type", ["std", "left", "right"])  # both sides: rounding errors divided by ε differ
def test_equals_galore_torch(proj_type):
    package = pytest.importorskip("galore_torch")
    ours = parameters((9, 5), (4, 8), (6, 6))
    theirs, steps = clones(ours), gradients(ours)
    train(GradNormLoRPAdamW(ours, **RULE, proj_type=proj_type, sign_fix=False), ours, steps)
    rule = {name: RULE[name] for name in ("rank", "update_proj_gap", "scale")}
    group = {"params": theirs, **rule, "proj_type": proj_type}
    plain = {"lr": RULE["lr"], "weight_decay": RULE["weight_decay"], "no_deprecation_warning": True}
    train(package.GaLoreAdamW([group], **plain), theirs, steps)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
def test_what_is_not_projected_is_adamw_bit_for_bit(rank):
    """The loop is that of the AdamW which transformers had."""
    ours = parameters((7,), (3, 2, 2, 2)) if rank else parameters((7,), (5, 4))
    theirs, steps = clones(ours), gradients(ours)
    train(GradNormLoRPAdamW(ours, lr=0.05, rank=rank, weight_decay=0.01, scale=0.5), ours, steps)
    for param, *grads in zip(theirs, *steps, strict=True):
        first, second = torch.zeros_like(param), torch.zeros_like(param)
        for t, grad in enumerate(grads, 1):
            first.mul_(0.9).add_(grad, alpha=1.0 - 0.9)
            second.mul_(0.999).addcmul_(grad, grad, value=1.0 - 0.999)
            size = 0.05 * (1.0 - 0.999**t) ** 0.5 / (1.0 - 0.9**t)
            param.data.addcdiv_(first, second.sqrt().add_(1e-6), value=-size)
            param.data.add_(param.data, alpha=-0.05 * 0.01)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("svd", ["exact", "gram", "randomized"])
def test_methods_of_the_svd_agree(svd):
    ours = parameters((9, 5), (4, 8), dtype=torch.float64)
    exact = clones(ours)
    train(GradNormLoRPAdamW(ours, **RULE, svd=svd), ours, gradients(ours))
    train(GradNormLoRPAdamW(exact, **RULE), exact, gradients(ours))
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_transposed_matrices_take_transposed_steps(transport):
    ours = parameters((9, 5), dtype=torch.float64)
    turned = [nn.Parameter(ours[0].detach().T.contiguous())]
    steps = gradients(ours)
    rule = {**RULE, "moment_transport": transport}
    train(GradNormLoRPAdamW(ours, **rule), ours, steps)
    train(GradNormLoRPAdamW(turned, **rule), turned, [[grads[0].T.contiguous()] for grads in steps])
    torch.testing.assert_close(ours[0].T, turned[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("proj_type", PROJECTIONS)
def test_gradients_may_come_projected(proj_type):
    """Steps 1, 4 and 7 make projections, from whole gradients."""
    ours = parameters((9, 5), (4, 8), (6, 6), (5,), dtype=torch.float64)
    theirs, steps = clones(ours), gradients(ours)
    optimizer = GradNormLoRPAdamW(ours, **RULE, proj_type=proj_type)
    came = []
    for grads in steps:
        for param, grad in zip(ours, grads, strict=True):
            param.grad, (left, right) = grad.clone(), optimizer.coming_projection(param)
            projected = left is not None or right is not None
            if projected:
                reduced = grad if left is None else left.T @ grad
                keep_projection(param.grad, reduced if right is None else reduced @ right.T)
            optimizer.expect_gradient(param, projected)
        optimizer.step()
        came.append([param.grad is None for param in ours])
    train(GradNormLoRPAdamW(theirs, **RULE, proj_type=proj_type), theirs, steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert came == [[step % 3 != 0] * 3 + [False] for step in range(7)], "the step uses projected gradients up"


def test_signs_of_singular_vectors_do_not_matter(monkeypatch):
    """Another library may return every vector turned round; without the fix this shows after the first refresh."""
    svd = torch.linalg.svd

    def other_library(matrix, full_matrices):
        u, s, vh = svd(matrix, full_matrices=full_matrices)
        return -u, s, -vh

    def run(sign_fix, steps):
        params = [nn.Parameter(start.clone()) for start in starts]
        optimizer = GradNormLoRPAdamW(params, **{**RULE, "update_proj_gap": 2}, sign_fix=sign_fix)
        for t, grads in enumerate(gradients(params, steps)):
            with monkeypatch.context() as patch:
                if t == 2:
                    patch.setattr(torch.linalg, "svd", other_library if flipped else svd)
                train(optimizer, params, [grads])
        return params

    starts = [torch.randn(9, 5), torch.randn(4, 8)]
    results = {}
    for flipped in (False, True):
        results[flipped] = {(fix, steps): run(fix, steps) for fix in (True, False) for steps in (2, 4)}
    for (fix, steps), params in results[False].items():
        same = all(torch.equal(a, b) for a, b in zip(params, results[True][fix, steps], strict=True))
        assert same == (fix or steps == 2)


def test_gradients_of_one_subspace_lose_nothing():
    """Then it is Adam in rotated coordinates."""
    basis = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q.T
    ours, inside = parameters((9, 5), dtype=torch.float64), nn.Parameter(torch.zeros(9, 2, dtype=torch.float64))
    before = ours[0].detach().clone()
    optimizer = GradNormLoRPAdamW(ours, lr=0.1, rank=2, update_proj_gap=100)
    reduced = GradNormLoRPAdamW([inside], lr=0.1, rank=None)
    for (grad,) in gradients([inside], 5):
        train(optimizer, ours, [[grad @ basis]])
        overlap = basis @ optimizer.state[ours[0]]["projection_right"].T
        train(reduced, [inside], [[grad @ overlap]])
    change = ours[0] - before
    torch.testing.assert_close(change, inside @ overlap.T @ basis, rtol=1e-9, atol=1e-9)
    assert torch.linalg.matrix_rank(change) == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_moments_at_a_refresh(transport):
    """Turning all directions loses nothing; a reset starts the correction of the bias anew."""
    (param,) = params = parameters((4, 4), dtype=torch.float64)
    optimizer = GradNormLoRPAdamW(params, lr=0.1, rank=4, update_proj_gap=2, moment_transport=transport)
    with pytest.warns(LightningWeightsWarning, match="rotation only"):
        train(optimizer, params, gradients(params, 2))
    old = {name: value.clone() for name, value in optimizer.state[param].items() if name != "step"}
    before = param.detach().clone()
    (grad,) = gradients(params, 1, seed=5)[0]
    train(optimizer, params, [[grad]])
    state = optimizer.state[param]
    reduced = grad @ state["projection_right"].T
    overlap = old["projection_right"] @ state["projection_right"].T
    kept = {"none": old["exp_avg"], "rotate": old["exp_avg"] @ overlap, "reset": torch.zeros(4, 4)}[transport]
    torch.testing.assert_close(state["exp_avg"], (0.9 * kept + 0.1 * reduced).double())
    if transport == "reset":
        step = reduced.sign() * 0.1 / (1 + 1e-6 / (0.001**0.5 * reduced.abs()))
        torch.testing.assert_close(before - param, step @ state["projection_right"])


def test_state_is_what_the_formula_says():
    m, n, r, rank = 12, 20, 4, 2
    params = parameters((m, r), (r, n), (m,))
    optimizer = GradNormLoRPAdamW(params, lr=0.1, rank=rank)
    train(optimizer, params, gradients(params, 2))
    numel = sum(numel_of(optimizer, param) for param in params)
    assert (sum(param.numel() for param in params), numel) == gradnorm_lorp_numel(m, n, r, rank)
    assert numel == 2 * rank * (m + n) + 2 * rank * r + 2 * m
    for proj_type in PROJECTIONS:
        (param,) = parameters((m, n))
        optimizer = GradNormLoRPAdamW([param], rank=rank, proj_type=proj_type)
        train(optimizer, [param], gradients([param], 1))
        assert numel_of(optimizer, param) == projected_numel(m, n, rank, proj_type)


def numel_of(optimizer, param):
    return sum(value.numel() for value in optimizer.state[param].values() if isinstance(value, torch.Tensor))


def test_states_of_8_bits_are_small():
    pytest.importorskip("bitsandbytes")
    sizes = {}
    for bits in (8, 32):
        params = parameters((1024, 16), (16, 1024), (512, 64), (5000,), (10,))
        optimizer = GradNormLoRPAdamW(params, rank=8, state_bits=bits)
        train(optimizer, params, gradients(params, 2))
        moments = [{k: v for k, v in optimizer.state[p].items() if k.startswith("exp_avg")} for p in params]
        sizes[bits] = sum(value.nbytes for state in moments for value in state.values())
        narrow = [state["exp_avg"].dtype == torch.uint8 for state in moments]
        assert narrow == [bits == 8 and p.numel() > 4000 for p in params]
    assert sizes[8] <= 0.3 * sizes[32]


@pytest.mark.parametrize("proj_type", ["std", "full"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_8_bits_follow_32(proj_type, transport):
    pytest.importorskip("bitsandbytes")
    wide = parameters((600, 80), (80, 600))
    starts, narrow, steps = clones(wide), clones(wide), gradients(wide, 5)
    for params, bits in ((wide, 32), (narrow, 8)):
        rule = {**RULE, "rank": 70, "moment_transport": transport, "weight_decay": 0.0}
        train(GradNormLoRPAdamW(params, **rule, proj_type=proj_type, state_bits=bits), params, steps)
    for start, one, other in zip(starts, wide, narrow, strict=True):
        assert (one - other).norm() < 0.2 * (one - start).norm()


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("stop", [2, 3])  # within an interval, and before a refresh
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:rank reaches")
def test_resuming_is_exact(bits, transport, stop, dtype):
    if bits == 8:
        pytest.importorskip("bitsandbytes")
    ours = parameters((512, 16), (6, 4), (5,), dtype=dtype)
    theirs, steps = clones(ours), gradients(ours)
    rule = {**RULE, "rank": 8, "state_bits": bits, "moment_transport": transport}
    train(GradNormLoRPAdamW(ours, **rule), ours, steps)
    first = GradNormLoRPAdamW(theirs, **rule)
    train(first, theirs, steps[:stop])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = GradNormLoRPAdamW(theirs, lr=1.0)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(second, theirs, steps[stop:])
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    kept = {v.dtype for s in second.state.values() for v in s.values() if isinstance(v, torch.Tensor)}
    assert kept == ({torch.float32, torch.uint8} if bits == 8 else {torch.float32})


def test_copies_train_on_alike():
    ours = parameters((9, 5))
    optimizer = GradNormLoRPAdamW(ours, **RULE)
    train(optimizer, ours, gradients(ours, 2))
    twin = copy.deepcopy(optimizer)
    copied = twin.param_groups[0]["params"]
    for params, each in ((ours, optimizer), (copied, twin)):
        train(each, params, gradients(params, 3))
    assert torch.equal(ours[0], copied[0])


def test_zeros_stay_finite():
    params = parameters((9, 5), (4, 8), (5,), (0, 3))
    optimizer = GradNormLoRPAdamW(params, **RULE)
    for param in params:
        param.data.zero_()
    train(optimizer, params, [[torch.zeros_like(param) for param in params]] * 5)
    assert all(torch.equal(param, torch.zeros_like(param)) for param in params)


def test_only_marked_matrices_are_projected():
    marked, unmarked, excluded = params = parameters((9, 5), (9, 5), (9, 5))
    marked._lw_project = excluded._lw_project = True
    groups = [{"params": [marked, unmarked]}, {"params": [excluded], "rank": None}]
    optimizer = GradNormLoRPAdamW(groups, rank=2)
    train(optimizer, params, gradients(params, 1))
    assert ["projection_right" in optimizer.state[param] for param in params] == [True, False, False]


def test_a_group_with_its_own_rank_is_projected_whether_marked_or_not():
    marked, other = params = parameters((9, 5), (9, 5))
    marked._lw_project = True
    optimizer = GradNormLoRPAdamW([{"params": [marked]}, {"params": [other], "rank": 1}], rank=2)
    train(optimizer, params, gradients(params, 1))
    assert [optimizer.state[param]["projection_right"].shape[0] for param in params] == [2, 1]


def test_works_without_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    params = parameters((9, 5))
    train(GradNormLoRPAdamW(params, **RULE), params, gradients(params, 1))
    assert params[0].isfinite().all()


def test_meta_tensors_count_memory():
    param = nn.Parameter(torch.empty(4096, 1024, device="meta"))
    param.grad = torch.empty_like(param)
    optimizer = GradNormLoRPAdamW([param], rank=128)
    optimizer.step()
    assert numel_of(optimizer, param) == projected_numel(4096, 1024, 128)


def test_closure_runs_first_and_with_gradients():
    (param,) = parameters((4, 3))
    optimizer = GradNormLoRPAdamW([param], rank=1)

    def closure():
        loss = param.square().sum()
        loss.backward()
        return loss

    expected = param.detach().square().sum()
    assert torch.equal(optimizer.step(closure).detach(), expected)
    assert optimizer.state[param]["step"] == 1

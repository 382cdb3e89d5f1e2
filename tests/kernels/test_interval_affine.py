"""Interval propagation on the CPU against its specification and an oracle that looks at the corners of the box."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.kernels.interval_affine import interval_affine, interval_affine_reference, rounding_slack
from tests.kernels.interval_affine_cases import NAMES, SHAPES, VARIANTS, call, gradients, operands, oracle, used

BATCHNORM = VARIANTS[0]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", [interval_affine, interval_affine_reference])
def test_intervals_and_sums_are_the_oracles(function, shape, variant):
    data = operands(shape, torch.float64)
    for got, want in zip(call(function, data, variant), oracle(data, variant), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("sound", [False, True])
def test_fp32_is_the_reference(variant, sound):
    data = operands((33, 40, 65))
    got, want = (call(f, data, variant, sound=sound) for f in (interval_affine, interval_affine_reference))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_pass_gradcheck(relu):
    data = operands((3, 4, 5), torch.float64)
    inputs = [data[name].requires_grad_() for name in NAMES]
    data["weight"].data[:, 0] = 0.7  # the absolute value has no derivative at zero
    data["scale"].data[0] = 0.3

    def function(*tensors):
        results = call(interval_affine, dict(zip(NAMES, tensors, strict=True)), {**BATCHNORM, "relu": relu})
        return (*results[:4], results.sums[[0, 3, 4, 5, 6, 7]])  # without the counts

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_the_reference(shape, variant):
    data = operands(shape, torch.float64)
    inputs = [data[name].requires_grad_() for name in used(variant)]
    got, want = (gradients(call(f, data, variant), inputs) for f in (interval_affine, interval_affine_reference))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_and_factors_of_zero_have_the_slope_zero():
    data = operands((4, 3, 2))
    data["weight"].requires_grad_()
    data["scale"].requires_grad_()
    out = call(interval_affine, data, {**BATCHNORM, "relu": False})
    by_weight, by_scale = torch.autograd.grad(out.pre_radius.sum(), [data["weight"], data["scale"]])
    assert by_weight[:, 0].eq(0).all()
    assert by_weight[1, 1:].ne(0).all()
    assert by_scale[0] == 0
    assert by_scale[1] != 0


@pytest.mark.parametrize("wanted", NAMES)
def test_only_what_needs_a_gradient_gets_one(wanted):
    data = operands((4, 3, 2))
    data[wanted].requires_grad_()
    everything = operands((4, 3, 2))
    everything = {name: data[name].detach().clone().requires_grad_() for name in everything}
    (alone,) = gradients(call(interval_affine, data, BATCHNORM), [data[wanted]])
    together = gradients(call(interval_affine, everything, BATCHNORM), list(everything.values()))
    assert torch.equal(alone, together[NAMES.index(wanted)])


def test_counts_have_no_gradient():
    data = operands((4, 3, 2))
    data["center"].requires_grad_()
    (gradient,) = torch.autograd.grad(call(interval_affine, data, BATCHNORM).sums[1:3].sum(), data["center"])
    assert gradient.eq(0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.booleans(), st.floats(0, 2))
def test_points_of_the_box_stay_inside(seed, inner, relu, width):
    generator = torch.Generator().manual_seed(seed)
    center, weight = torch.randn(1, inner, generator=generator), torch.randn(6, inner, generator=generator)
    scale, shift = torch.randn(2, 6, generator=generator)
    radius = width * torch.rand(1, inner, generator=generator)
    out = interval_affine(center, radius, weight, scale=scale, shift=shift, relu=relu, sound=True)
    points = center.double() + radius.double() * torch.empty(200, inner, dtype=torch.float64).uniform_(
        -1, 1, generator=generator
    )
    values = points @ weight.double().t() * scale + shift
    values = values.relu() if relu else values
    lower, upper = (out.center.double() + sign * out.radius.double() for sign in (-1, 1))
    assert (values >= lower).all()
    assert (values <= upper).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_sound_intervals_contain_what_exact_arithmetic_gives(variant):
    """With the plain ones, rounding excludes some of it; magnitudes that cancel make that certain."""
    data = operands((64, 700, 24))
    data["radius"] *= 1e-5
    data["bias"] *= 100
    lower, upper = (oracle(data, variant)[0] + sign * oracle(data, variant)[1] for sign in (-1, 1))

    def excluded(sound):
        center, radius = (tensor.double().numpy() for tensor in call(interval_affine, data, variant, sound=sound)[:2])
        return int((lower < center - radius).sum() + (upper > center + radius).sum())

    assert excluded(sound=False) > 0
    assert excluded(sound=True) == 0


def test_soundness_costs_little_width():
    data = operands((8, 64, 16))
    plain, sound = (call(interval_affine, data, VARIANTS[3], sound=sound).radius for sound in (False, True))
    terms = (data["center"].abs() + data["radius"]) @ data["weight"].abs().t()
    added = sound - plain
    assert (added > 0).all()
    assert (added <= 1.5 * rounding_slack(64) * terms).all()
    assert abs(rounding_slack(4096) / (4096 * 2**-24) - 1) < 0.01


def test_certificates_need_full_precision(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    data = operands((2, 3, 2))
    call(interval_affine, data, BATCHNORM)
    with pytest.raises(ValueError, match=r"'high'; sound=True needs.*set_float32_matmul_precision\('highest'\)"):
        call(interval_affine, data, BATCHNORM, sound=True)
    with pytest.raises(ValueError, match=r"in_features is 2000000"):
        rounding_slack(2_000_000)


def test_leading_dimensions_are_kept():
    data = operands((12, 5, 3))
    flat = call(interval_affine, data, BATCHNORM)
    folded = call(interval_affine, {**data, **{n: data[n].view(2, 6, 5) for n in NAMES[:2]}}, BATCHNORM)
    single = call(interval_affine, {**data, **{n: data[n][0] for n in NAMES[:2]}}, BATCHNORM)
    for got, want in zip(folded[:4], flat[:4], strict=True):
        assert torch.equal(got, want.view(2, 6, 3))
    assert torch.equal(folded.sums, flat.sums)
    torch.testing.assert_close(single.center, flat.center[0])


def test_without_relu_the_intervals_are_the_pre_activations():
    out = call(interval_affine, operands((4, 3, 2)), VARIANTS[1])
    assert out.center is out.pre_center
    assert out.radius is out.pre_radius


def test_any_layout():
    data = operands((20, 12, 9))
    apart = {name: torch.stack([tensor, tensor], dim=-1)[..., 0] for name, tensor in data.items()}
    apart["weight"] = data["weight"].t().contiguous().t()
    for got, want in zip(call(interval_affine, apart, BATCHNORM), call(interval_affine, data, BATCHNORM), strict=True):
        torch.testing.assert_close(got, want)


def test_what_does_not_fit_is_named():
    data = operands((4, 3, 2))
    c, r, w, b = (data[name] for name in NAMES[:4])
    for message, arguments, options in [
        (r"center has shape \(4, 3\) and radius \(3, 3\)", (c, r[1:], w), {}),
        (r"allowed is \(\.\.\., 3\)", (c[:, 1:], r[:, 1:], w), {}),
        (r"weight has shape \(3,\); allowed is \(out, in\)", (c, r, w[0]), {}),
        (r"bias has shape \(3,\); allowed is \(2,\)", (c, r, w, torch.ones(3)), {}),
        (r"scale and shift belong together", (c, r, w, b), {"scale": b}),
        (r"center torch.bfloat16.*Convert with \.float\(\)", (c.bfloat16(), r.bfloat16(), w.bfloat16()), {}),
        (r"weight torch.float64", (c, r, w.double()), {}),
    ]:
        with pytest.raises(ValueError, match=message):
            interval_affine(*arguments, **options)


def test_shards_are_refused():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        data = operands((4, 3, 2))
        data["weight"] = distribute_tensor(data["weight"], mesh, [Shard(0)])
        with pytest.raises(ShardedParameterError, match="need whole weights"):
            call(interval_affine, data, BATCHNORM)
    finally:
        torch.distributed.destroy_process_group()


def test_per_sample_gradients():
    data = operands((5, 4, 3), torch.float64)

    def loss(weight, center, radius, function):
        out = call(function, {**data, "weight": weight, "center": center, "radius": radius}, BATCHNORM)
        return sum(tensor.sum() for tensor in out)

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, None))
    arguments = (data["weight"], data["center"], data["radius"])
    with pytest.warns(UserWarning, match="batching rule"):
        got = per_sample(*arguments, interval_affine)
    torch.testing.assert_close(got, per_sample(*arguments, interval_affine_reference))
    assert got.shape == (5, 3, 4)


def test_second_derivatives_raise():
    data = operands((5, 4, 3))

    def loss(weight):
        return call(interval_affine, {**data, "weight": weight}, BATCHNORM).center.square().sum()

    first = torch.func.grad(loss)
    assert first(data["weight"]).isfinite().all()
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.func.grad(lambda weight: first(weight).sum())(data["weight"])
    weight = data["weight"].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        gradient.sum().backward()


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[3]], ids=str)
def test_compiles_without_graph_breaks(variant):
    data = operands((5, 4, 3))
    inputs = [data[name].requires_grad_() for name in used(variant)]
    compiled = torch.compile(lambda: call(interval_affine, data, variant), fullgraph=True, backend="aot_eager")
    got, want = (gradients(function(), inputs) for function in (compiled, lambda: call(interval_affine, data, variant)))
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_opcheck(variant):
    data = operands((5, 4, 3))
    vectors = [data["bias"] if variant["bias"] else None]
    vectors += [data[name] if variant["affine"] else None for name in ("scale", "shift")]
    arguments = (data["center"], data["radius"], data["weight"], *vectors, variant["relu"], False)
    forward, backward = (
        torch.ops.lightning_weights.interval_affine,
        torch.ops.lightning_weights.interval_affine_backward,
    )
    assert set(torch.library.opcheck(forward.default, arguments).values()) == {"SUCCESS"}
    pre_center, pre_radius, sums, *_, raw = forward.default(*arguments)
    grads = (
        torch.randn(5, 3),
        None,
        torch.randn_like(sums),
        *([torch.randn(5, 3)] * 2 if variant["relu"] else [None] * 2),
    )
    for needed in ([True] * 6, [False, True, False, False, True, False]):
        needed[4] &= variant["affine"]
        saved = (*arguments[:3], vectors[1], pre_center, pre_radius, raw, needed)
        assert set(torch.library.opcheck(backward.default, (*grads, *saved)).values()) == {"SUCCESS"}

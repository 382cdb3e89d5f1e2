"""Bounds of whole networks against sampled points, closed forms and plain forward passes."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.ibp_warmup import input_box, layer_sums, relu_balance, robust_loss, tightness
from lightning_weights.functional.intervals import Interval, IntervalInterpreter, interval_forward
from tests.functional.intervals.networks import NETWORKS, batch, inside, make, mlp, randomised

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
STATISTICS = {"mean": [0.4, 0.6], "std": [0.25, 0.3]}


def bounds(net, eps, spec=True, seed=0):
    x, y = batch(seed=seed)
    z, lower, upper = input_box(x, eps, **STATISTICS)
    return (z, lower, upper, y), interval_forward(net, z, lower, upper, spec=y if spec else None)


def margins(logits, y):
    """All z_y - z_j, j ≠ y ascending, by loops."""
    rows = [[row[label] - row[j] for j in range(len(row)) if j != label] for row, label in zip(logits, y, strict=True)]
    return torch.stack([torch.stack(row) for row in rows])


def assert_between(values, lower, upper):
    slack = 1e-4 * (lower.abs() + upper.abs()) + 1e-6
    assert (values >= lower - slack).all()
    assert (values <= upper + slack).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_ten_thousand_points_of_every_box_stay_inside(name):
    net = make(name).eval()
    (_, lower, upper, y), out = bounds(net, 0.06)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for i in range(3):
        seen.clear()
        with torch.no_grad():
            logits = net(inside(lower[i], upper[i]))
        assert_between(logits, out.lower[i], out.upper[i])
        assert_between(margins(logits[:500], y[i].expand(500)), out.margin_lower[i], torch.full((), torch.inf))
        for values, box in zip(seen, out.preactivations, strict=False):
            assert_between(values, box.lower[i], box.upper[i])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_boxes_without_width_are_the_clean_pass(name, training):
    net = make(name).train(training)
    torch.manual_seed(1)
    (z, _, _, y), out = bounds(net, 0.0)
    torch.manual_seed(1)  # dropout
    clean = copy.deepcopy(net)(z)
    for value in (out.clean, out.lower, out.upper):
        torch.testing.assert_close(value, clean, **CLOSE)
    torch.testing.assert_close(robust_loss(out.margin_lower), nn.functional.cross_entropy(clean, y), **CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
def test_boxes_nest(name):
    net = make(name).eval()
    outs = [bounds(net, eps)[1] for eps in (0.0, 0.001, 0.01, 0.1, 1.0)]
    for small, large in pairwise(outs):
        for inner, outer in zip(small.preactivations, large.preactivations, strict=True):
            assert_between(inner.lower, outer.lower, outer.upper)
            assert_between(inner.upper, outer.lower, outer.upper)
        assert robust_loss(large.margin_lower) >= robust_loss(small.margin_lower)


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_margins_are_tighter_than_logits(name):
    (_, _, _, y), out = bounds(make(name).eval(), 0.05)
    rows = torch.arange(len(y))
    loose = out.lower[rows, y][:, None] - out.upper
    loose = torch.stack([row[torch.arange(4) != label] for row, label in zip(loose, y, strict=True)])
    assert (out.margin_lower >= loose - 1e-4).all()
    assert (out.margin_lower > loose + 1e-4).any()


def test_one_affine_layer_is_exact():
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 4))
    (_, lower, upper, y), out = bounds(net, 0.1)
    weight, bias = net[1].weight, net[1].bias
    center, radius = ((upper + lower) / 2).flatten(1), ((upper - lower) / 2).flatten(1)
    best = torch.stack([(center + radius * row.sign()) @ row for row in weight], 1) + bias
    torch.testing.assert_close(out.upper, best, **CLOSE)
    for i, label in enumerate(y.tolist()):
        rows = weight[label] - weight[torch.arange(4) != label]
        worst = [net((center[i] - radius[i] * row.sign())[None])[0] for row in rows]
        exact = torch.stack([z[label] - z[j] for z, j in zip(worst, [j for j in range(4) if j != label], strict=True)])
        torch.testing.assert_close(out.margin_lower[i], exact, **CLOSE)


def keep_biased_variance(module, args, out):
    module.running_var.copy_(args[0].detach().transpose(0, 1).flatten(1).var(1, correction=0))


@pytest.mark.parametrize("name", NETWORKS)
def test_training_bounds_hold_for_frozen_statistics(name):
    """They are those of evaluation with the statistics of the clean batch."""
    net = make(name).train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    frozen = copy.deepcopy(net)
    norms = [module for module in frozen.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_hook(keep_biased_variance) for norm in norms]
    (z, *_), out = bounds(net, 0.05)
    frozen(z)
    for hook in hooks:
        hook.remove()
    _, expected = bounds(frozen.eval(), 0.05)
    torch.testing.assert_close(out.margin_lower, expected.margin_lower, **CLOSE)
    torch.testing.assert_close((out.lower, out.upper), (expected.lower, expected.upper), **CLOSE)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", NETWORKS)
def test_running_statistics_are_those_of_plain_forward_passes(name, momentum):
    net = make(name).train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
    plain = copy.deepcopy(net)
    for step in range(3):
        torch.manual_seed(step)
        (z, *_), _ = bounds(net, 0.05, seed=step)
        torch.manual_seed(step)
        plain(z)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_permuted_units_and_classes_permute_the_bounds():
    net = randomised(mlp()).eval()
    permuted, order, classes = copy.deepcopy(net), torch.randperm(16), torch.randperm(4)
    for tensor in (net[1].weight, net[1].bias, net[2].weight, net[2].bias, net[2].running_mean, net[2].running_var):
        name = next(n for n, t in [*net.named_parameters(), *net.named_buffers()] if t is tensor)
        dict([*permuted.named_parameters(), *permuted.named_buffers()])[name].data.copy_(tensor[order])
    permuted[4].weight.data.copy_(net[4].weight[:, order])
    permuted[-1].weight.data.copy_(net[-1].weight[classes])
    permuted[-1].bias.data.copy_(net[-1].bias[classes])
    _, out = bounds(net, 0.05)
    _, other = bounds(permuted, 0.05)
    torch.testing.assert_close(other.lower, out.lower[:, classes], **CLOSE)
    torch.testing.assert_close(other.preactivations[0].lower, out.preactivations[0].lower[:, order], **CLOSE)


@pytest.mark.parametrize("name", ["mlp", "convolutional"])
def test_turned_sign_of_batch_norm_swaps_the_ends(name):
    net = make(name)
    place = 2 if name == "mlp" else 1
    _, out = bounds(net, 0.05)
    net = make(name)
    net[place].weight.data.neg_()
    net[place].bias.data.neg_()
    _, turned = bounds(net, 0.05)
    torch.testing.assert_close(turned.preactivations[0].lower, -out.preactivations[0].upper, **CLOSE)
    torch.testing.assert_close(turned.preactivations[0].radius, out.preactivations[0].radius, **CLOSE)


def interval(x):
    return Interval.between(x, (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_fused_chains_change_nothing(name, training):
    net = make(name).double().train(training)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, y = batch()
    results = []
    for fused in (True, False):
        copied = copy.deepcopy(net)
        runner = IntervalInterpreter(copied, y, fused=fused)
        box = runner.run(interval(x.double()))
        sums = sum(pre.sums.sum() for pre in runner.preactivations)
        (box.clean.sum() + robust_loss(runner.margin_lower) + sums).backward()
        pre = [(p.center, p.radius) for p in runner.preactivations]
        results.append((box.center, box.radius, pre, [p.grad for p in copied.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_slopes(name):
    """Along random directions in the space of all weights, in float64, with batch statistics that depend on them."""
    net = make(name).double().train()
    x, y = batch()
    box = interval(x.double())

    def loss():
        torch.manual_seed(0)  # dropout
        out = interval_forward(net, box.clean, box.lower, box.upper, spec=y)
        sums = layer_sums(out.preactivations)
        regularisers = tightness(sums, box.radius.mean()) + relu_balance(sums, tol=0.9)
        return robust_loss(out.margin_lower) + out.clean.square().mean() + regularisers

    loss().backward()
    parameters = list(net.parameters())
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        values = []
        for shift in (1e-6, -2e-6):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.data.add_(direction, alpha=shift)
            values.append(loss().item())
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data.add_(direction, alpha=1e-6)
        slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))
        assert slope.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_parametrized_weight_is_read_once_and_matters():
    reads = []

    class Doubled(nn.Module):
        def forward(self, original):
            reads.append(1)
            return original * 2

    net = mlp(norm=False)
    doubled = copy.deepcopy(net)
    doubled[1].weight.data.mul_(2)
    parametrize.register_parametrization(net[1], "weight", Doubled())
    bounds(net, 0.05)  # the first time a copy is compared with its trace
    reads.clear()
    _, out = bounds(net, 0.05)
    _, expected = bounds(doubled, 0.05)
    assert len(reads) == 1
    torch.testing.assert_close(out.margin_lower, expected.margin_lower, **CLOSE)


def test_autocast_does_not_reach_the_bounds():
    net = make("mlp").eval()
    _, expected = bounds(net, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        _, out = bounds(net, 0.05)
    assert out.margin_lower.dtype == torch.float32
    assert torch.equal(out.margin_lower, expected.margin_lower)


def test_compiled_networks_and_steps():
    net = make("mlp").eval()
    (z, lower, upper, y), expected = bounds(net, 0.05)
    out = interval_forward(torch.compile(net, backend="eager"), z, lower, upper, spec=y)
    assert torch.equal(out.margin_lower, expected.margin_lower)

    @torch.compile(backend="eager")
    def step(eps):
        return robust_loss(interval_forward(net, z, z - eps, z + eps, spec=y).margin_lower) * 2

    torch.testing.assert_close(step(torch.tensor(0.0)), 2 * nn.functional.cross_entropy(net(z), y), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_half_precision_is_refused(dtype):
    x = torch.zeros(2, 72, dtype=dtype)
    with pytest.raises(ValueError, match=r"x is in torch\.\w+.*float32"):
        interval_forward(mlp(), x, x, x)


def test_shapes_must_agree():
    x = torch.zeros(2, 72)
    with pytest.raises(ValueError, match=r"\(2, 72\), \(1, 72\) and \(2, 72\)"):
        interval_forward(mlp(), x, x[:1], x)


def test_sharded_weights_are_refused():
    net = mlp()
    net[1].weight.placements = ()
    with pytest.raises(ShardedParameterError, match="gather the weights"):
        bounds(net, 0.1)


def test_margins_need_a_linear_head():
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"ends in '2'.*last nn.Linear"):
        bounds(net, 0.1)
    assert bounds(net, 0.1, spec=False)[1].margin_lower is None

"""Every operation that is known from the start: exact on points, and sound on boxes."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_weights.functional.intervals import Interval, IntervalInterpreter, interval_forward
from lightning_weights.functional.intervals.registry import find_rule
from lightning_weights.functional.intervals.standard_rules import AFFINE, MONOTONE, POSITIVE_LINEAR, RELU, SLOPED


class Call(nn.Module):
    def __init__(self, function, *parts):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


IMAGE, SIGNAL, VOLUME, ROWS = (3, 4, 6, 6), (3, 4, 8), (2, 2, 4, 4, 4), (5, 4)
CONSTANT = torch.tensor([-1.5, 0.5, 2.0, -0.25])
MATRIX = torch.linspace(-1, 1, 12).view(4, 3)
MODULES = [
    (nn.Conv1d(4, 2, 3, dilation=2), SIGNAL),
    (nn.Conv2d(4, 6, 3, stride=2, groups=2), IMAGE),
    (nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), IMAGE),
    (nn.Conv3d(2, 3, 2), VOLUME),
    *((nn.BatchNorm1d(4), shape) for shape in (ROWS, SIGNAL)),
    (nn.BatchNorm2d(4, affine=False), IMAGE),
    (nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
    (nn.SyncBatchNorm(4), IMAGE),
    (nn.BatchNorm3d(2), VOLUME),
    (nn.Linear(6, 2), IMAGE),
    *((pool(2), IMAGE) for pool in (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)),
    *((pool(2), SIGNAL) for pool in (nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)),
    *((pool(2), VOLUME) for pool in (nn.AvgPool3d, nn.MaxPool3d)),
    *((part(), ROWS) for part in (nn.Sigmoid, nn.Tanh, nn.Softplus, nn.SELU, nn.LogSigmoid, nn.Softsign, nn.Identity)),
    *((part(inplace=True), ROWS) for part in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.CELU)),
    *((part(), IMAGE) for part in (nn.Hardsigmoid, nn.Flatten, nn.Dropout, nn.Dropout2d)),
    *((part, IMAGE) for part in (nn.Unflatten(1, (2, 2)), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ZeroPad2d(1))),
    *((part, SIGNAL) for part in (nn.ZeroPad1d(1), nn.Dropout1d())),
    (nn.Dropout3d(), VOLUME),
]
FUNCTIONS = [
    *((function, ROWS) for function in (F.relu, torch.relu, lambda x: x.relu(), F.leaky_relu, F.elu, F.celu, F.selu)),
    *((function, ROWS) for function in (F.softplus, F.hardtanh, F.relu6, F.logsigmoid, F.softsign, F.hardsigmoid)),
    *((function, ROWS) for function in (torch.sigmoid, torch.tanh, torch.exp)),
    *((lambda x, name=name: getattr(x, name)(), ROWS) for name in ("sigmoid", "tanh", "exp", "contiguous", "neg")),
    *((lambda x, pool=pool: pool(x, 2), SIGNAL) for pool in (F.avg_pool1d, F.max_pool1d, F.adaptive_avg_pool1d)),
    *((lambda x, pool=pool: pool(x, 2), IMAGE) for pool in (F.avg_pool2d, F.max_pool2d, F.adaptive_avg_pool2d)),
    *((lambda x, pool=pool: pool(x, 2), IMAGE) for pool in (F.adaptive_max_pool2d,)),
    (lambda x: F.adaptive_max_pool1d(x, 2), SIGNAL),
    *((lambda x, pool=pool: pool(x, 2), VOLUME) for pool in (F.avg_pool3d, F.max_pool3d)),
    *((lambda x, drop=drop: drop(x, 0.5, True), SIGNAL) for drop in (F.dropout, F.dropout1d)),
    *((lambda x, drop=drop: drop(x, 0.5, True), IMAGE) for drop in (F.dropout2d,)),
    (lambda x: F.dropout3d(x, 0.5, True), VOLUME),
    (lambda x: F.pad(x, (1, 2), value=-3.0), ROWS),
    (lambda x: F.linear(x, MATRIX.T, torch.ones(3)), ROWS),
    (lambda x: F.conv1d(x, MATRIX.T[:, :, None]), SIGNAL),
    (lambda x: F.conv2d(x, MATRIX.T[:, :, None, None], bias=torch.ones(3), padding=1), IMAGE),
    (lambda x: F.conv3d(x, MATRIX[:2, :2, None, None, None]), VOLUME),
    (lambda x: F.batch_norm(x, torch.ones(4), torch.full((4,), 2.0), CONSTANT, CONSTANT), IMAGE),
    (lambda x: x.view(x.size(0), -1), IMAGE),
    (lambda x: x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2).flatten(1), IMAGE),
    (lambda x: torch.flatten(x, 1).unsqueeze(1).squeeze(1).unflatten(1, (2, 2)), ROWS),
    (lambda x: torch.squeeze(torch.unsqueeze(x, 1), 1), ROWS),
    (lambda x: torch.transpose(torch.permute(torch.reshape(x, (4, 5)), (1, 0)), 0, 1).permute(1, 0), ROWS),
    (lambda x: x[:, 1:].expand(2, 5, 3), ROWS),
    *((reduce, IMAGE) for reduce in (lambda x: x.mean((2, 3)), lambda x: torch.mean(x, 1), lambda x: x.sum(1))),
    (lambda x: torch.sum(x, 1), ROWS),
    *((lambda x, op=op: op(x, CONSTANT), ROWS) for op in (operator.add, operator.sub, operator.mul, operator.truediv)),
    *((lambda x, op=op: op(CONSTANT, x), ROWS) for op in (operator.add, operator.sub, operator.mul)),
    *((lambda x, op=op: op(x, CONSTANT), ROWS) for op in (torch.add, torch.sub, torch.mul, torch.div)),
    *((lambda x, n=n: getattr(x, n)(-2.0), ROWS) for n in ("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_")),
    *((op, ROWS) for op in (lambda x: x @ MATRIX, lambda x: MATRIX.T @ x.transpose(0, 1), lambda x: -x, torch.neg)),
    (lambda x: torch.matmul(x, MATRIX), ROWS),
    (lambda x: torch.add(x, F.relu(x), alpha=-2), ROWS),
    (lambda x: x - F.relu(x) + x, ROWS),
    (lambda x: torch.cat([x, -x, CONSTANT.expand(5, 4)], 1), ROWS),
    (lambda x: torch.stack([x, 2 * x], 1), ROWS),
]
CASES = [
    *((nn.Sequential(module), shape) for module, shape in MODULES),
    *((Call(function), shape) for function, shape in FUNCTIONS),
]


def in_place(x):
    x = x + 0
    x += 1
    x *= -2
    x -= CONSTANT
    x /= 3
    return torch.relu_(x - 1) + x.relu_()


BATCH_STATISTICS = Call(lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), CONSTANT, training=True))
CASES += [(Call(in_place), ROWS), (BATCH_STATISTICS, IMAGE)]


def outputs(net, x, radius):
    """Return the plain result and the bounds for points and for boxes, all with the same dropout masks."""
    results = []
    for run in (
        lambda: net(x.clone()),
        lambda: interval_forward(net, x, x, x),
        lambda: interval_forward(net, x, x - radius, x + 2 * radius),
    ):
        torch.manual_seed(0)
        results.append(run())
    return results


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("net", "shape"), CASES)
def test_operation(net, shape, training):
    generator = torch.Generator().manual_seed(0)
    x, radius = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
    part = net[0] if isinstance(net, nn.Sequential) else net
    net.train(training and not isinstance(part, nn.SyncBatchNorm))  # which trains on GPUs only
    expected, point, box = outputs(net, x, radius)
    for value in (point.clean, point.lower, point.upper, box.clean):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    batch_statistics = isinstance(part, nn.modules.batchnorm._BatchNorm) and (training or part.running_mean is None)
    points = 0 if batch_statistics or net is BATCH_STATISTICS else 20
    for _ in range(points):
        share = torch.rand(shape, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)
        torch.manual_seed(0)
        value = net(x - radius + share * 3 * radius)
        assert (value >= box.lower - 1e-4).all()
        assert (value <= box.upper + 1e-4).all()
    assert (box.lower <= expected + 1e-4).all()
    assert (box.upper >= expected - 1e-4).all()


def test_every_rule_is_tried(monkeypatch):
    tried = set()

    def spy(op):
        tried.add(type(op) if isinstance(op, nn.Module) else op)
        return find_rule(op)

    monkeypatch.setattr("lightning_weights.functional.intervals.interpreter.find_rule", spy)
    for net, shape in CASES:
        x = torch.zeros(shape)
        IntervalInterpreter(net.eval(), fused=False).run(Interval.between(x, x, x))
    assert {*AFFINE, *MONOTONE, *POSITIVE_LINEAR, *RELU, *SLOPED} - tried == set()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * x, "node 'mul'.*both factors depend on the input"),
        (lambda x: 1 / (x + 3), "node 'truediv'.*the divisor depends on the input"),
        (lambda x: CONSTANT / (x + 3), "node 'div'.*the divisor depends on the input"),
        (lambda x: CONSTANT - (x + 3) ** 2, "node 'pow_1' .call_function pow. has no interval rule"),
        (lambda x: F.leaky_relu(x, -0.1), "node 'leaky_relu'.*slope on the negative side is negative"),
        (lambda x: x.softmax(1), "node 'softmax' .call_method softmax. has no interval rule.*register_interval_rule"),
        (lambda x: x.T, "node 'getattr_1' .call_function getattr. has no interval rule"),
    ],
)
def test_refusals(function, message):
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=message):
        interval_forward(Call(function), x, x, x)


@pytest.mark.parametrize("module", [nn.LeakyReLU(-1.0), nn.ELU(-1.0)])
def test_falling_slopes_are_refused(module):
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"node 'parts_0' .call_module parts\.0..*slope"):
        interval_forward(Call(lambda x, part: part(x), module), x, x, x)

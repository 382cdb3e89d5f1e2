"""Networks whose bounds would be wrong are refused, or bounded as they are now."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_weights.functional.intervals import (
    IntervalInterpreter,
    crown_margins,
    interval_forward,
    register_interval_rule,
)
from lightning_weights.functional.intervals.rules import linear
from tests.functional.intervals.networks import make

EPS = 0.2


class Net(nn.Module):
    """Two linear layers around, and whatever a function does with them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self._function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self._function(self, x)


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])


def run(net):
    x, y = data()
    return interval_forward(net, x, x - EPS, x + EPS, spec=y)


def assert_sound(net):
    x, _ = data()
    out = run(net)
    for seed in range(50):
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).mul(2).sub(1)
        with torch.no_grad():
            logits = copy.deepcopy(net)(x + EPS * noise.sign())
        assert (logits >= out.lower - 1e-4).all()
        assert (logits <= out.upper + 1e-4).all()


def shortcut(net, x):
    a = net.first(x)
    kept = net.kept(a)
    return net.head(net.second(F.relu(a, True)) + kept)


def view(net, x):
    a = net.first(x)
    return net.head(F.relu(a.view(-1, 2, 2), inplace=True).flatten(1) + a)


def selection(net, x):
    a = net.first(x)
    a[:, :2].mul_(0.0)
    return net.head(a)


@pytest.mark.parametrize(
    "net",
    [
        *(Net(shortcut, kept=kept).eval() for kept in (nn.Identity(), nn.Dropout(), nn.Sequential(), nn.Flatten())),
        *(Net(function) for function in (view, selection)),
    ],
)
def test_memory_overwritten_under_another_name(net):
    with pytest.raises(ValueError, match=r"works in place on .* read later as .*use inplace=False"):
        run(net)


def test_in_place_operations_without_later_readers_are_sound():
    def forward(net, x):
        a = F.relu(net.first(x).view(-1, 2, 2), inplace=True).flatten(1)
        out = F.relu(net.second(a))
        out += a
        return net.head(out.relu_())

    assert_sound(Net(forward))


def second_name(net, x):
    a = net.first(x)
    kept = a
    a += 1.5 * net.second(a)
    return net.head(F.relu(a) + kept)


def random_constant(net, x):
    return net.head(net.first(x) + torch.randn(4))


@pytest.mark.parametrize("function", [second_name, random_constant])
def test_networks_that_differ_from_their_trace(function):
    net = Net(function)
    with pytest.raises(ValueError, match="Net computes something else than its traced graph"):
        run(net)
    with pytest.raises(ValueError, match="Net computes something else"):  # the graph is known by now
        run(net)


def test_comparison_with_the_trace_leaves_no_trace():
    for name in ("residual", "convolutional"):
        net = make(name).train()
        before = copy.deepcopy(net)
        x = torch.rand(3, 2, 6, 6)
        torch.manual_seed(3)
        interval_forward(net, x, x, x)
        state = torch.get_rng_state()
        torch.manual_seed(3)
        before(x)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(net.state_dict(), before.state_dict(), rtol=0, atol=0)


def test_networks_that_cannot_be_copied_are_not_compared():
    net = Net(lambda net, x: net.head(F.relu(net.first(x))))
    net.product = net.first.weight * 2  # inside a graph of autograd
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    assert run(net).margin_lower.shape == (5, 2)


@pytest.mark.parametrize(
    ("old", "new"), [(1.0, 5.0), (True, False), ("relu", "tanh"), ((1, 2), (1, 3)), (F.relu, torch.tanh)]
)
def test_changed_attributes_are_traced_anew(old, new):
    def forward(net, x):
        a = net.first(x)
        setting = net.setting
        if callable(setting):
            return net.head(setting(a))
        if isinstance(setting, str):
            return net.head(getattr(a, setting)())
        return net.head(a * (setting[1] if isinstance(setting, tuple) else float(setting)))

    net = Net(forward, setting=old)
    first = run(net)
    net.setting = new
    assert not torch.equal(run(net).clean, first.clean)
    assert_sound(net)


def test_tensors_made_in_forward_do_not_pile_up_on_the_network():
    net = Net(lambda net, x: net.head(F.relu(net.first(x) + torch.tensor([1.0, 2.0, 3.0, 4.0]))))
    before = set(vars(net))
    for mode in (True, False, True):
        assert_sound(net.train(mode))
    assert set(vars(net)) == before


def weight_norm(layer):
    nn.utils.weight_norm(layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "hook",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        nn.utils.spectral_norm,
        weight_norm,
        lambda layer: layer.register_forward_hook(lambda module, args, out: out * 3),
        lambda layer: layer.register_forward_pre_hook(lambda module, args: (args[0] * 3,)),
    ],
)
def test_hooks_are_refused(hook):
    net = Net(lambda net, x: net.head(F.relu(net.first(x))))
    run(net)
    hook(net.first)
    with pytest.raises(ValueError, match=r"module 'first' \(Linear\) has forward hooks.*parametrizations"):
        run(net)


def test_permanent_pruning_and_parametrizations_are_not_hooks():
    net = Net(lambda net, x: net.head(F.relu(net.first(x))))
    prune.l1_unstructured(net.first, "weight", 0.5)
    prune.remove(net.first, "weight")
    net.first.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    parametrizations.weight_norm(net.head)
    with torch.no_grad():
        net.head.parametrizations.weight.original0.mul_(3)
    assert_sound(net.eval())


class Tripled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


def test_heads_with_a_rule_of_their_own_are_not_merged():
    register_interval_rule(Tripled, lambda apply, x: linear(F.linear, x, apply.weight * 3, apply.bias * 3))
    for net in (nn.Sequential(Tripled(4, 3)), nn.Sequential(nn.Linear(4, 3), nn.Flatten())):
        with pytest.raises(ValueError, match="margins are merged into a last"):
            run(net)
    x, _ = data()
    net = Tripled(4, 3)
    torch.testing.assert_close(interval_forward(net, x, x, x).upper, net(x))


@pytest.mark.parametrize(
    "mix",
    [
        lambda net, a: a - a.mean(0, keepdim=True),
        lambda net, a: a[[4, 3, 2, 1, 0]],
        lambda net, a: F.relu(a.view(-1, 2)).view(-1, 4),
        lambda net, a: torch.eye(5).roll(1, 0) @ a,
    ],
)
def test_crown_refuses_what_mixes_samples(mix):
    net = Net(lambda net, x: net.head(mix(net, F.relu(net.first(x)))), norm=nn.BatchNorm1d(4))
    x, y = data()
    assert_sound(net)
    with pytest.raises(ValueError, match=r"mixes the samples of the batch.*bound='ibp'"):
        crown_margins(net, x, x - EPS, x + EPS, y)


def test_crown_refuses_before_batch_norm_moves():
    x, y = data()
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="neither affine nor a ReLU"):
        crown_margins(net, x, x, x, y)
    assert net[1].num_batches_tracked == 0


def test_crown_on_boxes_narrower_than_rounding():
    """Where u - l is 2e-9 the line above the ReLU must still reach u."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    for parameter, value in zip(net.parameters(), ([[1e-9]], [0.0], [[-1e9], [0.0]], [0.0, 0.0]), strict=True):
        parameter.data.copy_(torch.tensor(value))
    x = torch.zeros(1, 1)
    _, margins = crown_margins(net, x, x - 1, x + 1, torch.tensor([0]))
    assert margins.item() <= -1 + 1e-6
    margins.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    net.zero_grad()
    crown_margins(net, x, x, x, torch.tensor([0]))[1].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(
    "module", [nn.Softplus(beta=3, threshold=0.1), nn.Softplus(beta=-1), Net(lambda net, x: F.softplus(x, 3, 0.1))]
)
def test_softplus_that_drops_is_refused(module):
    x, _ = data()
    with pytest.raises(ValueError, match=r"beta is .* and threshold .*monotone up to rounding"):
        interval_forward(nn.Sequential(module), x, x, x)


@pytest.mark.parametrize(
    "function",
    [lambda net, x: net.head(torch.flatten(input=x, start_dim=1)), lambda net, x: net.head(x.mul(other=-2.0))],
)
def test_keyword_forms_name_the_node(function):
    with pytest.raises(ValueError, match=r"node '(flatten|mul)' .* passes arguments that its rule does not take"):
        run(Net(function))


@pytest.mark.parametrize("labels", [[0, 1, 3, 0, 1], [0, -1, 2, 0, 1], [0.0, 1.0, 2.0, 0.0, 1.0]])
def test_labels_are_checked_before_batch_norm_moves(labels):
    x, _ = data()
    for head in (lambda net, a: net.head(a), lambda net, a: F.linear(a, net.head.weight, net.head.bias)):
        net = Net(lambda net, x, head=head: head(net, F.relu(net.norm(net.first(x)))), norm=nn.BatchNorm1d(4))
        with pytest.raises(ValueError, match="labels"):
            IntervalInterpreter(net, torch.tensor(labels))
        with pytest.raises(ValueError, match="labels"):
            interval_forward(net, x, x, x, spec=torch.tensor(labels))
        assert net.norm.num_batches_tracked == 0

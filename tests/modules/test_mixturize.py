"""From plain networks to growing ones and back."""

import pytest
import torch
from torch import nn

from lightning_weights.functional.mixture_growth import COEFFICIENT_INITS
from lightning_weights.modules import (
    CNN7,
    MLP,
    MixtureConv2d,
    MixtureLinear,
    WideResNet,
    grow,
    materialize,
    mixture_parts,
    mixturize,
    set_mode,
)


class Residual(nn.Module):
    """A residual network of two kinds of joints, with a depth-wise convolution, pooling and a head without bias."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * channels)
        self.short = nn.Conv2d(channels, 2 * channels, 1, stride=2)
        self.hidden = nn.Linear(8 * channels, 10)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(10, 4, bias=False)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.depthwise(torch.relu(self.first(x)))
        x = torch.relu(self.norm2(self.down(x)) + self.short(x))
        x = nn.functional.avg_pool2d(x, 2)
        return self.head(self.dropout(torch.relu(self.hidden(x.flatten(1)))))


def disturbed(network):
    """Return a network whose norms have seen something, in evaluation."""
    for part in mixture_parts(network).values():
        if hasattr(part, "running_mean"):
            part.running_mean.normal_(), part.running_var.uniform_(0.5, 2.0)
            for param in (*part.weights, *part.biases):
                nn.init.normal_(param)
    return network.eval()


def outputs(network, x):
    found = []
    for mode in ("member0", "member1"):
        set_mode(network, mode)
        found.append(network(x))
    return found


NETWORKS = {
    "residual": (Residual, (3, 8, 8)),
    "pre-activation": (
        lambda: WideResNet(3, 8, 10, widen=1, pre_activation=True, pool=True, linear_size=None),
        (3, 8, 8),
    ),
    "hidden layers": (lambda: WideResNet(1, 8, 10, widen=1, linear_size=16), (1, 8, 8)),
    "mlp": (lambda: MLP(64, (32, 16), 10, batch_norm=True), (64,)),
    "cnn7": (lambda: CNN7(1, 8, 10, width=4, linear_size=16), (1, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("keep_bias", [False, True])
def test_zero_is_the_sum_of_the_members(name, keep_bias):
    make, shape = NETWORKS[name]
    network = disturbed(mixturize(make(), keep_bias=keep_bias))
    x = torch.randn(5, *shape)
    with torch.no_grad():
        members = outputs(network, x)
        grow(network, "zero")
        torch.testing.assert_close(network(x), members[0] + members[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_made_plain_has_the_plain_architecture_and_the_same_outputs(name):
    make, shape = NETWORKS[name]
    plain = make()
    network = disturbed(mixturize(plain, keep_bias=True))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    grow(network, "random", seed=3)
    folded = materialize(network)
    assert type(folded) is type(plain)
    assert not mixture_parts(folded)
    shapes = [{key: value.shape for key, value in part.state_dict().items()} for part in (folded, plain)]
    assert shapes[0] == shapes[1]
    x = torch.randn(5, *shape)
    assert torch.equal(folded(x), network(x))
    assert before.keys() == network.state_dict().keys()
    copied = make()
    copied.load_state_dict(folded.state_dict())
    assert torch.equal(copied.eval()(x), network(x))


def test_without_biases_the_parameters_are_those_of_the_plain_network_without_biases():
    plain = Residual()
    network = mixturize(plain)
    grow(network)
    weights = [p for m in plain.modules() for n, p in m.named_parameters(recurse=False) if n == "weight"]
    norms = [m.bias for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(p.numel() for p in materialize(network).parameters()) == sum(p.numel() for p in (*weights, *norms))


def test_members_made_plain_are_networks_of_half_the_width():
    network = disturbed(mixturize(Residual(8)))
    x = torch.randn(2, 3, 8, 8)
    set_mode(network, "member1")
    half = materialize(network)
    assert half.stem.weight.shape == (4, 3, 3, 3)
    assert half.depthwise.groups == 4
    assert half.head.weight.shape == (4, 5)
    assert torch.equal(half(x), network(x))


def test_the_plain_network_stays_as_it_is_and_roles_are_found():
    plain = Residual()
    kept = {key: value.clone() for key, value in plain.state_dict().items()}
    network = mixturize(plain, num_templates={"first": 5, "*": 2})
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in kept.items())
    assert isinstance(plain.stem, nn.Conv2d)
    assert (network.stem.split_in, network.stem.split_out) == (False, True)
    assert (network.head.split_in, network.head.split_out) == (True, False)
    assert all(part.split_in and part.split_out for part in (network.short, network.hidden, network.depthwise))
    assert network.first.bank.num_templates == 5
    assert network.short.bank.num_templates == 2
    assert network.dropout is not plain.dropout


def test_layers_in_two_places_stay_shared():
    shared = nn.Linear(8, 8)
    network = mixturize(nn.Sequential(nn.Linear(4, 8), shared, nn.ReLU(), shared, nn.Linear(8, 2)))
    assert network[1] is network[3]
    grow(network)
    folded = materialize(network)
    assert folded[1] is folded[3]
    x = torch.randn(3, 4)
    assert torch.equal(folded(x), network(x))


def test_device_dtype_and_training_flag_are_those_of_the_plain_network():
    network = mixturize(Residual().double().eval())
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert not any(part.training for part in network.modules() if part is not network)


class Deep(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Linear(4, 8), *(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 2)]
        super().__init__(*layers)


def test_banks_by_shape_and_by_name():
    by_shape = mixturize(Deep(), banks="shape", num_templates=4)
    assert by_shape[1].bank is by_shape[2].bank is by_shape[3].bank
    assert by_shape[0].bank is not by_shape[1].bank
    assert not by_shape[0].coefficients[0].requires_grad
    assert torch.equal(by_shape[4].coefficients[1], torch.ones(4))
    assert by_shape[1].coefficients[0].requires_grad
    # 2 sets of 4 templates: of the first layer, of three together, and of the last
    assert sum(p.numel() for p in by_shape.parameters() if p.dim() > 1) == 2 * 4 * (4 * 4 + 4 * 4 + 2 * 4)
    by_name = mixturize(Deep(), banks=[["1", "2"]])
    assert by_name[1].bank is by_name[2].bank
    assert by_name[2].bank is not by_name[3].bank
    x = torch.randn(3, 4)
    members = outputs(by_shape, x)
    grow(by_shape, "zero")
    torch.testing.assert_close(by_shape(x), sum(members))
    assert torch.equal(materialize(by_shape)(x), by_shape(x))


@pytest.mark.parametrize("init", COEFFICIENT_INITS)
def test_growth_changes_no_shape_and_adds_no_parameter(init):
    network = mixturize(Deep())
    before = {name: param.shape for name, param in network.named_parameters()}
    grow(network, init)
    assert {name: param.shape for name, param in network.named_parameters()} == before


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.leave(self.enter(x)) if x.sum() > 0 else self.leave(self.enter(-x))


def test_networks_that_cannot_be_traced_need_names():
    with pytest.raises(ValueError, match=r"Branching cannot be traced.*name them in stem and head"):
        mixturize(Branching())
    network = mixturize(Branching(), stem=["enter"], head=["leave"])
    assert isinstance(network.enter, MixtureLinear)
    assert not network.enter.split_in
    for names in (["entry"], [], "enter"):
        with pytest.raises(ValueError, match="stem is"):
            mixturize(Branching(), stem=names, head=["leave"])


class Concatenating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.a(x)
        return self.c(torch.cat([x, self.b(x)], 1)).mean((2, 3))


class Joining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.b(x + self.a(x))


class Reusing(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.a, self.b, self.first = nn.Linear(8, 8), nn.Linear(8, 8), first

    def forward(self, x):
        return self.b(self.a(self.a(x))) if self.first else self.b(torch.relu(self.b(self.a(x))))


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def tied():
    network = Deep()
    network[2].weight = network[1].weight
    return network


def between(*layers):
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2)), "0 cannot be halved: out_features is 7"),
        (lambda: between(nn.LayerNorm(4)), r"1 \(LayerNorm\) cannot be halved"),
        (lambda: between(nn.GroupNorm(2, 8, affine=False)), r"1 \(GroupNorm\) cannot be halved"),
        (lambda: between(nn.PReLU(8)), r"1 \(PReLU\) cannot be halved"),
        (lambda: between(nn.Conv2d(8, 8, 1, groups=1), nn.Conv3d(8, 8, 1)), r"2 \(Conv3d\) cannot be halved"),
        (lambda: nn.TransformerEncoderLayer(8, 3 - 1), r"self_attn \(MultiheadAttention\) cannot be halved"),
        (lambda: between(nn.BatchNorm2d(8, momentum=None)), "averages over all batches"),
        (lambda: between(nn.Softmax(1)), "mixes or reorders the channels"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.Linear(8, 2)), "normalises the network's data"),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.BatchNorm1d(2)), "normalises the network's output"),
        (lambda: nn.Sequential(nn.Conv2d(3, 9, 1, groups=3), nn.Conv2d(9, 2, 1)), "0 cannot be halved: groups is 3"),
        (Concatenating, "mixes or reorders the channels"),
        (Joining, "joins data and split"),
        (tied, r"2 \(Linear\) shares a parameter with 1"),
        (lambda: Reusing(True), "a is used more than once, at an end of the network and inside of it"),
        (lambda: Reusing(False), "b is used more than once"),
        (lambda: between(Standardised(8, 8, 3)), r"1 \(Standardised\) has a forward pass of its own"),
        (lambda: nn.Sequential(nn.Linear(4, 2)), "0 is both stem and head"),
        (lambda: nn.Sequential(nn.Flatten()), "allowed are names among none"),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Linear(8, 2)),
            "something else",
        ),
        (lambda: mixturize(Deep()), "mixture layers already"),
    ],
)
def test_what_cannot_be_halved_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        mixturize(make())


def test_bad_arguments():
    for options, message in (
        ({"banks": "all"}, "banks is 'all'"),
        ({"banks": [["9"]]}, "banks has .'9'., which names no layer"),
        ({"banks": [["1"], ["1", "2"]]}, "layers of another bank"),
        ({"banks": [["1", "4"]]}, "4 cannot be halved: bank has blocks"),
        ({"num_templates": 0}, "num_templates is 0"),
        ({"num_templates": {"0": 2}}, "num_templates names no number for 1"),
        ({"template_sets": (1, 0, 1, 0)}, "template_sets is"),
        ({"banks": "shape", "num_templates": {"2": 3, "*": 2}}, "num_templates is 3 for 2, and 2 for another layer of"),
        ({"input_shape": (5,)}, r"in mode 'member0' the network takes no input of shape \(2, 5\)"),
        ({"input_shape": (0,)}, "input_shape is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            mixturize(Deep(), **options)
    with pytest.raises(ValueError, match="has no mixture layers"):
        materialize(Deep())
    assert isinstance(materialize(MixtureConv2d(2, 2, 1)), nn.Conv2d)

"""PulseSGD: gradient descent where devices allow it, pulses where they do not, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import SynapseLinear
from lightning_weights.optimizers import PulseSGD

LINEAR = {"kind": "linear", "n_states": 64}


def network(**options):
    torch.manual_seed(0)
    options = {"device": LINEAR, "w_scale": 2.0, **options}
    return nn.Sequential(SynapseLinear(6, 8, **options), nn.Tanh(), SynapseLinear(8, 3, seed=1, **options))


def run(net, optimizer, steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=generator).to(net[0].weight)
        y = torch.randint(3, (8,), generator=generator)
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return {name: value.clone() for name, value in net.state_dict(keep_vars=False).items() if hasattr(value, "clone")}


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("options", [{}, {"mode": "single"}, {"mode": "bidirectional", "split": True}], ids=str)
def test_real_pulses_on_linear_devices_are_sgd(options):
    net = network(w_scale=6.0, **options).double()
    plain = nn.Sequential(net[0].plain(), nn.Tanh(), net[2].plain())
    refresh = "ideal" if not options else "never"
    ours = run(net, PulseSGD(net.parameters(), lr=0.05, rounding="none", max_pulses=1000, refresh=refresh), 20)
    theirs = run(plain, torch.optim.SGD(plain.parameters(), lr=0.05), 20)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-7, atol=1e-7)  # fp32 states, cast


def test_bidirectional_pulses_move_twice_as_far_as_those_that_are_split():
    moved = []
    for split in (False, True):
        net = network(mode="bidirectional", split=split)
        before = net[0].weight.detach().clone()
        run(net, PulseSGD(net.parameters(), lr=0.05, rounding="none", max_pulses=1000), 1)
        moved.append(net[0].weight.detach() - before)
    torch.testing.assert_close(moved[0], 2 * moved[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest", "sign"])
def test_pulses_are_whole(rounding):
    net = network()
    before = {name: value.clone() for name, value in net.named_buffers()}
    run(net, PulseSGD(net.parameters(), lr=0.4, rounding=rounding, refresh="never", max_pulses=3), 1)
    moved = torch.cat([(v - before[n]).flatten() * 64 for n, v in net.named_buffers() if n.endswith("us")])
    torch.testing.assert_close(moved, moved.round(), rtol=0, atol=1e-4)
    assert 0 < moved.max() <= (1 if rounding == "sign" else 3) + 1e-4
    assert moved.min() >= 0


@pytest.mark.parametrize("branch", ["ltp", "ltd"])
def test_devices_go_one_way_between_refreshes(branch):
    net = network(device={"kind": "soft", "n_states": 32}, branch=branch)
    optimizer = PulseSGD(net.parameters(), lr=0.5, refresh_every=4, refresh_threshold=0.5)
    sign, fell = 1 if branch == "ltp" else -1, 0
    for step in range(1, 13):
        before = [x.clone() for x in net[0].weight_devices.states]
        run(net, optimizer, 1, seed=step)
        changes = [sign * (new - old) for new, old in zip(net[0].weight_devices.states, before, strict=True)]
        if step % 4:
            assert all(bool((change >= 0).all()) for change in changes), step
        fell += any(bool((change < 0).any()) for change in changes)
    assert fell
    assert net[0].weight_devices.counts[2] > 0


@pytest.mark.parametrize("refresh", ["never", "ideal"])
def test_without_refresh_learning_stops_at_the_end_of_the_range(refresh):
    """The sum wants every weight to fall, and then to rise."""
    layer = SynapseLinear(6, 4, device={"kind": "linear", "n_states": 16}, w_scale=2.0)
    optimizer = PulseSGD(layer.parameters(), lr=0.3, refresh=refresh)
    for sign in (1, -1):
        for _ in range(30):
            optimizer.zero_grad()
            (sign * layer(torch.ones(1, 6)).sum()).backward()
            optimizer.step()
        plus, minus = layer.weight_devices.states
        if refresh == "never":
            assert (minus == 1).all()
            assert (layer.weight <= 0).all()
        else:
            assert torch.equal(layer.weight, torch.full((4, 6), -2.0 * sign))
    assert (plus == 1).all()


def test_pulsed_refresh_writes_whole_pulses():
    net = network(device=LINEAR, w_scale=1.0)
    net[0].program(weight=torch.full((8, 6), 0.8123))
    optimizer = PulseSGD(net.parameters(), lr=0.0, refresh="pulsed", refresh_threshold=0.9)
    run(net, optimizer, 1)
    torch.testing.assert_close(net[0].weight.detach(), torch.full((8, 6), 52 / 64))  # 0.8123 · 64 = 51.99
    assert net[0].weight_devices.counts.tolist() == [52 * 48, 0, 48, 0]


def test_no_rate_no_pulses():
    net = network()
    before = {name: value.clone() for name, value in net.named_buffers()}
    run(net, PulseSGD(net.parameters(), lr=0.0), 3)
    assert same(before, dict(net.named_buffers()))


def test_seed_place_and_step_decide_the_noise():
    results = [run(net, PulseSGD(net.parameters(), lr=0.1, seed=seed)) for seed in (0, 0, 1) for net in [network()]]
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_resuming_changes_no_bit():
    net = network(device={"kind": "soft", "c2c": 0.2, "d2d_states": 0.3})
    optimizer = PulseSGD(net.parameters(), lr=0.3, refresh_every=3, refresh_threshold=0.4)
    run(net, optimizer, 4)  # and two more to the next look for full pairs
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    straight = run(net, optimizer, 4, seed=9)
    again = network(device={"kind": "soft", "c2c": 0.2, "d2d_states": 0.3})
    fresh = PulseSGD(again.parameters(), lr=0.7)
    again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    assert same(straight, run(again, fresh, 4, seed=9))
    assert fresh.state_dict()["state"][0] == {"step": 8}
    assert again[0].weight_devices.counts[2] > saved[0]["0.weight_devices.counts"][2] > 0


def test_a_batch_that_is_programmed_at_once_takes_fewer_pulses_than_its_parts():
    """Gradients of samples that want opposite things cancel before they are rounded, not after."""
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    pulses = []
    for parts in (1, 8):
        net = network()
        optimizer = PulseSGD(net.parameters(), lr=0.05, refresh="never")
        for batch in torch.arange(8).chunk(parts):
            optimizer.zero_grad()
            for i in batch:  # accumulated
                nn.functional.cross_entropy(net(x[i]), y[i]).backward()
            optimizer.step()
        pulses.append(int(net[0].weight_devices.counts[0]))
    assert 0 < pulses[0] < 0.8 * pulses[1]


def test_other_parameters_are_digital():
    layer = nn.LayerNorm(4)
    twin = copy.deepcopy(layer)
    ours, theirs = PulseSGD(layer.parameters(), lr=0.3), torch.optim.SGD(twin.parameters(), lr=0.3)
    for module, optimizer in ((layer, ours), (twin, theirs)):
        for x in torch.arange(12.0).view(3, 1, 4):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    assert same(layer.state_dict(), twin.state_dict())


def test_groups_have_their_own_rates_and_schedulers_reach_them():
    net = network()
    optimizer = PulseSGD([{"params": net[0].parameters(), "lr": 0.0}, {"params": net[2].parameters()}], lr=0.2)
    before = net[0].weight.detach().clone()
    run(net, optimizer, 3)
    assert torch.equal(net[0].weight, before)
    assert net[2].weight_devices.counts[0] > 0
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    run(net, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1"),
        ({"rounding": "floor"}, "rounding is 'floor'"),
        ({"max_pulses": 0}, "max_pulses is 0"),
        ({"sign_threshold": -1.0}, "sign_threshold is -1.0"),
        ({"refresh": "often"}, "refresh is 'often'"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"refresh_threshold": 0.0}, "refresh_threshold is 0.0"),
        ({"refresh_threshold": 1.1}, "refresh_threshold is 1.1"),
        ({"refresh_low": 1.0}, "refresh_low is 1.0"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    net = network()
    with pytest.raises(ValueError, match=message):
        PulseSGD(net.parameters(), **arguments)
    optimizer = PulseSGD(net.parameters())
    optimizer.param_groups[0].update(arguments)
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        run(net, optimizer, 1)
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
def test_conductances_have_neither_momentum_nor_decay(name):
    with pytest.raises(TypeError, match=name):
        PulseSGD(network().parameters(), **{name: 0.1})
    with pytest.raises(ValueError, match=f"{name} is 0.1; conductances have none"):
        PulseSGD([{"params": network().parameters(), name: 0.1}])


def test_states_in_16_bits_sparse_gradients_and_integers_are_refused():
    net = network()
    optimizer = PulseSGD(net.parameters())
    net.bfloat16()
    x, message = torch.ones(2, 6, dtype=torch.bfloat16), r"bfloat16; allowed are float32 and float64.*bf16-mixed"
    with pytest.raises(ValueError, match=message):
        net(x)
    net.eval()(x).sum().backward()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        PulseSGD(embedding.parameters()).step()
    with pytest.raises(ValueError, match=r"torch\.int64"):
        PulseSGD([torch.zeros(2, dtype=torch.int64)])


def test_sharded_parameters_are_refused():
    class Sharded(nn.Parameter):
        placements = ()

    with pytest.raises(ShardedParameterError, match="use DDP"):
        PulseSGD([Sharded(torch.zeros(2))])

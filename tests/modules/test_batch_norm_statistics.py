"""Statistics of batch normalisation against torch's own routine and against plain means."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_weights.modules import reestimate_batch_norm


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(dropout), nn.ReLU(), nn.Linear(4, 2))


def batches(count=3, size=5):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 3, generator=generator) + 2, torch.zeros(size)) for _ in range(count)]


def statistics(net):
    return {name: value.clone() for name, value in net.state_dict().items() if "running" in name or "num" in name}


def test_without_dropout_it_is_what_torch_does():
    ours, theirs = network(), network()
    assert reestimate_batch_norm(ours, batches()) == 3
    update_bn(batches(), theirs)
    torch.testing.assert_close(statistics(ours), statistics(theirs))
    assert not torch.equal(ours[1].running_mean, torch.zeros(4))


def test_the_mean_is_that_of_the_inputs_and_old_statistics_do_not_count():
    net, data = network(), batches()
    net[1].running_mean.fill_(100.0)
    reestimate_batch_norm(net, data)
    inputs = net[0](torch.cat([x for x, _ in data]))
    torch.testing.assert_close(net[1].running_mean, inputs.mean(0))


def test_dropout_is_off_and_no_random_number_is_drawn():
    net, state = network(dropout=0.9), torch.get_rng_state()
    net.append(nn.BatchNorm1d(2))
    plain = network()
    plain.append(nn.BatchNorm1d(2))
    state = torch.get_rng_state()
    for part in (net, plain):
        reestimate_batch_norm(part, batches())
    assert torch.equal(net[5].running_mean, plain[5].running_mean)
    assert torch.equal(state, torch.get_rng_state())


def test_flags_momenta_and_weights_are_given_back():
    net = network().train()
    net[1].eval()
    net[1].momentum = 0.3
    weights = [param.clone() for param in net.parameters()]
    reestimate_batch_norm(net, batches())
    assert [part.training for part in net] == [True, False, True, True, True]
    assert net[1].momentum == 0.3
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert all(param.grad is None for param in net.parameters())


def test_flags_are_given_back_after_an_error():
    net = network().train()
    with pytest.raises(ValueError, match="can't be called with a calibration batch"):
        reestimate_batch_norm(net, [{"pixels": torch.ones(2, 3)}])
    assert net[1].training
    assert net[1].momentum == 0.1


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, scale=1.0):
        return self.net(scale * x)


def test_batches_may_be_mappings_bare_tensors_or_run_by_the_caller():
    ways = [
        (Named(), [{"x": x} for x, _ in batches()], None),
        (Named(), [x for x, _ in batches()], None),
        (Named(), batches(), lambda module: lambda batch: module(batch[0])),
    ]
    found = []
    for module, data, step in ways:
        reestimate_batch_norm(module, data, step=None if step is None else step(module))
        found.append(statistics(module))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_layers_that_no_batch_reaches_keep_their_statistics():
    """A second network inside the module, in whichever mode, and all layers if the first batch already fails."""
    module = nn.Module()
    module.student, module.teacher = network(), network().eval()
    module.forward = module.student.forward
    with torch.no_grad():
        for part in (module.student[1], module.teacher[1]):
            part.running_mean.fill_(7.0), part.running_var.fill_(3.0), part.num_batches_tracked.fill_(11)
    before = statistics(module)
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(module, [(torch.ones(2, 9),)])
    torch.testing.assert_close(statistics(module), before)
    assert reestimate_batch_norm(module, batches()) == 3
    after = statistics(module)
    for name, value in before.items():
        assert torch.equal(after[name], value) == name.startswith("teacher"), name


def test_max_batches_stops_an_endless_loader():
    def endless():
        while True:
            yield from batches()

    net, same = network(), network()
    assert reestimate_batch_norm(net, endless(), max_batches=2) == 2
    reestimate_batch_norm(same, batches()[:2])
    torch.testing.assert_close(statistics(net), statistics(same))
    with pytest.raises(ValueError, match="max_batches is 0"):
        reestimate_batch_norm(net, [], max_batches=0)


def test_nothing_happens_without_norms_or_batches():
    assert reestimate_batch_norm(nn.Linear(3, 2), iter([None])) == 0
    net = network()
    net[1].running_mean.fill_(7.0)
    assert reestimate_batch_norm(net, []) == 0
    assert torch.equal(net[1].running_mean, torch.full((4,), 7.0))
    assert reestimate_batch_norm(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), batches()) == 0

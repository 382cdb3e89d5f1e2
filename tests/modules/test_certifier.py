"""The certifier: where ε is, and that it leaves no trace in a module."""

import copy

import pytest
import torch

from lightning_weights.metrics import VerifiedError
from lightning_weights.modules import MLP, CertifiedLoss, Certifier, EpsilonSchedule, InputBox


def certifier(**schedule):
    options = {"max_eps": 0.1, "start_epoch": 1, "ramp_epochs": 2, "kind": "linear", **schedule}
    return Certifier(CertifiedLoss(), EpsilonSchedule(**options), InputBox())


def batch():
    torch.manual_seed(0)
    return MLP(4, (8,), 3), torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def test_radius_follows_the_schedule_in_one_tensor():
    own = certifier()
    tensor = own.eps
    assert own.at_max_eps
    assert tensor.item() == pytest.approx(0.1)
    seen = []
    for step in range(6):
        own.advance(step, steps_per_epoch=2)
        seen.append((own.eps.item(), own.at_max_eps))
    assert own.eps is tensor
    assert [eps for eps, _ in seen] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1])
    assert [end for _, end in seen] == [False] * 4 + [True] * 2


def test_loss_is_the_criterion_at_this_radius():
    own, (net, x, y) = certifier(), batch()
    own.advance(1, 2)
    loss = own.loss(net, x, y)
    expected = CertifiedLoss()(net, x, y, own.eps, 0.1)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(own.last.tightness, expected.tightness)
    assert loss.requires_grad
    assert not any(part.requires_grad for part in own.last)


def test_margins_are_at_the_end_of_the_ramp_unless_asked_otherwise():
    own, (net, x, y) = certifier(), batch()
    own.advance(0, 2)
    wide, narrow, half = (own.margins(net, x, y, eps) for eps in (None, 0.0, 0.05))
    assert torch.equal(wide, CertifiedLoss().margins(net, x, y, 0.1))
    assert (wide <= half).all()
    assert (half <= narrow).all()
    logits = net(x)
    torch.testing.assert_close(narrow[0], logits[0, 0] - logits[0, 1:])
    error = VerifiedError()
    error.update(wide)
    assert 0 <= error.compute() <= 1


def test_it_leaves_nothing_in_a_state_dict_and_survives_copies():
    own, (net, x, y) = certifier(), batch()
    own.advance(3, 2)
    own.loss(net, x, y)
    assert not own.state_dict()
    assert not list(own.parameters())
    twin = copy.deepcopy(own)
    assert (
        twin.progress()
        == own.progress()
        == {
            "schedule": {
                "max_eps": 0.1,
                "kind": "linear",
                "start_epoch": 1,
                "ramp_epochs": 2,
                "mid": 0.25,
                "beta": 4.0,
            },
            "step": 3,
            "steps_per_epoch": 2,
        }
    )
    fresh = certifier()
    fresh.resume(own.progress())
    assert torch.equal(fresh.eps, own.eps)
    fresh.resume(certifier().progress())  # of a run that never began
    assert fresh.step == 3


def test_progress_of_another_schedule_is_refused():
    own = certifier()
    own.advance(1, 2)
    saved = certifier(max_eps=0.2).progress() | {"step": 3, "steps_per_epoch": 2}
    with pytest.raises(ValueError, match=r"schedule of the resumed run differs: max_eps was 0.2, is 0.1"):
        own.resume(saved)
    assert own.step == 1


def test_a_radius_in_other_units_is_noticed():
    with pytest.raises(ValueError, match=r"max_eps is 8.0, more than the whole range .* did you mean 8/255\?"):
        certifier(max_eps=8.0)
    with pytest.raises(ValueError, match="steps_per_epoch is 0"):
        certifier().advance(0, 0)

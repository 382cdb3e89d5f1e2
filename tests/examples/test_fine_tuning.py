"""The task that the examples of fine-tuning share, and its peers."""

from functools import partial

import pytest
import torch
from _fine_tuning import LAYERS, PEERS, Turned, Upright, accuracy, fine_tune, pretrained, state_bytes, with_peft

from lightning_weights.data import Digits


def test_digits_are_turned_and_no_image_is_used_twice() -> None:
    (upright, upright_y, test, test_y), (turned, _, turned_test, turned_y) = (
        data(seed=3).tensors() for data in (Upright, Turned)
    )
    back = turned.reshape(-1, 8, 8).rot90(-1, dims=(1, 2)).reshape(-1, 64)
    assert torch.equal(turned_test[0].reshape(8, 8).rot90(-1), test[0].reshape(8, 8))
    assert torch.equal(test_y, turned_y)
    assert torch.cdist(back, upright).min() > 0.1
    assert len(upright) == len(upright_y) == 900


def test_pixels_are_standardised_by_those_of_the_first_task() -> None:
    (upright, _, test, _), (raw, _, raw_test, _) = (data(seed=3).tensors() for data in (Upright, Digits))
    mean, deviation = raw[:900].mean(), raw[:900].std()
    torch.testing.assert_close(torch.std_mean(upright), (torch.tensor(1.0), torch.tensor(0.0)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(test * deviation + mean, raw_test)


def test_pretraining_is_the_seeds_and_moves_no_generator() -> None:
    state = torch.get_rng_state()
    network = pretrained(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert accuracy(network, Upright(seed=0)) > 90 > 40 > accuracy(network, Turned(seed=0))
    with torch.no_grad():
        network.head.weight.zero_()
    assert pretrained(0).head.weight.any(), "a copy is given out"


@pytest.mark.parametrize("peer", PEERS)
def test_peers_train_only_adapters_and_start_as_the_network(peer: str) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    plain, x = pretrained(0), torch.rand(4, 64)
    adapted = with_peft(pretrained(0), peer, r=4)
    torch.testing.assert_close(adapted(x), plain(x), rtol=1e-4, atol=1e-4)
    trained = [name for name, param in adapted.named_parameters() if param.requires_grad]
    assert trained
    assert all(any(f"{layer}." in name for layer in LAYERS) for name in trained)


def test_a_run_counts_what_it_trains_and_keeps() -> None:
    torch.manual_seed(0)
    network = pretrained(0)
    before = network.head.weight.detach().clone()
    metrics = fine_tune(network, partial(torch.optim.AdamW, lr=1e-2), seed=0, steps=3)
    assert metrics["trained"] == sum(param.numel() for param in network.parameters())
    assert metrics["state_bytes"] == 2 * 4 * metrics["trained"]
    assert not torch.equal(before, network.head.weight)
    assert 0 <= metrics["accuracy"] <= 100


def test_state_bytes_leave_counters_out() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 60

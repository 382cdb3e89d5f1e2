"""Recordings of small networks, and the comparison of a bank with rules made by hand."""

import math

import know_bank
import pytest
import torch
from _trajectories import CLASSES, SESSIONS, Architecture, draw, inputs_and_labels, record

from lightning_weights.functional.weight_extrapolation import fit_coefficients
from lightning_weights.modules import KNOWN, KNOWNBank, LinearExtrapolation, write_snapshot

DATA = ("digits", "noisy digits", "cancer", "generated")  # mnist1d takes seconds to make
NETWORKS = (Architecture((6, 5)), Architecture((3, 4, 5), 6))


@pytest.mark.parametrize("data", DATA)
def test_every_architecture_classifies_every_data_set(data):
    x, y = inputs_and_labels(data)
    for architecture in NETWORKS:
        assert architecture.network(data)(x[:2]).shape == (2, CLASSES)
    assert len(x) == len(y)
    assert 0 <= y.min() <= y.max() < CLASSES


def test_wrong_labels_are_always_the_same_and_not_too_many():
    right, wrong = inputs_and_labels("digits")[1], inputs_and_labels("noisy digits")[1]
    assert torch.equal(wrong, inputs_and_labels("noisy digits")[1])
    assert 0.2 < (right != wrong).float().mean() < 0.3


def test_drawn_numbers_leave_a_batch_in_the_last_session():
    for seed in range(200):
        numbers = draw(1500, seed)
        smallest = math.floor(1500 * numbers["rate"] ** (SESSIONS - 1))
        assert 0.3 < numbers["rate"] < 0.9
        assert 8 <= numbers["batch_size"] <= min(128, smallest)
        assert smallest >= CLASSES
        assert 1e-5 <= numbers["lr"] <= 4e-3
        assert 1 <= numbers["epochs"] <= 8


def test_a_recording_has_a_snapshot_of_every_session():
    x, y = inputs_and_labels("digits")
    network = NETWORKS[0].network("digits")
    found = record(network, (x[:64], y[:64]), rate=0.5, lr=1e-3, batch_size=8, epochs=1, sessions=3).snapshots
    assert [snapshot.samples for snapshot in found] == [16, 32, 64]
    assert not torch.equal(found[0]["network.head.weight"], found[-1]["network.head.weight"])


@pytest.fixture
def recordings(tmp_path):
    """Return folders to learn from and to test on, whose weights go on in a line, apart from noise."""
    learn, test = [], {}
    for run in range(4):
        generator = torch.Generator().manual_seed(run)
        start, slope = torch.rand(2, 6, 3, generator=generator)
        for session in range(SESSIONS):
            noise = 0.01 * torch.randn(6, 3, generator=generator)
            tensors = {"conv.weight": (start - session * slope + noise)[None], "conv.bias": start[0] - session}
            tensors["fc.weight"] = start + session * slope + noise
            about = {"sessions": SESSIONS, "rate": 0.5, "subset_seed": 0}
            write_snapshot(tmp_path / str(run), tensors, session=session, samples=700 >> session, **about)
        if run < 2:
            learn.append(tmp_path / str(run))
        else:
            test["known data" if run == 2 else "new data", 0] = [tmp_path / str(run)]
    return learn, test


def test_the_script_writes_a_bank_that_says_how_it_was_made(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(know_bank, "record_all", lambda out: recordings)
    monkeypatch.setattr("sys.argv", ["know_bank.py", "--steps", "3", "--out", str(tmp_path)])
    know_bank.main()
    bank = KNOWNBank.from_pretrained(str(tmp_path / "bank.safetensors"))
    assert [numbers["steps"] for numbers in bank.about["meta-training"].values()] == [3, 3, 3]
    assert bank.about["recordings"] == 2
    torch.manual_seed(know_bank.META_SEED)
    assert not torch.equal(bank.fc.packed(), KNOWN().packed())


def test_a_bank_of_lines_has_the_error_of_the_line(recordings):
    line = LinearExtrapolation(fit_coefficients(5, points=2))
    results, notes = know_bank.compare(KNOWNBank(line, line, line), *recordings)
    for metric in results.runs[0].metrics:
        ours, linear, nothing = (results.estimate(metric, name).mean for name in ("KNOWN", "linear", "no change"))
        assert ours == pytest.approx(linear, abs=1e-3)
        assert ours < 0.2 * nothing
    assert len(results.runs[0].metrics) == len(notes) == 6
    assert "fc, new data: the error of KNOWN is 1.000 times that of linear" in notes[3]

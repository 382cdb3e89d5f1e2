"""KNOW against the published network with random weights, and with the published ones for whoever has their files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_weights.modules import KNOWN, KNOWNBank, predict_overflowed
from tests.helpers.golden import load
from tests.helpers.keras_files import write_dense_layers

GOLDEN = load("know")


def names_after(prefix):
    return sorted(name.removeprefix(prefix) for name in GOLDEN if name.startswith(prefix))


KINDS, NUMBERS = names_after("traj_"), names_after("rand_kernel_")
HISTORY = GOLDEN[f"traj_{KINDS[0]}"].shape[-1]
LAYERS = [(GOLDEN[f"rand_kernel_{number}"], GOLDEN[f"rand_bias_{number}"]) for number in NUMBERS]
NAMES = {"conv": "conv.weight", "fc": "fc.weight", "bias": "fc.bias"}
FIRST, LATER = 2e-6, 1e-5
PUBLISHED = "LIGHTNING_WEIGHTS_KNOWN_H5"  # folder with the authors' KNOWN_Conv.h5, KNOWN_FC.h5 and KNOWN_Bias.h5


def snapshots():
    """Return the histories as snapshots of one network."""
    return [
        {NAMES[kind]: torch.tensor(GOLDEN[f"traj_{kind}"][..., place]) for kind in KINDS} for place in range(HISTORY)
    ]


def recursions(source, kind):
    return len(names_after(f"{source}_{kind}_r"))


def assert_predicts(bank, source):
    for kind in KINDS:
        for number in range(recursions(source, kind)):
            predicted = predict_overflowed(snapshots(), bank, recursions=number + 1)[NAMES[kind]]
            wanted = GOLDEN[f"{source}_{kind}_r{number}"]
            assert predicted.shape == wanted.shape
            tolerance = LATER if number else FIRST
            np.testing.assert_allclose(predicted.numpy(), wanted, rtol=0, atol=tolerance, err_msg=f"{kind} {number}")


def packed():
    return torch.cat([torch.tensor(part).flatten() for kernel, bias in LAYERS for part in (kernel.T.copy(), bias)])


def test_random_hyper_models_predict_what_the_published_code_does():
    assert sorted(KINDS) == ["bias", "conv", "fc"]
    assert all(recursions("rand", kind) >= 1 for kind in KINDS)
    known = KNOWN.from_packed(packed())
    assert known.history == HISTORY
    assert_predicts(KNOWNBank(conv=known, fc=known, bias=known), "rand")


def test_files_of_keras_predict_the_same(tmp_path):
    path = write_dense_layers(tmp_path / "known.h5", LAYERS)
    assert_predicts(KNOWNBank.from_keras_h5(conv=path, fc=path, bias=path), "rand")


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_is_the_one_that_is_differentiated(kind):
    """`forward` is a formula of its own, beside the operator."""
    rows = torch.tensor(GOLDEN[f"traj_{kind}"]).reshape(-1, HISTORY)
    predicted = rows[:, -1] + KNOWN.from_packed(packed())(rows)
    np.testing.assert_allclose(predicted.detach().numpy(), GOLDEN[f"rand_{kind}_r0"].ravel(), rtol=0, atol=FIRST)


def test_published_hyper_models():
    """Whoever has the authors' files compares predictions; everybody that recorded steps are possible ones."""
    folder = os.environ.get(PUBLISHED)
    if folder:
        files = {
            kind: Path(folder) / f"KNOWN_{name}.h5" for kind, name in zip(NAMES, ("Conv", "FC", "Bias"), strict=True)
        }
        assert_predicts(KNOWNBank.from_keras_h5(**files), "official")
    for kind in KINDS:
        before = GOLDEN[f"traj_{kind}"][..., -1]
        for number in range(recursions("official", kind)):
            after = GOLDEN[f"official_{kind}_r{number}"]
            assert after.shape == before.shape
            assert 0 < np.abs(after - before).max() < 1
            before = after


def test_every_vector_is_used():
    used = {f"rand_{part}_{number}" for part in ("kernel", "bias") for number in NUMBERS}
    used |= {f"traj_{kind}" for kind in KINDS}
    for source in ("rand", "official"):
        used |= {f"{source}_{kind}_r{number}" for kind in KINDS for number in range(recursions(source, kind))}
    assert used == set(GOLDEN)

"""Electronic synapses against NeuroSim's curves, and against the closed forms in double precision."""

import numpy as np
import pytest
import torch

from lightning_weights.kernels.pulse_update import (
    PulseRule,
    Response,
    pulse_update,
    pulse_update_reference,
    pulses_to_reach,
    rise,
)
from lightning_weights.modules import DeviceModel
from tests.helpers import golden

VECTORS = golden.load("hw_synapse")
KINDS = golden.cases(VECTORS, "eq_", "_curve_nu0")
NUS = VECTORS["eq_nu"]
STATES = float(VECTORS["eq_n_states"])


def tensor(name, dtype=torch.float64):
    return torch.tensor(VECTORS[name], dtype=dtype)  # a copy, since operators write in place


def test_the_curves_are_neurosims():
    """Its weight w' in [-1, 1] is 2x - 1, and its A is N/ν."""
    levels = int(VECTORS["ns_max_level"])
    pulses = torch.arange(levels + 1, dtype=torch.float64)
    for a, b, curve in zip(VECTORS["ns_A"], VECTORS["ns_B"], VECTORS["ns_curve_weight"], strict=True):
        nu = levels / float(a)
        states = rise(torch.zeros_like(pulses), pulses, "soft", nu, levels)
        np.testing.assert_allclose(2 * states.numpy() - 1, curve, rtol=0, atol=1e-9)
        assert 2 / (1 - np.exp(-nu)) == pytest.approx(float(b), rel=1e-6)  # NeuroSim's B is 2K


def test_pulses_are_found_back_from_neurosims_curves():
    levels = int(VECTORS["ns_max_level"])
    rows = zip(VECTORS["ns_A"], VECTORS["ns_curve_weight"], VECTORS["ns_inverse"], strict=True)
    for a, curve, inverse in rows:
        states = torch.from_numpy((curve[: len(inverse)] + 1) / 2)
        found = pulses_to_reach(states, "soft", levels / float(a), levels)
        np.testing.assert_allclose(found.numpy(), inverse, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("i", range(len(NUS)))
def test_responses(kind, i):
    device = DeviceModel(kind=kind, n_states=int(STATES), nu_ltp=float(NUS[i]))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x, pulses = tensor("eq_x0", dtype), tensor("eq_pulses", dtype)
        for way in ("ltp", "ltd"):
            found = device.pulse(x, pulses, up=way == "ltp")
            want = tensor(f"eq_{kind}_{way}_nu{i}", dtype)
            torch.testing.assert_close(found, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("i", range(len(NUS)))
def test_curves_of_single_pulses(kind, i):
    curve = tensor(f"eq_{kind}_curve_nu{i}")
    device = DeviceModel(kind=kind, n_states=len(curve) - 1, nu_ltp=float(NUS[i]))
    x, found = torch.zeros((), dtype=torch.float64), []
    for _ in curve:
        found.append(x)
        x = device.pulse(x, 1)
    torch.testing.assert_close(torch.stack(found), curve, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("step", [pulse_update, pulse_update_reference])
def test_unidirectional_pairs_with_refresh(step, dtype, tolerance):
    nu, states, high = (float(number) for number in VECTORS["eq_pair_hparams"])
    largest = int(abs(VECTORS["eq_pair_pulses"]).max())
    kinds = {"response": Response("soft", nu, nu, states), "mode": "rising", "gain": 1.0, "w_scale": 1.0}
    kinds["rule"] = PulseRule("nearest", largest, refresh="ideal", high=high)
    pair = [tensor("eq_pair_xp0", dtype), tensor("eq_pair_xm0", dtype)]
    weight, total = pair[0] - pair[1], 0
    rows = (tensor("eq_pair_pulses", dtype), tensor("eq_pair_xp", dtype), tensor("eq_pair_xm", dtype))
    for pulses, plus, minus, flags in zip(*rows, VECTORS["eq_pair_refreshed"], strict=True):
        counts = torch.zeros(4, dtype=torch.int64)
        if step is pulse_update:
            step(weight, pulses, pair, counts, **kinds)
        else:
            weight, pair, counts = step(pulses, pair, **kinds)
        torch.testing.assert_close(pair[0], plus, rtol=0, atol=tolerance)
        torch.testing.assert_close(pair[1], minus, rtol=0, atol=tolerance)
        torch.testing.assert_close(weight, pair[0] - pair[1], rtol=0, atol=tolerance)
        assert counts.tolist() == [int(pulses.abs().sum()), 0, int(flags.sum()), int((pulses != 0).sum())]
        total += int(flags.sum())
    assert total > 0

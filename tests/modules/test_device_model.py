"""DeviceModel: closed forms, presets, fits, tables and what it refuses."""

import copy
import dataclasses

import pytest
import torch

from lightning_weights.modules import DeviceModel

X = torch.linspace(0, 1, 11, dtype=torch.float64)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("n,ltp,ltd\n0,1.0,3.0\n1,2.0,1.5\n4,3.0,1.0\n")
    return str(path)


@pytest.mark.parametrize("kind", ["linear", "soft", "exp"])
def test_depression_is_potentiation_mirrored(kind):
    device = DeviceModel(kind=kind, nu_ltp=3.0)
    torch.testing.assert_close(device.pulse(X, 5, up=False), 1 - device.pulse(1 - X, 5))
    other = DeviceModel(kind=kind, nu_ltp=3.0, nu_ltd=0.5)
    assert torch.equal(other.pulse(X, 5, up=False), device.pulse(X, 5, up=False)) == (kind == "linear")


def test_a_round_trip_comes_back_on_linear_devices_only():
    for kind, same in (("linear", True), ("soft", False), ("exp", False)):
        device = DeviceModel(kind=kind)
        back = device.pulse(device.pulse(X[3:8], 6), 6, up=False)
        assert torch.allclose(back, X[3:8], atol=1e-9) == same


def test_tables_follow_the_measured_points(table):
    device = DeviceModel(kind="table", table=table)
    start = torch.zeros(3, dtype=torch.float64)
    points = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(device.pulse(start, points), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(
        device.pulse(start + 1, points, up=False), torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    )
    assert device.pulses == 4
    assert device.response().n_states == 4
    two_steps = device.pulse(device.pulse(X, 1.3), 0.9)
    torch.testing.assert_close(two_steps, device.pulse(X, 2.2), rtol=0, atol=1e-12)


def test_a_table_is_read_once(tmp_path):
    """A file that is measured anew is another device, and one that goes away changes none."""
    path = tmp_path / "curve.csv"
    devices = []
    for middle in (2.0, 2.5):
        path.write_text(f"n,ltp,ltd\n0,1.0,3.0\n1,{middle},1.5\n4,3.0,1.0\n")
        devices.append(DeviceModel(kind="table", table=str(path)))
    path.unlink()
    rises = [device.pulse(torch.zeros(1), 1.0).item() for device in (*devices, copy.deepcopy(devices[1]))]
    assert rises == [0.5, 0.75, 0.75]
    assert devices[0].differences(devices[1].as_dict()) == ["table"]


def test_fit_takes_both_curves():
    made = DeviceModel(kind="soft", n_states=50, nu_ltp=2.5, nu_ltd=4.0, g_min=2.0, g_max=12.0)
    n = torch.arange(51, dtype=torch.float64)
    up = 2.0 + 10.0 * made.pulse(torch.zeros_like(n), n)
    down = 2.0 + 10.0 * made.pulse(torch.ones_like(n), n, up=False)
    fitted = DeviceModel.fit(n, up, down)
    assert dataclasses.astuple(fitted)[1:6] == pytest.approx((50, 2.5, 4.0, 2.0, 12.0), rel=1e-5)
    assert DeviceModel.fit(n, up).nu_ltd is None
    with pytest.raises(ValueError, match=r"g_ltd goes from 2 to 12; this curve falls"):
        DeviceModel.fit(n, up, up)


def test_presets():
    assert DeviceModel.preset("ideal") == DeviceModel(kind="linear", n_states=1000)
    neurosim = DeviceModel.preset("neurosim")
    assert (neurosim.n_states, neurosim.c2c) == (32, 0.003)
    assert neurosim.nu_ltp == pytest.approx(32 / 22.466592, abs=1e-3)  # A of the label 1.75
    with pytest.raises(ValueError, match="name is 'pcm'"):
        DeviceModel.preset("pcm")


def test_mappings_and_differences(table):
    device = DeviceModel.of({"kind": "exp", "n_states": 8})
    assert device == DeviceModel(kind="exp", n_states=8)
    assert DeviceModel.of(device) is device
    assert DeviceModel.of(None) == DeviceModel()
    assert device.differences(DeviceModel().as_dict()) == ["kind is 'exp', was 'soft'", "n_states is 8, was 64"]
    measured = DeviceModel(kind="table", table=table)
    assert measured.differences(measured.as_dict()) == []
    assert "table" in measured.differences(DeviceModel().as_dict())
    with pytest.raises(ValueError, match="device is 'soft'"):
        DeviceModel.of("soft")
    with pytest.raises(ValueError, match="device has nu, states; allowed are kind, n_states, nu_ltp"):
        DeviceModel.of({"states": 8, "nu": 2.0})
    with pytest.raises(ValueError, match="k is -1; allowed are numbers of pulses from 0"):
        device.pulse(X, -1)


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("kind", ["linear", "soft", "exp"])
def test_nearest_states_are_those_of_whole_pulses(kind, up):
    device = DeviceModel(kind=kind, n_states=8, nu_ltp=3.0)
    pulses = torch.arange(9, dtype=torch.float64)
    reached = device.pulse(torch.full_like(pulses, 0.0 if up else 1.0), pulses, up)
    torch.testing.assert_close(device.nearest(reached, up), reached, rtol=0, atol=1e-12)
    found = device.nearest(X, up)
    assert ((found[:, None] - reached).abs().min(1).values < 1e-12).all()
    assert ((found - X).abs() <= (reached.diff().abs().max())).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"discrete": "often"}, "discrete is 'often'"),
        ({"nu_ltp": -1.0}, "nu_ltp is -1.0"),
        ({"nu_ltd": -0.1}, "nu_ltd is -0.1"),
        ({"n_states": 0}, "n_states is 0"),
        ({"n_states": 2.5}, "n_states is 2.5"),
        ({"g_min": 1.0, "g_max": 1.0}, "g_max is 1.0"),
        ({"g_min": 0.0}, "g_min is 0.0"),
        ({"kind": "cubic"}, "kind is 'cubic'"),
        ({"stuck": 1.0}, "stuck is 1.0"),
        ({"c2c": -1.0}, "c2c is -1.0"),
        ({"kind": "linear", "d2d_nu": 0.1}, "d2d_nu is 0.1"),
        ({"kind": "table"}, "table is None"),
        ({"table": "curve.csv"}, "table is 'curve.csv'"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeviceModel(**arguments)

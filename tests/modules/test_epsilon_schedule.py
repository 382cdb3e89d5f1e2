"""The schedule against the vectors of the author's code, against its equation, and as a property."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.modules import EpsilonSchedule
from tests.helpers.golden import load

GOLDEN = load("ibp_warmup")
KINDS = ("smoothed", "linear", "fixed")


def schedules():
    ramps = {"start_epoch": st.integers(1, 4), "ramp_epochs": st.integers(1, 6)}
    shape = {"mid": st.floats(0, 1), "beta": st.floats(2, 6), "kind": st.sampled_from(KINDS)}
    return st.builds(EpsilonSchedule, st.floats(1e-3, 1), **ramps, **shape)


def test_smoothed_is_the_published_schedule():
    epoch, expected = int(GOLDEN["hp.epoch_len"]), GOLDEN["sched_eps"]
    start, length = int(GOLDEN["hp.sched_start"]), int(GOLDEN["hp.sched_length"])
    schedule = EpsilonSchedule(float(GOLDEN["hp.max_eps"]), start_epoch=start, ramp_epochs=length)
    found = [schedule(step, epoch) for step in range(len(expected))]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


@given(schedules(), st.integers(1, 9))
def test_grows_from_zero_to_its_end(schedule, steps_per_epoch):
    first = (schedule.start_epoch - 1) * steps_per_epoch
    last = (schedule.start_epoch - 1 + schedule.ramp_epochs) * steps_per_epoch
    values = [schedule(step, steps_per_epoch) for step in range(last + 3)]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert values[last:] == [schedule.max_eps] * 3
    if schedule.kind == "fixed":
        assert set(values) == {schedule.max_eps}
        assert schedule.full_epoch == 0
    else:
        assert values[: first + 1] == [0.0] * (first + 1)
        assert all(value > 0 for value in values[first + 1 :])
        assert schedule.full_epoch * steps_per_epoch == last


@given(st.integers(1, 50), st.floats(0.1, 0.9), st.floats(2, 6))
def test_value_and_slope_are_continuous_where_power_meets_line(epochs, mid, beta):
    schedule = EpsilonSchedule(1.0, start_epoch=1, ramp_epochs=epochs, mid=mid, beta=beta)
    steps = 1000  # of an epoch: small steps, so that slopes are differences
    middle = int(mid * epochs * steps)
    before, at, after = (schedule(middle + move, steps) for move in (-1, 0, 1))
    assert after - at == pytest.approx(at - before, rel=2 * beta / middle)


def test_linear_is_a_line():
    schedule = EpsilonSchedule(0.4, kind="linear", start_epoch=3, ramp_epochs=2)
    assert [schedule(step, 5) for step in range(10, 21)] == pytest.approx(np.linspace(0, 0.4, 11))


def test_settings_rebuild_it_and_copies_are_equal():
    schedule = EpsilonSchedule(0.3, kind="smoothed", start_epoch=3, ramp_epochs=7, mid=0.5, beta=3)
    for twin in (EpsilonSchedule(**schedule.settings()), copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert twin.settings() == schedule.settings()
        assert [twin(step, 3) for step in range(40)] == [schedule(step, 3) for step in range(40)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_eps": 0.0}, "max_eps is 0.0"),
        ({"max_eps": -0.1}, "max_eps is -0.1"),
        ({"max_eps": float("nan")}, "max_eps is nan"),
        ({"kind": "cosine"}, "kind is 'cosine'; allowed are 'smoothed', 'linear', 'fixed'"),
        ({"start_epoch": 0}, "start_epoch is 0"),
        ({"ramp_epochs": 0}, "ramp_epochs is 0"),
        ({"ramp_epochs": 2.5}, "ramp_epochs is 2.5"),
        ({"mid": 1.5}, "mid is 1.5; allowed is a share"),
        ({"mid": -0.1}, "mid is -0.1"),
        ({"beta": 1.0}, "beta is 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpsilonSchedule(**{"max_eps": 0.1, **arguments})


def test_a_step_that_is_none_is_named():
    with pytest.raises(ValueError, match="step is -1"):
        EpsilonSchedule(0.1)(-1, 5)
    with pytest.raises(ValueError, match="steps_per_epoch is 0"):
        EpsilonSchedule(0.1)(3, 0)

"""The pulse update on the CPU: closed forms, an oracle, and what has to hold whatever the numbers are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.pulse_update import (
    DeviceMaps,
    PulseRule,
    Response,
    eager,
    pulse_update,
    pulse_update_reference,
    pulses_to_reach,
    rise,
)
from lightning_weights.kernels.pulse_update.noise import UPDATE, normal_pair, uniform
from lightning_weights.kernels.pulse_update.reference import pulse_counts
from tests.kernels.buffers import SHAPES, guarded
from tests.kernels.pulse_update_cases import (
    CASES,
    GAIN,
    ORACLE_CASES,
    W_SCALE,
    arguments,
    case_id,
    oracle,
    take,
    tensors,
    varied,
)

TABLE = torch.tensor([[0.0, 1.0, 3.0, 6.0], [0.0, 0.4, 0.7, 1.0], [0.0, 0.5, 0.9, 1.0]], dtype=torch.float64)
KINDS = ("linear", "soft", "exp", "table")
states_of_devices = st.floats(0.0, 1.0)
numbers_of_pulses = st.floats(0.0, 40.0)
nonlinearities = st.sampled_from([0.0, 1e-4, 0.7, 2.0, 8.0])
every_kind = pytest.mark.parametrize("kind", KINDS)


def risen(kind, x, k, nu, n_states=32.0):
    table = TABLE[:2] if kind == "table" else None
    return rise(torch.tensor([x], dtype=torch.float64), k, kind, nu, n_states, table)


@every_kind
@given(x=states_of_devices, first=numbers_of_pulses, second=numbers_of_pulses, nu=nonlinearities)
def test_pulses_add_up(kind, x, first, second, nu):
    together = risen(kind, x, first + second, nu)
    one_by_one = risen(kind, risen(kind, x, first, nu).item(), second, nu)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-12)


@every_kind
@given(x=states_of_devices, k=numbers_of_pulses, nu=nonlinearities)
def test_pulses_only_raise_and_stay_inside(kind, x, k, nu):
    moved = risen(kind, x, k, nu).item()
    assert 0.0 <= x <= moved + 1e-15
    assert moved <= 1.0
    assert risen(kind, x, 0.0, nu).item() == pytest.approx(x, abs=1e-15)
    if k > 1e-3 and x < 0.99:
        assert moved > x


@every_kind
@pytest.mark.parametrize("nu", [0.0, 0.5, 4.0])
def test_as_many_pulses_as_states_cross_the_range(kind, nu):
    states = 6.0 if kind == "table" else 32.0
    assert risen(kind, 0.0, states, nu).item() == pytest.approx(1.0, abs=1e-12)
    assert risen(kind, 0.0, states - 0.5, nu).item() < 1.0
    x = torch.linspace(0, 1, 9, dtype=torch.float64)
    table = TABLE[:2] if kind == "table" else None
    pulses = pulses_to_reach(x, kind, nu, states, table)
    torch.testing.assert_close(rise(torch.zeros_like(x), pulses, kind, nu, states, table), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["soft", "exp"])
def test_small_nonlinearity_is_linear_to_first_order(kind):
    line = risen("linear", 0.2, 7.0, 0.0)
    gaps = [abs(risen(kind, 0.2, 7.0, nu) - line).item() for nu in (1e-2, 1e-3, 1e-4)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("case", ORACLE_CASES, ids=case_id)
def test_reference_is_the_oracle(case):
    grad, states = tensors(case[1], (60,), torch.float64)
    _, found, _ = pulse_update_reference(3 * grad, states, **arguments(case))
    for place in range(60):
        want = oracle(3 * grad[place].item(), [x[place].item() for x in states], case)
        assert [x[place].item() for x in found] == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("c2c", [0.0, 0.3], ids=["alike", "varied"])
@pytest.mark.parametrize(("dtype", "small"), [(torch.float32, 0), (torch.float64, 1 << 13)])
def test_eager_is_the_reference(case, c2c, dtype, small, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 200)
    monkeypatch.setattr(eager, "SMALL", small)
    monkeypatch.setattr(eager, "FEW", 1)
    eager._steps.cache_clear()
    grad, states = tensors(case[1], (3, 111), dtype)
    maps = varied(case[1], (3, 111), dtype) if c2c else None
    weight, own, counts = take(grad, states, maps, **arguments(case, c2c))
    eager._steps.cache_clear()
    want, want_states, want_counts = pulse_update_reference(grad, states, maps=maps, **arguments(case, c2c))
    assert torch.equal(weight, want)
    assert all(map(torch.equal, own, want_states))
    assert counts.tolist() == want_counts.tolist()
    assert counts[0] > 0


@pytest.mark.parametrize("mode", ["rising", "both"])
def test_tables(mode):
    kinds = {**arguments(("linear", mode, "nearest", "pulsed")), "response": Response("table", n_states=6.0)}
    grad, states = tensors(mode, (50,), torch.float64)
    maps = DeviceMaps(table=[TABLE])
    weight, own, _ = take(grad, states, maps, **kinds)
    want, want_states, _ = pulse_update_reference(grad, states, maps=maps, **kinds)
    assert torch.equal(weight, want)
    assert all(map(torch.equal, own, want_states))
    assert not torch.equal(own[0], states[0])
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="kind='table'"):
        take(grad, states, maps, **kinds)


@pytest.mark.parametrize("size", [0.0, 0.3, 1.7, 4.0])
def test_stochastic_rounding_is_right_on_average(size):
    draws = 100_000
    counts, _ = pulse_counts(torch.full((draws,), size), PulseRule(), uniform(torch.arange(draws), seed=3))
    assert set(counts.tolist()) <= {float(int(size)), float(int(size) + 1)}
    assert counts.mean().item() == pytest.approx(size, abs=0.006)  # four standard deviations


def test_every_device_gets_other_noise_at_every_step():
    steps = torch.stack([uniform(torch.arange(50), seed) for seed in range(2000)])
    assert ((steps < 0.3).float().mean(0) - 0.3).abs().max() < 0.045


def test_noise_is_normal_and_independent():
    x, y = (noise.double() for noise in normal_pair(torch.arange(100_000), 5, UPDATE))
    for noise in (x, y):
        assert noise.mean().item() == pytest.approx(0, abs=0.013)
        assert noise.std().item() == pytest.approx(1, abs=0.01)
        assert (noise.abs() > 2).double().mean().item() == pytest.approx(0.0455, abs=0.003)
    u = uniform(torch.arange(100_000), 5).double() - 0.5
    for pair in ((x, y), (x, u), (x[1:], x[:-1]), (u[1:], u[:-1])):
        assert abs(torch.corrcoef(torch.stack(pair))[0, 1]) < 0.013


def test_the_largest_number_is_respected_and_counted():
    grad, states = torch.tensor([100.0, -0.1, torch.inf, torch.nan]), [torch.full((4,), 0.2)] * 2
    weight, own, counts = take(grad, states, **arguments(("linear", "rising", "nearest", "never")))
    assert counts.tolist() == [10, 2, 0, 2]
    torch.testing.assert_close(own[1], torch.tensor([0.2 + 5 / 32, 0.2, 0.2 + 5 / 32, 0.2]))
    assert weight.isfinite().all()


@pytest.mark.parametrize("mode", ["rising", "both"])
def test_counts_are_exact_beyond_what_fp32_can_tell(mode):
    grad, states = torch.full((50_001,), 1001 / GAIN), [torch.full((50_001,), 0.1)] * 2
    kinds = {**arguments(("linear", mode, "nearest", "never")), "rule": PulseRule("nearest", 2000)}
    _, _, counts = take(grad, states, **kinds)
    assert counts.tolist() == [1001 * 50_001 * (2 if mode == "both" else 1), 0, 0, 50_001]


@pytest.mark.parametrize("mode", ["rising", "both", "single", "falling"])
def test_real_pulses_on_linear_devices_are_gradient_descent(mode):
    grad, states = tensors(mode, (200,), torch.float64)
    states = [0.3 + 0.4 * x for x in states]
    kinds = {**arguments(("linear", mode, "none", "never")), "rule": PulseRule("none", 1000)}
    gain = -0.01 * 32 / W_SCALE * (0.5 if mode == "both" else 1.0)
    weight, *_ = take(grad, states, **{**kinds, "gain": gain})
    before, *_ = take(0 * grad, states, **kinds)
    torch.testing.assert_close(weight, before - 0.01 * grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["rising", "falling"])
@pytest.mark.parametrize("refresh", ["never", "ideal"])
def test_mirrored_gradients_mirror_the_trajectory(mode, refresh):
    grads, pair = torch.randn(15, 80), [torch.rand(80), torch.rand(80)]
    mirrored = pair[::-1]
    for step, grad in enumerate(grads):
        kinds = {**arguments(("soft", mode, "stochastic", refresh)), "seed": step}
        weight, pair, _ = take(2 * grad, pair, **kinds)
        opposite, mirrored, _ = take(-2 * grad, mirrored, **kinds)
        assert torch.equal(weight, -opposite)
        assert all(map(torch.equal, pair, mirrored[::-1]))


@pytest.mark.parametrize("mode", ["rising", "falling"])
def test_devices_go_one_way_between_refreshes_and_refreshes_keep_the_weight(mode):
    pair = [torch.rand(500, dtype=torch.float64), torch.rand(500, dtype=torch.float64)]
    kinds = arguments(("soft", mode, "stochastic", "never"))
    moved, after, _ = take(torch.randn(500), pair, **kinds)
    sign = 1 if mode == "rising" else -1
    assert all(bool((sign * (new - old) >= 0).all()) for new, old in zip(after, pair, strict=True))
    rule = kinds["rule"]._replace(refresh="ideal", low=0.0)
    weight, fresh, counts = take(torch.zeros(500), after, **{**kinds, "rule": rule})
    torch.testing.assert_close(weight, moved, rtol=1e-15, atol=4e-16)
    empty = torch.minimum(*fresh) if mode == "rising" else 1 - torch.maximum(*fresh)
    full = (torch.maximum(*after) if mode == "rising" else 1 - torch.minimum(*after)) >= rule.high
    assert int(counts[2]) == int(full.sum()) > 0
    assert (empty[full] == 0).all()


def test_up_and_down_is_a_round_trip_on_linear_devices_only():
    x = [torch.full((4,), 0.5)]
    for kind, same in (("linear", True), ("soft", False)):
        kinds = {**arguments((kind, "single", "nearest", "never")), "response": Response(kind, 2.0, 2.0, 32.0)}
        _, up, _ = take(torch.full((4,), 3 / GAIN), x, **kinds)
        _, back, _ = take(torch.full((4,), -3 / GAIN), up, **kinds)
        assert torch.allclose(back[0], x[0], atol=1e-6) == same


@pytest.mark.parametrize("refresh", ["ideal", "pulsed"])
def test_stuck_devices_never_move(refresh):
    grad, states = tensors("rising", (400,))
    maps = varied("rising", (400,))
    for step in range(8):
        _, states_now, _ = take(3 * grad, states, maps, **arguments(("soft", "rising", "stochastic", refresh), 0.2))
        for rate, now, before in zip(maps.rates, states_now, states, strict=True):
            assert torch.equal(now[rate == 0], before[rate == 0]), step
        states = states_now


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_outside_is_touched(shape):
    case = ("soft", "rising", "stochastic", "ideal")
    grad, states = tensors("rising", shape)
    (weight,), clean_weight = guarded([W_SCALE * (states[0] - states[1])])
    own, clean_states = guarded(states)
    counts = torch.zeros(4, dtype=torch.int64)
    pulse_update(weight, grad, own, counts, **arguments(case))
    assert clean_weight()
    assert clean_states()
    torch.testing.assert_close(weight, pulse_update_reference(grad, states, **arguments(case))[0])


def test_bad_tensors_are_refused():
    kinds = arguments(("soft", "rising", "nearest", "never"))
    counts, x = torch.zeros(4, dtype=torch.int64), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"bfloat16.*allowed are float32 and float64"):
        pulse_update(x, x, [x.bfloat16(), x.bfloat16()], counts, **kinds)
    with pytest.raises(ValueError, match="contiguous"):
        pulse_update(x.t(), x.t(), [x.t(), x.t()], counts, **kinds)

    class Sharded(torch.Tensor):
        placements = ()

    with pytest.raises(ShardedParameterError, match="one of these tensors is sharded; use DDP"):
        pulse_update(x.as_subclass(Sharded), x, [x, x], counts, **kinds)


def test_opcheck():
    grad, states = tensors("rising", (4, 5))
    arguments = (grad.clone(), grad, states, torch.zeros(4, dtype=torch.int64), [], [], [], [], "soft", "rising")
    numbers = ("stochastic", "ideal", 2.0, 2.0, 32.0, 0.0, 5, 0.5, 0.9, 0.0, -1.0, 1.5, 7)
    results = torch.library.opcheck(torch.ops.lightning_weights.pulse_update.default, (*arguments, *numbers))
    assert set(results.values()) == {"SUCCESS"}

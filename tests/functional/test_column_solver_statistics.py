"""Sums over inputs: batches, merging, masks, checkpoints."""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.column_solver import InputStatistics


def streams(samples=12, tokens=5, features=7):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, tokens, features, generator=generator)
    return x, x + 0.1 * torch.randn(x.shape, generator=generator)


def collected(batches, asymmetric=True, **options):
    found = InputStatistics(batches[0][0].shape[-1], asymmetric, **options)
    for x, full in batches:
        found.update(x, full if asymmetric else None)
    return found


def assert_same(first, second, tolerance=1e-6):
    torch.testing.assert_close(first.hessian, second.hessian, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(first.asymmetry, second.asymmetry, rtol=tolerance, atol=tolerance)
    assert (first.samples, first.tokens) == (second.samples, second.tokens)


@pytest.mark.parametrize("panel", [256, 3])
def test_definition(panel, monkeypatch):
    monkeypatch.setattr("lightning_weights.functional.column_solver.statistics.PANEL", panel)
    x, full = (stream.double() for stream in streams())
    found = collected([(x, full)], dtype=torch.float64)
    h = sum(2.0 / 12 * sample.T @ sample for sample in x)
    d = sum(2.0 / 12 * (other - sample).T @ sample for sample, other in zip(x, full, strict=True))
    torch.testing.assert_close(found.hessian, h)
    torch.testing.assert_close(found.asymmetry, d)
    assert torch.equal(found.hessian, found.hessian.T)
    assert (found.samples, found.tokens) == (12, 60)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 11), unique=True).map(sorted), ranks=st.integers(1, 3))
def test_batches_and_ranks_do_not_matter(cuts, ranks):
    x, full = streams()
    bounds = [0, *cuts, 12]
    batches = [(x[a:b], full[a:b]) for a, b in itertools.pairwise(bounds)]
    whole = collected([(x, full)])
    assert_same(collected(batches), whole, 2e-6)
    parts = [batches[rank::ranks] for rank in range(ranks)]
    merged = InputStatistics(7, asymmetric=True)
    for part in parts:
        merged.merge(collected(part) if part else InputStatistics(7, asymmetric=True))
    assert_same(merged, whole, 2e-6)


def test_what_a_sample_is():
    x, _ = streams()
    two = InputStatistics(7)
    two.update(x[0])
    assert (two.samples, two.tokens) == (1, 5)
    image = InputStatistics(7)
    image.update(x.reshape(3, 4, 5, 7))
    assert (image.samples, image.tokens) == (3, 60)
    torch.testing.assert_close(image.hessian, 4.0 * collected([(x, x)], asymmetric=False).hessian)


def test_padding_does_not_count():
    x, full = streams()
    mask = torch.arange(5) < torch.arange(12)[:, None] % 5 + 1
    polluted = torch.where(mask[..., None], x, 100.0)
    found = InputStatistics(7, asymmetric=True)
    found.update(polluted, full, mask=mask)
    wanted = InputStatistics(7, asymmetric=True)
    for sample, other, kept in zip(x, full, mask, strict=True):
        wanted.update(sample[kept][None], other[kept][None])
    assert_same(found, wanted)


def test_half_precision_inputs_and_autocast():
    x, full = (stream.half() for stream in streams())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collected([(x, full)])
    assert_same(found, collected([(x.float(), full.float())]))
    assert found.hessian.dtype == torch.float32


def test_gradients_are_not_kept():
    x, _ = streams()
    found = InputStatistics(7)
    found.update(x.requires_grad_())
    assert not found.hessian.requires_grad


def test_states_go_on():
    x, full = streams()
    first = collected([(x[:4], full[:4])])
    state = copy.deepcopy(first.state_dict())
    second = InputStatistics(7, asymmetric=True)
    second.load_state_dict(state)
    second.update(x[4:], full[4:])
    assert_same(second, collected([(x, full)]))
    assert first.samples == 4
    empty = InputStatistics(7)
    empty.load_state_dict(InputStatistics(7).state_dict())
    assert empty.samples == 0
    with pytest.raises(ValueError, match="state has sums"):
        InputStatistics(7).load_state_dict(state)
    with pytest.raises(ValueError, match="state has sums"):
        InputStatistics(8, asymmetric=True).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(7), torch.zeros(7)), "x_q has shape"),
        ((torch.zeros(2, 3, 6), torch.zeros(2, 3, 6)), "x_q has shape"),
        ((torch.zeros(2, 3, 7),), "x_fp is missing"),
        ((torch.zeros(2, 3, 7), torch.zeros(2, 4, 7)), "must not shuffle"),
        ((torch.zeros(2, 3, 7), torch.zeros(2, 3, 7), torch.ones(2, 4)), "mask has shape"),
    ],
)
def test_bad_batches(arguments, message):
    found = InputStatistics(7, asymmetric=True)
    with pytest.raises(ValueError, match=message):
        found.update(*arguments)
    assert found.samples == 0


def test_a_second_stream_that_nobody_asked_for():
    with pytest.raises(ValueError, match="x_fp is given"):
        InputStatistics(7).update(torch.zeros(2, 7), torch.zeros(2, 7))


def test_layers_without_usable_inputs():
    with pytest.raises(ValueError, match=r"head got no calibration inputs"):
        InputStatistics(7).check("head")
    with pytest.raises(ValueError, match="no batch has been seen"):
        InputStatistics(7).hessian  # noqa: B018
    x, full = streams()
    full[3, 2, 1] = float("nan")
    with pytest.raises(ValueError, match="inputs of fc hold NaN or infinity"):
        collected([(x, full)]).check("fc")


def test_few_tokens_are_pointed_out(recwarn):
    x, full = streams()
    collected([(x, full)]).check("fc")
    assert not recwarn.list
    with pytest.warns(LightningWeightsWarning, match=r"fc has 7 input features and saw 5 tokens, 0\.71 per feature"):
        collected([(x[:1], full[:1])]).check("fc")


def test_bad_arguments():
    with pytest.raises(ValueError, match="in_features is 0"):
        InputStatistics(0)
    with pytest.raises(ValueError, match="dtype is"):
        InputStatistics(7, dtype=torch.float16)
    with pytest.raises(ValueError, match="other has"):
        InputStatistics(7).merge(InputStatistics(7, asymmetric=True))


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_process_adds_up_itself(one_process):
    x, full = streams()
    found = collected([(x, full)])
    found.all_reduce()
    assert_same(found, collected([(x, full)]), 0.0)
    nothing = InputStatistics(7)
    nothing.all_reduce()
    assert (nothing.samples, nothing.tokens) == (0, 0)
    with pytest.raises(ValueError, match="never reached"):
        nothing.check("fc")

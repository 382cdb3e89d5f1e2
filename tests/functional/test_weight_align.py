"""The equations of Weight Aligning: what they leave alone, and herding against a loop over its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.weight_align import (
    align_weights,
    class_mean,
    class_quota,
    distillation_weight,
    herd,
    mean_norms,
    nearest_mean,
)
from lightning_weights.kernels.distillation_loss import distillation_loss

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
seeds = st.integers(0, 2**32 - 1)
cheap = settings(max_examples=50, deadline=None)


@st.composite
def heads(draw, dtypes=(torch.float32,), positive=False):
    """Draw a classifier weight and a number of old classes; new rows are larger or smaller by up to a factor of 20."""
    generator = torch.Generator().manual_seed(draw(seeds))
    old, new, width = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 33))
    weight = torch.randn(old + new, width, generator=generator)
    weight[old:] *= draw(st.floats(0.05, 20))
    weight = weight.abs() if positive else weight
    return weight.to(draw(st.sampled_from(dtypes))), old


@cheap
@given(heads(DTYPES))
def test_mean_norms_agree_and_a_second_time_changes_no_bit(head):
    weight, old = head
    before = weight.clone()
    aligned, gamma = align_weights(weight, old)
    tolerance = max(1e-12, torch.finfo(weight.dtype).eps)
    norms = torch.linalg.vector_norm(aligned.double(), dim=1)
    assert norms[old:].mean().item() == pytest.approx(norms[:old].mean().item(), rel=tolerance)
    assert torch.equal(weight, before)
    assert torch.equal(aligned[:old], weight[:old])
    again, one = align_weights(aligned, old)
    assert torch.equal(again, aligned)
    assert one == 1.0
    assert gamma == pytest.approx(np.divide(*mean_norms(weight, old)), rel=tolerance)


@cheap
@given(heads())
def test_directions_stay(head):
    weight, old = head
    aligned, _ = align_weights(weight, old)
    cosines = torch.cosine_similarity(weight.double(), aligned.double())
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-6)


@cheap
@given(heads((torch.float64,)), seeds)
def test_logits_of_new_classes_are_scaled_and_decisions_within_groups_stay(head, seed):
    weight, old = head
    features = torch.randn(20, weight.shape[1], generator=torch.Generator().manual_seed(seed), dtype=weight.dtype)
    aligned, gamma = align_weights(weight, old)
    before, after = features @ weight.T, features @ aligned.T
    scaled = torch.cat([before[:, :old], gamma * before[:, old:]], dim=1)
    torch.testing.assert_close(after, scaled, rtol=1e-12, atol=1e-12)
    for group in (slice(None, old), slice(old, None)):
        assert torch.equal(after[:, group].argmax(1), before[:, group].argmax(1))


@cheap
@given(heads((torch.float64,), positive=True), seeds)
def test_predictions_flip_only_towards_the_group_that_gains(head, seed):
    """With non-negative weights and features: from new to old for γ < 1, from old to new for γ > 1."""
    weight, old = head
    features = torch.rand(50, weight.shape[1], generator=torch.Generator().manual_seed(seed), dtype=weight.dtype)
    aligned, gamma = align_weights(weight, old)
    was_new, is_new = ((features @ w.T).argmax(1) >= old for w in (weight, aligned))
    flipped = was_new != is_new
    assert (was_new if gamma < 1 else is_new)[flipped].all()


def test_predictions_do_flip():
    weight = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    features = torch.tensor([[1.0, 0.5]])
    aligned, gamma = align_weights(weight, 1)
    assert gamma == 0.25
    assert ((features @ weight.T).argmax(), (features @ aligned.T).argmax()) == (1, 0)


@cheap
@given(heads((torch.float64,)), seeds, st.floats(0.01, 100))
def test_gamma_is_invariant_to_order_rotation_and_scale(head, seed, scale):
    weight, old = head
    generator = torch.Generator().manual_seed(seed)
    aligned, gamma = align_weights(weight, old)
    order = torch.cat(
        [torch.randperm(old, generator=generator), old + torch.randperm(len(weight) - old, generator=generator)]
    )
    width = weight.shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    for changed in (weight[order], weight @ rotation, scale * weight):
        assert align_weights(changed, old)[1] == pytest.approx(gamma, rel=1e-10)
    larger = torch.cat([weight[:old], scale * weight[old:]])
    result, smaller_gamma = align_weights(larger, old)
    assert smaller_gamma * scale == pytest.approx(gamma, rel=1e-10)
    torch.testing.assert_close(result, aligned, rtol=1e-10, atol=1e-12)


def test_rounding_counts_as_one_and_more_does_not():
    weight = torch.ones(4, 3)
    for factor, untouched in ((1 + 2**-24, True), (1 + 2**-20, False)):
        weight[2:] = torch.tensor(factor, dtype=torch.float32)
        aligned, gamma = align_weights(weight, 2)
        assert (gamma == 1.0) is untouched
        assert torch.equal(aligned, weight) is untouched


@pytest.mark.parametrize(
    ("weight", "num_old", "message"),
    [
        (torch.ones(3, 2), 3, "num_old is 3 with 3 classes: nothing to align; allowed are 1 to 2"),
        (torch.ones(3, 2), 0, "nothing to align"),
        (torch.ones(3, 2), -1, "nothing to align"),
        (torch.tensor([[1.0], [0.0]]), 1, "new classes, 1 to 1, have a mean norm of 0.0, .* lower it"),
        (torch.tensor([[0.0], [1.0]]), 1, "old classes, 0 to 0, have a mean norm of 0.0"),
        (torch.tensor([[1.0], [math.nan]]), 1, "new classes, 1 to 1, have a mean norm of nan"),
        (torch.tensor([[math.inf], [1.0]]), 1, "old classes, 0 to 0, have a mean norm of inf"),
        (torch.ones(3), 1, r"weight has shape \(3,\)"),
        (torch.ones(3, 2, 1, 1), 1, r"weight has shape \(3, 2, 1, 1\)"),
        (torch.ones(3, 2).long(), 1, "dtype torch.int64"),
    ],
)
def test_what_cannot_be_aligned(weight, num_old, message):
    with pytest.raises(ValueError, match=message):
        align_weights(weight, num_old)


def test_sharded_weights_are_refused():
    class Sharded(torch.Tensor):
        placements = ("Shard(0)",)

    with pytest.raises(ShardedParameterError, match="needs the whole classifier weight"):
        align_weights(torch.ones(3, 2).as_subclass(Sharded), 1)


def test_weight_of_distillation():
    assert [distillation_weight(20 * step, 20 * step + 20) for step in range(5)] == [0, 0.5, 2 / 3, 0.75, 0.8]


@pytest.mark.parametrize(("num_old", "num_classes"), [(3, 3), (-1, 3), (0, 0), (1.5, 3), (True, 3)])
def test_bad_numbers_of_classes(num_old, num_classes):
    with pytest.raises(ValueError, match=r"num_(old|classes) is"):
        distillation_weight(num_old, num_classes)


@given(st.integers(1, 10_000), st.integers(1, 1000))
def test_quota(size, num_classes):
    if size < num_classes:
        with pytest.raises(ValueError, match=f"size is {size} with {num_classes} classes"):
            class_quota(size, num_classes)
    else:
        quota = class_quota(size, num_classes)
        assert quota * num_classes <= size < (quota + 1) * num_classes


def _herd(features, m):
    """The definition, sample by sample; distances that agree to 1e-12 are ties."""
    f = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-8)
    mean, chosen = f.mean(axis=0), []
    for t in range(1, m + 1):
        left = [i for i in range(len(f)) if i not in chosen]
        # t times the distance: directions of unequal lengths differ by little, and ties are those of whole sums
        distances = [np.linalg.norm(t * mean - (f[i] + f[chosen].sum(axis=0))) for i in left]
        nearest = min(distances)
        chosen.append(next(i for i, distance in zip(left, distances, strict=True) if distance <= nearest + 1e-12))
    return chosen


@cheap
@given(seeds, st.integers(1, 20), st.integers(2, 9), st.data())
def test_herding_is_its_definition(seed, samples, width, data):
    features = (
        np.random.default_rng(seed).normal(size=(samples, width)).clip(min=data.draw(st.sampled_from([-9.0, 0.0])))
    )
    m = data.draw(st.integers(0, samples))
    assert herd(torch.from_numpy(features), m).tolist() == _herd(features, m)


@cheap
@given(seeds, st.integers(0, 12), st.integers(0, 30), st.integers(0, 30))
def test_fewer_exemplars_are_the_first_of_more(seed, samples, m, n):
    features = torch.randn(samples, 5, generator=torch.Generator().manual_seed(seed)).relu()
    fewer, more = sorted((herd(features, m), herd(features, n)), key=len)
    assert torch.equal(fewer, more[: len(fewer)])
    assert len(more) == min(max(m, n), samples)
    assert len(set(more.tolist())) == len(more)


def test_ties_go_to_the_lowest_index():
    same = torch.tensor([[0.3, 0.7, 0.1]]).expand(6, 3)
    assert herd(same, 4).tolist() == [0, 1, 2, 3]
    mirrored = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert herd(mirrored, 4).tolist() == [0, 1, 2, 3]


def test_herding_does_not_depend_on_norms_or_dtype_of_equal_values():
    features = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    scales = torch.tensor([1.0, 8.0, 64.0]).repeat(10)[:, None]
    assert torch.equal(herd(features, 9), herd(features.double(), 9))
    assert torch.equal(herd(features, 9), herd(features.double() * scales, 9))


def test_rows_without_a_direction_are_the_origin():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert herd(features, 3).tolist() == [0, 1, 2]


@cheap
@given(seeds, st.integers(1, 6), st.integers(1, 9))
def test_class_means_are_unit_vectors_and_classify_as_their_definition(seed, classes, width):
    generator = np.random.default_rng(seed)
    groups = [generator.exponential(size=(4, width)) * generator.exponential(size=width) for _ in range(classes)]
    means = torch.stack([class_mean(torch.from_numpy(group)) for group in groups])
    assert means.norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-6)
    features = generator.exponential(size=(11, width))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - means.numpy()[None], axis=2)
    predictions = nearest_mean(torch.from_numpy(features), means)
    nearest = distances[np.arange(11), predictions.numpy()]
    np.testing.assert_allclose(nearest, distances.min(axis=1), atol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: herd(torch.ones(3), 1), r"features has shape \(3,\)"),
        (lambda: herd(torch.ones(3, 2), -1), "m is -1"),
        (lambda: herd(torch.tensor([[math.nan]]), 1), "features holds NaN or infinity"),
        (lambda: class_mean(torch.ones(0, 2)), "features has no rows"),
        (lambda: nearest_mean(torch.ones(3, 2), torch.ones(4, 3)), r"means has shape \(4, 3\) and features \(3, 2\)"),
        (lambda: nearest_mean(torch.ones(3, 2), torch.ones(0, 2)), r"means has shape \(0, 2\)"),
        (lambda: nearest_mean(torch.tensor([[math.inf]]), torch.ones(2, 1)), "features holds NaN or infinity"),
    ],
)
def test_bad_features(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@st.composite
def batches(draw):
    """Draw logits of student and teacher in float64, and labels."""
    generator = torch.Generator().manual_seed(draw(seeds))
    rows, known, new = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(0, 6))
    student = 3 * torch.randn(rows, known + new, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(rows, known, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(known + new, (rows,), generator=generator)


def _gradient(batch, **rule):
    return torch.autograd.grad(distillation_loss(*batch, **rule), batch[0])[0]


@cheap
@given(batches(), st.floats(0.3, 5))
def test_distillation_moves_old_logits_against_each_other(batch, temperature):
    """Its gradient sums to zero over them, spares new classes, and is the same for cross-entropy and divergence."""
    known = batch[1].shape[1]
    gradient = _gradient(batch, weight=1.0, temperature=temperature)
    torch.testing.assert_close(gradient[:, :known].sum(1), torch.zeros(len(gradient)).double(), rtol=0, atol=1e-14)
    assert not gradient[:, known:].any()
    assert torch.equal(gradient, _gradient(batch, weight=1.0, temperature=temperature, relative=True))


@cheap
@given(batches(), st.floats(-50, 50), st.floats(0.3, 5))
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(batch, shift, temperature):
    student, _, targets = batch
    teacher = student.detach() + shift
    known = (student, teacher, targets)
    rule = {"weight": 1.0, "temperature": temperature, "relative": True}
    assert distillation_loss(*known, **rule).item() == pytest.approx(0.0, abs=1e-12)
    assert _gradient(known, **rule).abs().max() < 1e-14
    assert distillation_loss(*batch, **rule).item() >= -1e-14


@cheap
@given(batches(), st.floats(0, 1))
def test_the_loss_is_the_weighted_mean_of_its_terms(batch, weight):
    mixed, alone, distilled = (_gradient(batch, weight=share) for share in (weight, 0.0, 1.0))
    torch.testing.assert_close(mixed, (1 - weight) * alone + weight * distilled, rtol=1e-9, atol=1e-14)

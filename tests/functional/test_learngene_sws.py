"""Maps of layers to stages, the distillation loss and stretched positions."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.learngene_sws import (
    check_repeats,
    resize_positions,
    stage_map,
    stages_of_layers,
    sws_loss,
)


@settings(deadline=None)
@given(depth=st.integers(1, 60), stages=st.integers(1, 20))
def test_maps_are_even_and_in_order(depth, stages):
    found = stage_map(depth, stages)
    assert len(found) == depth
    assert found == sorted(found)
    assert found[0] == 0
    counts = Counter(found)
    if depth >= stages:
        assert sorted(counts) == list(range(stages))
        sizes = [counts[stage] for stage in range(stages)]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1
    else:
        assert set(counts.values()) == {1}
        gaps = np.diff(found)
        assert depth == 1 or (found[-1] == stages - 1 and gaps.max() - gaps.min() <= 1)


def test_the_published_map():
    assert stage_map(12, 5) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_stages_of_layers_count_the_repeats(repeats):
    found = stages_of_layers(tuple(repeats))
    assert [found.count(stage) for stage in range(len(repeats))] == repeats
    assert found == sorted(found)
    assert check_repeats(tuple(repeats), sum(repeats)) == repeats


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stage_map(0, 3), "depth is 0"),
        (lambda: stage_map(4, 0), "num_stages is 0"),
        (lambda: stages_of_layers([2, 0, 1]), r"repeats\[1\] is 0"),
        (lambda: stages_of_layers([]), r"repeats is \[\]"),
        (lambda: stages_of_layers("321"), "repeats is '321'"),
        (lambda: check_repeats([2, 2], 5), r"repeats is \[2, 2\], which makes 4 layers, but there are 5"),
    ],
)
def test_bad_stages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def batch(rows=6, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2.0 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(classes, (rows,), generator=generator)


def kl(student, teacher, tau):
    return F.kl_div((student / tau).log_softmax(1), (teacher / tau).log_softmax(1), log_target=True, reduction="sum")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("reduction", ["numel", "batch"])
def test_soft_distillation_is_the_formula_with_its_gradient(alpha, reduction, smoothing):
    student, teacher, labels = batch()
    student.requires_grad_()
    tau, size = 2.5, student.numel() if reduction == "numel" else len(student)
    base = F.cross_entropy(student, labels, label_smoothing=smoothing)
    wanted = (1 - alpha) * base + alpha * tau**2 / size * kl(student, teacher, tau)
    options = {"alpha": alpha, "tau": tau, "reduction": reduction, "label_smoothing": smoothing}
    found = sws_loss(student, teacher, labels, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_the_gradient_is_divided_by_all_logits():
    student, teacher, labels = batch()
    student.requires_grad_()
    sws_loss(student, teacher, labels, tau=3.0).backward()
    difference = (student / 3).softmax(1) - (teacher / 3).softmax(1)
    torch.testing.assert_close(student.grad, 3.0 / student.numel() * difference)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50), tau=st.floats(0.2, 10))
def test_soft_distillation_is_a_divergence_that_constants_do_not_change(seed, shift, tau):
    student, teacher, labels = batch(seed=seed)
    rows = torch.linspace(0, shift, len(student), dtype=torch.float64)[:, None]
    loss = sws_loss(student, teacher, labels, tau=tau)
    assert loss.item() > 0
    assert sws_loss(student, student + rows, labels, tau=tau).item() == pytest.approx(0, abs=1e-12)
    for other in (
        sws_loss(student + rows, teacher, labels, tau=tau),
        sws_loss(student, teacher - rows, labels, tau=tau),
    ):
        assert other.item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-12)


def test_without_distillation_it_is_the_cross_entropy_bit_for_bit():
    student, teacher, labels = batch()
    mixed = teacher.softmax(1)
    for kind in ("soft", "hard"):
        assert torch.equal(sws_loss(student, teacher, labels, kind=kind, alpha=0.0), F.cross_entropy(student, labels))
        smoothed = sws_loss(student, teacher, labels, kind=kind, alpha=0.0, label_smoothing=0.1)
        assert torch.equal(smoothed, F.cross_entropy(student, labels, label_smoothing=0.1))
        found = sws_loss(student, teacher, mixed, kind=kind, alpha=0.0, label_smoothing=0.1)
        assert torch.equal(found, F.cross_entropy(student, mixed))


def test_with_distillation_alone_labels_do_not_matter():
    student, teacher, labels = batch()
    for kind in ("soft", "hard"):
        unknown = torch.full_like(labels, -1)
        assert torch.equal(
            sws_loss(student, teacher, unknown, kind=kind), sws_loss(student, teacher, labels, kind=kind)
        )


def test_hard_distillation_ignores_temperature_and_learns_the_answers():
    student, teacher, labels = batch()
    losses = [sws_loss(student, teacher, labels, kind="hard", alpha=0.4, tau=tau) for tau in (0.5, 4.0)]
    assert torch.equal(*losses)
    wanted = 0.6 * F.cross_entropy(student, labels) + 0.4 * F.cross_entropy(student, teacher.argmax(1))
    torch.testing.assert_close(losses[0], wanted)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_narrow_logits_are_computed_in_fp32(kind):
    student, teacher, labels = batch()
    loss = sws_loss(student.half(), teacher.bfloat16(), labels, kind=kind, alpha=0.5)
    assert loss.dtype == torch.float32
    wide = sws_loss(student.half().double(), teacher.bfloat16().double(), labels, kind=kind, alpha=0.5)
    assert loss.item() == pytest.approx(wide.item(), rel=1e-6)


def test_the_teacher_gets_no_gradient():
    student, teacher, labels = batch()
    student.requires_grad_(), teacher.requires_grad_()
    for kind in ("soft", "hard"):
        sws_loss(student, teacher, labels, kind=kind, alpha=0.5).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha is 1.5; allowed is a number in \[0, 1\]"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"kind": "both"}, "kind is 'both'"),
        ({"reduction": "sum"}, "reduction is 'sum'"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        sws_loss(*batch(), **options)


def test_teachers_with_other_classes_are_refused():
    student, teacher, labels = batch()
    with pytest.raises(ValueError, match=r"shape \(6, 7\) and teacher_logits \(6, 5\)"):
        sws_loss(student, teacher[:, :5], labels)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_positions_keep_what_is_linear(prefix):
    """Bicubic interpolation nearly reproduces planes away from the border, and tokens in front stay."""
    rows, columns = torch.meshgrid(*(torch.arange(4.0).double() + 0.5 for _ in range(2)), indexing="ij")
    grid = torch.stack([rows, columns, torch.ones_like(rows)], -1).reshape(1, 16, 3)
    front = torch.full((1, prefix, 3), 7.0).double()
    found = resize_positions(torch.cat([front, grid], 1), prefix + 64)
    assert torch.equal(found[:, :prefix], front)
    inner = found[0, prefix:].reshape(8, 8, 3)[2:6, 2:6]
    wanted = torch.linspace(1.25, 2.75, 4).double()
    torch.testing.assert_close(inner[:, 0, 0], wanted, rtol=0, atol=0.1)
    torch.testing.assert_close(inner[0, :, 1], wanted, rtol=0, atol=0.1)
    torch.testing.assert_close(inner[..., 2], torch.ones(4, 4).double())
    assert torch.equal(resize_positions(found, prefix + 64), found)


def test_positions_of_no_square_are_refused():
    with pytest.raises(ValueError, match="12 tokens and 16 are wanted"):
        resize_positions(torch.zeros(1, 12, 4), 16)

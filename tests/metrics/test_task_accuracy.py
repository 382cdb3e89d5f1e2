"""The accuracy matrix against scikit-learn, and what a metric must survive."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from lightning_weights.functional import continual
from lightning_weights.metrics import TaskAccuracyMatrix

TASKS = 3


def stream(seed=0, batches=20):
    """Make batches (logits, labels, task, after) that leave the cell (0, 2) empty."""
    rng = np.random.default_rng(seed)
    cells = [(task, after) for after in range(TASKS) for task in range(TASKS) if (task, after) != (2, 0)]
    cells += [cells[i] for i in rng.integers(len(cells), size=batches)]
    for task, after in cells:
        size = int(rng.integers(1, 9))
        yield torch.from_numpy(rng.normal(size=(size, 4))), torch.from_numpy(rng.integers(4, size=size)), task, after


def filled(batches):
    metric = TaskAccuracyMatrix(TASKS)
    for batch in batches:
        metric.update(*batch)
    return metric


def sklearn_matrix(batches):
    matrix = np.full((TASKS, TASKS), np.nan)
    batches = list(batches)
    for after, task in np.ndindex(TASKS, TASKS):
        cell = [(p.argmax(1).numpy(), t.numpy()) for p, t, *where in batches if where == [task, after]]
        if cell:
            preds, targets = (np.concatenate(parts) for parts in zip(*cell, strict=True))
            matrix[after, task] = accuracy_score(targets, preds)
    return torch.from_numpy(matrix).float()


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_matches_sklearn(seed):
    matrix = filled(stream(seed)).compute()
    assert matrix.dtype == torch.float32
    assert_same(matrix, sklearn_matrix(stream(seed)))


def test_labels_count_like_logits():
    labels = [(preds.argmax(1), *rest) for preds, *rest in stream()]
    assert_same(filled(labels).compute(), filled(stream()).compute())


def test_summaries_are_those_of_the_matrix():
    metric = filled(stream())
    matrix = sklearn_matrix(stream())
    assert_same(metric.average_accuracy(), continual.average_accuracy(matrix))
    assert_same(metric.forgetting(), continual.forgetting(matrix))
    assert_same(metric.backward_transfer(), continual.backward_transfer(matrix))


def test_summing_processes_equals_one_process():
    batches = list(stream())
    whole, parts = filled(batches), [filled(batches[rank::2]) for rank in range(2)]
    merged = TaskAccuracyMatrix(TASKS)
    for name, reduce in merged._reductions.items():
        setattr(merged, name, reduce(torch.stack([getattr(part, name) for part in parts])))
        assert torch.equal(getattr(merged, name), getattr(whole, name))
        assert getattr(merged, name).dtype == torch.int64
    merged.update(*batches[0])
    whole.update(*batches[0])
    assert_same(merged.compute(), whole.compute())
    parts[0].merge_state(parts[1])
    parts[0].update(*batches[0])
    assert_same(parts[0].compute(), whole.compute())


def test_forward_returns_the_batch_and_counts_it():
    metric, batches = TaskAccuracyMatrix(TASKS), list(stream())
    for preds, target, task, after in batches:
        value = metric(preds, target, task=task, after=after)
        assert value[after, task].item() == pytest.approx(accuracy_score(target, preds.argmax(1)))
        assert value.isnan().sum() == TASKS**2 - 1
    assert_same(metric.compute(), sklearn_matrix(batches))


def test_reset_row_clears_one_row_and_the_cache():
    batches = list(stream())
    metric = filled(batches)
    metric.compute()
    metric.reset_row(1)
    assert_same(metric.compute(), sklearn_matrix(batch for batch in batches if batch[3] != 1))
    for batch in batches:
        if batch[3] == 1:
            metric.update(*batch)
    assert_same(metric.compute(), sklearn_matrix(batches))


def test_reset_clears_everything():
    metric = filled(stream())
    metric.reset()
    assert metric.total.sum() == 0


def test_counts_made_in_inference_mode_can_be_changed_outside():
    metric, batches = TaskAccuracyMatrix(TASKS), list(stream())
    with torch.inference_mode():
        for batch in batches[::2]:
            metric(*batch)
    for batch in batches[1::2]:
        metric.update(*batch)
    assert_same(metric.compute(), sklearn_matrix(batches))
    metric.reset_row(2)
    assert metric.compute()[2].isnan().all()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_copies_count_on_independently(duplicate):
    metric = filled(stream())
    before = metric.compute()
    copied = duplicate(metric)
    for batch in stream(seed=1):
        copied.update(*batch)
    assert_same(copied.compute(), sklearn_matrix([*stream(), *stream(seed=1)]))
    assert_same(metric.compute(), before)


def test_state_dict_round_trip(tmp_path):
    torch.save(filled(stream()).state_dict(), tmp_path / "metric.pt")
    metric = TaskAccuracyMatrix(TASKS)
    metric.load_state_dict(torch.load(tmp_path / "metric.pt", weights_only=True))
    for batch in stream(seed=1):
        metric.update(*batch)
    assert_same(metric.compute(), sklearn_matrix([*stream(), *stream(seed=1)]))


def test_bad_input_changes_nothing():
    metric = filled(stream())
    before = metric.compute()
    good = {"preds": torch.zeros(2, 3), "target": torch.zeros(2, dtype=torch.int64), "task": 0, "after": 0}
    for change, message in (
        ({"task": TASKS}, r"^task is 3; allowed is a whole number in \[0, 3\)$"),
        ({"task": "0"}, r"^task is '0'; allowed is a whole number in \[0, 3\)$"),
        ({"after": -1}, r"^after is -1; allowed is a whole number in \[0, 3\)$"),
        ({"after": None}, r"^after is None; allowed is a whole number in \[0, 3\)$"),
        ({"target": torch.zeros(3)}, r"`preds` has shape \(2, 3\) and `target` \(3,\)"),
        ({"preds": torch.zeros(2, 3, 4)}, r"`preds` has shape \(2, 3, 4\)"),
        ({"target": torch.zeros(2, 1)}, r"`target` \(2, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(**{**good, **change})
    for wrong in (TASKS, 0.0):
        with pytest.raises(ValueError, match=rf"^after is {wrong!r}; allowed is a whole number in \[0, 3\)$"):
            metric.reset_row(wrong)
    assert_same(metric.compute(), before)


def test_num_tasks_is_checked():
    for wrong in (0, 2.5, "3", None):
        with pytest.raises(ValueError, match=rf"^num_tasks is {wrong!r}; allowed is a whole number in \[1, inf\)$"):
            TaskAccuracyMatrix(wrong)
    with pytest.raises(ValueError, match="Unexpected keyword arguments"):
        TaskAccuracyMatrix(2, unknown=True)

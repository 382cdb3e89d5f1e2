"""Predictions with the numbers of their samples, and their file."""

import pytest
import torch

from lightning_weights.data import OutOfFold


def test_folds_become_one_and_missing_or_surplus_samples_are_named():
    parts = [
        OutOfFold.of(torch.tensor([3, 0]), torch.tensor([[3.0, 3], [0, 0]]), torch.tensor([6, 0]), epoch=4),
        OutOfFold.of(torch.tensor([1]), torch.tensor([[1.0, 1]]), torch.tensor([2]), epoch=2),
    ]
    joined = OutOfFold.join(parts)
    assert joined.indices.tolist() == [0, 1, 3]
    assert joined.predictions.tolist() == [[0, 0], [1, 1], [3, 3]]
    assert joined.targets.tolist() == [0, 2, 6]
    assert joined.epoch == 4
    with pytest.raises(ValueError, match=r"1 of 4 samples are missing \(2\)"):
        OutOfFold.join(parts, 4)
    with pytest.raises(ValueError, match=r"of 1 samples that are not among the 3 expected \(3\)"):
        joined.check_complete(torch.arange(2).repeat(2)[:3])
    with pytest.raises(ValueError, match="contradict"):
        OutOfFold.join([*parts, OutOfFold.of(torch.tensor([1]), torch.tensor([[9.0, 9]]))])
    with pytest.raises(ValueError, match="parts is empty"):
        OutOfFold.join([])
    assert OutOfFold.join([parts[0], OutOfFold.of(torch.tensor([1]), torch.ones(1, 2))]).targets is None


def test_files_hold_all_of_it(tmp_path):
    for part in (
        OutOfFold.of(torch.tensor([5, 2]), torch.rand(2, 3).bfloat16(), torch.rand(2), 3, 0.25),
        OutOfFold.of(torch.arange(4), torch.rand(4)),
    ):
        part.save(tmp_path / "there" / "oof.pt")
        found = OutOfFold.load(tmp_path / "there" / "oof.pt")
        assert torch.equal(found.indices, part.indices)
        assert torch.equal(found.predictions, part.predictions)
        assert (found.targets is None) == (part.targets is None)
        assert (found.epoch, found.score) == (part.epoch, part.score)
    torch.save({"predictions": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not hold predictions"):
        OutOfFold.load(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is not there"):
        OutOfFold.load(tmp_path / "nothing.pt")


def test_numbers_of_rows_have_to_agree():
    with pytest.raises(ValueError, match="2 sample numbers and 3 predictions"):
        OutOfFold.of(torch.arange(2), torch.rand(3))
    with pytest.raises(ValueError, match="2 sample numbers and 1 targets"):
        OutOfFold.of(torch.arange(2), torch.rand(2), torch.rand(1))

"""Scores whose noise floor is known."""

import pytest
import torch

from lightning_weights.data import StudentScores, student_scores


def test_without_noise_a_few_products_of_features_say_all_but_the_clipping():
    x, y = student_scores(4000, noise=0.0, seed=1)
    hours, attendance, sleep, quality, facility, difficulty, _, _, method, _ = x.double().unbind(1)
    columns = [hours, attendance, torch.tanh(2 * sleep), quality, facility, difficulty, method == 2, method == 0]
    columns += [hours * (quality - 1), (attendance < -1) * hours.clamp(min=0), torch.ones_like(hours)]
    design, inside = torch.stack([column.double() for column in columns], dim=1), (y > 0) & (y < 100)
    found = torch.linalg.lstsq(design[inside], y[inside].double()[:, None]).solution[:, 0]
    assert (design[inside] @ found - y[inside]).abs().max() < 1e-4
    assert 0 < (~inside).float().mean() < 0.1


def test_noise_and_seeds():
    y, noisy = student_scores(4000, noise=0.0)[1], student_scores(4000, noise=8.0)[1]
    inside = (noisy > 0) & (noisy < 100) & (y > 15) & (y < 85)
    assert (noisy - y)[inside].std().item() == pytest.approx(8.0, rel=0.1)
    assert torch.equal(noisy, student_scores(4000, noise=8.0)[1])
    assert not torch.equal(noisy, student_scores(4000, noise=8.0, seed=1)[1])


def test_the_module_serves_all_rows_and_draws_from_its_own_generators():
    data = StudentScores(batch_size=8, num_rows=20, test_rows=5, seed=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x, y = student_scores(25, seed=2)
    first = torch.cat([scores for _, scores in data.train_dataloader()])
    second = torch.cat([scores for _, scores in data.train_dataloader()])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, y[:20].sort().values)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        ((features, scores),) = loader
        assert torch.equal(features, x[20:])
        assert torch.equal(scores, y[20:])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("argument", ["batch_size", "num_rows", "test_rows", "noise", "seed", "num_workers"])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match=f"{argument} is -1"):
        StudentScores(**{argument: -1})

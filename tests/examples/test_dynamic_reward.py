import csv
from pathlib import Path

import dynamic_reward
import pytest
import torch
from _harness import Estimate

from lightning_weights.data import DigitSums


class FewSums(DigitSums):
    def __init__(self, seed: int, **sizes: int) -> None:
        super().__init__(train_size=16, validation_size=8, test_size=8, batch_size=4, seed=seed)


@pytest.fixture(autouse=True)
def _few_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_reward, "DigitSums", FewSums)
    monkeypatch.setattr(dynamic_reward, "EVERY", 2)
    dynamic_reward.warm_policy.cache_clear()


def measured(settings: dict, seed: int, steps: int, warm: int) -> dict[str, float]:
    """Stand in for a training: three validations of what the weight of accuracy says."""
    share = settings["weights"][0] + 0.01 * seed
    found = {f"{name} {place}": share + 0.1 * place for name in dynamic_reward.OBJECTIVES for place in range(3)}
    volumes = {f"volume {i}{j}": share for i, j in dynamic_reward.PAIRS}
    last = {f"last {name}": share for name in dynamic_reward.OBJECTIVES}
    return {"volume": share, "mean volume": share, "weight": share, "meta": 1.0, **found, **volumes, **last}


def test_script_compares_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["dynamic_reward.py", "--seeds", "2", "--workers", "1", "--out", str(tmp_path)])
    monkeypatch.setattr(dynamic_reward, "train_one", measured)
    dynamic_reward.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = [row["method"] for row in csv.DictReader(file)]
    assert rows == list(dynamic_reward.methods())
    files = {"dynamic_reward.png", "report.md", "runs.csv", "summary.csv"}
    assert {path.name for path in tmp_path.iterdir()} == files
    report = (tmp_path / "report.md").read_text()
    assert "- [x] rloo, balanced, gradients, unit beats rloo, bad, fixed: +0.314" in report
    assert "- [ ] rloo, balanced, gradients, unit beats rloo, accuracy, fixed: -0.166" in report


@pytest.mark.parametrize("kind", ["meta on reward", "gradients, clip", "GDPO"])
def test_methods_train(kind: str) -> None:
    settings = dynamic_reward.methods()[dynamic_reward.name_of("grpo", "bad", kind)]
    found = dynamic_reward.train_one(settings, 0, steps=2, warm=2)
    assert all(0.0 <= found[f"volume {i}{j}"] <= 1.0 for i, j in dynamic_reward.PAIRS)
    assert (found["weight"] == pytest.approx(0.02)) == (kind != "gradients, clip")


def test_methods_of_a_seed_start_from_the_same_policy() -> None:
    policy, start = dynamic_reward.warm_policy(3, 2)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    settings = {"estimator": "rloo", "weights": [0.02, 0.49, 0.49], "normalize": "unit"}
    found = dynamic_reward.train_one(settings, 3, steps=4, warm=2)
    assert dynamic_reward.warm_policy(3, 2)[0] is policy
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert [found[f"{name} 0"] for name in dynamic_reward.OBJECTIVES] == start
    assert found["weight"] != pytest.approx(0.02)
    assert 0.0 <= found["mean volume"] <= found["volume"] <= found["volume 12"] <= 1.0
    again = dynamic_reward.train_one(settings, 3, steps=4, warm=2)
    assert again == found


def test_meta_reward_counts_from_what_the_policy_could_before() -> None:
    settings = {"estimator": "rloo", "weights": [0.5, 0.25, 0.25], "meta": "advantage"}
    found = dynamic_reward.train_one(settings, 3, steps=2, warm=2)
    # a step of 2 validates once: what it finds is no better than the start in everything, so that nothing has grown
    assert found["meta"] == 0.5
    assert found["weight"] == 0.5


def test_front_keeps_what_nothing_beats() -> None:
    clarity, accuracy = [0.1, 0.5, 0.4, 0.9, 0.9], [0.7, 0.8, 0.2, 0.6, 0.3]
    assert dynamic_reward.front(clarity, accuracy, larger=True) == ([0.5, 0.9], [0.8, 0.6])
    length, accuracy = [7.0, 5.0, 6.0, 5.0], [0.9, 0.4, 0.3, 0.5]
    assert dynamic_reward.front(length, accuracy, larger=False) == ([7.0, 5.0], [0.9, 0.5])


@pytest.mark.parametrize(("values", "expected"), [([0.1, 0.12], True), ([-0.1, -0.12], False), ([0.3, -0.2], False)])
def test_gain_is_clear_above_two_standard_errors(values: list[float], expected: bool) -> None:
    assert dynamic_reward.clear(Estimate.of(values)) is expected

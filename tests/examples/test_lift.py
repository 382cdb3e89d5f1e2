import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import _lift_smollm2
import _smollm2
import lift
import pytest
import torch
from _fine_tuning import fine_tune
from torch import nn

from lightning_weights.data import Arithmetic
from lightning_weights.modules import CausalLM


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lift.py", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)])
    monkeypatch.setattr(lift, "installed", lambda: False)
    monkeypatch.setattr(lift, "fine_tune", partial(fine_tune, steps=20))
    lift.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == lift.TUNED.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"lift.png", "report.md", "runs.csv", "summary.csv"}
    budgets = {method: float(row["trained"]) for method, row in rows.items() if method != "full"}
    assert set(budgets.values()) == {4.0 * (64 + 128 + 4 * 128)}
    assert float(rows["full"]["state_bytes"]) > 10 * float(rows["LIFT"]["state_bytes"])
    assert "- [" in (tmp_path / "report.md").read_text()


@pytest.fixture
def small_lm(monkeypatch: pytest.MonkeyPatch) -> Iterator[CausalLM]:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    lm = CausalLM(config={"model_type": "llama", "vocab_size": 384, "tie_word_embeddings": True, **shape})
    monkeypatch.setattr(_smollm2, "SOURCE", "bytes")
    monkeypatch.setattr(_smollm2, "_read", lambda: lm)
    monkeypatch.setattr(_lift_smollm2, "FILTER_RANK", 4)
    caches = _smollm2._prose, _lift_smollm2._base
    for cached in caches:
        cached.cache_clear()
    yield lm
    for cached in caches:
        cached.cache_clear()


@pytest.mark.filterwarnings("ignore")
def test_a_language_model_learns_to_add_with_every_method(small_lm: CausalLM) -> None:
    before = {name: value.clone() for name, value in small_lm.state_dict().items()}
    found = {m: _lift_smollm2.adding({"method": m, "lr": 1e-2}, 0, steps=8) for m in _lift_smollm2.ADDING}
    assert len({row["base"] for row in found.values()}) == 1
    assert len({row["answer_loss"] for row in found.values()}) == len(found)
    start = _smollm2.answer_loss(small_lm, Arithmetic(2, 64, 64, tokenizer="bytes", batch_size=8))
    assert all(row["answer_loss"] < start for row in found.values()), (start, found)
    assert all(torch.equal(value, before[name]) for name, value in small_lm.state_dict().items())


class Tiny(nn.Module):
    """Blocks as a transformers model keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Linear(60, 50) for _ in range(6))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    model = Tiny()
    monkeypatch.setattr(_lift_smollm2, "_model", lambda: model)
    monkeypatch.setattr(_lift_smollm2, "_base", lambda: 1.0)
    monkeypatch.setattr(
        _lift_smollm2, "perplexity", lambda model: float(sum(p.abs().sum() for p in model.parameters()))
    )
    _lift_smollm2._chosen.cache_clear()
    yield model
    _lift_smollm2._chosen.cache_clear()


def test_noise_goes_to_the_chosen_entries_and_is_taken_back(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [param.clone() for param in tiny.parameters()]
    moved: list[int] = []

    def look(model: nn.Module) -> float:
        moved.append(sum(int((a != b).sum()) for a, b in zip(model.parameters(), before, strict=True)))
        return 1.0

    monkeypatch.setattr(_lift_smollm2, "perplexity", look)
    _lift_smollm2.sensitivity({"selector": "lift"}, seed=0)
    assert moved == [2 * round(0.05 * 3000)] * 2
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), before, strict=True))


def test_selectors_get_the_same_noise_and_their_own_entries(tiny: Tiny) -> None:
    found = {name: _lift_smollm2.sensitivity(rule, 0) for name, rule in _lift_smollm2.SELECTORS.items()}
    assert found["LIFT"]["overlap"] == 100.0
    assert found["bottom"]["overlap"] == 0.0
    assert len({row["perplexity at 0.2"] for row in found.values()}) == len(found)
    other = _lift_smollm2.sensitivity({"selector": "lift"}, 1)
    assert other["perplexity at 0.2"] != found["LIFT"]["perplexity at 0.2"]

import csv
from functools import partial
from pathlib import Path

import _smollm2
import bone
import pytest
from _fine_tuning import fine_tune

from lightning_weights.modules import CausalLM

pytest.importorskip("peft")


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bone, "RATES", (1e-3, 3e-2))
    monkeypatch.setattr(bone, "TUNING_SEEDS", [0])
    monkeypatch.setattr(bone, "fine_tune", partial(fine_tune, steps=4))
    monkeypatch.setattr("sys.argv", ["bone.py", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)])
    bone.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == bone.METHODS.keys()
    trained = {method: float(row["trained"]) for method, row in rows.items()}
    assert trained["Bone col"] == trained["Bone left"] == trained["MiSS"] == 8 * 3 * 128
    assert trained["Bone row"] == 8 * (64 + 128 + 128)
    assert {"bone.png", "report.md", "runs.csv", "summary.csv", "grid.csv"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert "each at the rate that was best on other seeds" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("method", ["Bone col", "PiSSA"])
def test_a_language_model_learns_with_every_rate(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "vocab_size": 384, **shape}
    monkeypatch.setattr(bone, "smollm2", lambda: CausalLM(config=dict(config)))
    monkeypatch.setattr(_smollm2, "perplexity", lambda model: 1.0)
    for part in (bone, _smollm2):
        monkeypatch.setattr(part, "SOURCE", "bytes")
        monkeypatch.setattr(part, "ASKED", 8)
    found = bone.add_with_all_rates(
        {"method": method, **bone.ADDING[method], "r": 4, "steps": 3, "rates": [1e-3, 1e-2]}, seed=0
    )
    per_layer = {"Bone col": 4 * (16 + 16), "PiSSA": 4 * 4 * 16}
    assert found["trained"] == per_layer[method]
    assert found["answer loss at 0.001"] != found["answer loss at 0.01"]
    assert found["answer loss before"] > 0

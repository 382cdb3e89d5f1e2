import csv
from pathlib import Path

import _hy_wu_smollm2
import hy_wu
import pytest
import torch
from _hypernetworks import MLPHypernetwork, SharedLoRA

from lightning_weights.callbacks.condition_shuffle_probe import probe
from lightning_weights.errors import MissingDependencyError
from lightning_weights.modules import TextEncoder, language_model
from tests.helpers.tiny_encoders import save_encoder

SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hy_wu, "TEST", 10)
    monkeypatch.setattr(hy_wu, "PROBED", 24)
    options = ["--seeds", "1", "--steps", "1", "--pretraining", "2", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["hy_wu.py", *options])
    hy_wu.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == hy_wu.METHODS.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"hy_wu.png", "report.md", "runs.csv", "summary.csv"}
    trained = {method: float(row["trained"]) for method, row in rows.items()}
    assert trained[hy_wu.SHARED] == trained[hy_wu.HIDDEN] == 6 * 4 * 2 * 96
    assert trained[hy_wu.LARGE] == pytest.approx(trained[hy_wu.OURS], rel=0.02)
    assert trained[hy_wu.FULL] > 50_000


@pytest.mark.parametrize("method", hy_wu.METHODS)
def test_all_begin_with_the_same_network(method: str) -> None:
    module = hy_wu.adapted(hy_wu.METHODS[method], 0, steps=2, pretraining=2)
    batch = hy_wu.first(hy_wu.samples(0, hy_wu.INSIDE, "test"), 12)
    network = hy_wu.ResidualMLP(72, 64)
    network.load_state_dict(hy_wu.pretrained(0, 2))
    assert torch.equal(module.memory(batch["condition"], *batch["inputs"]), network(*batch["inputs"]))
    _, found = probe(module, batch)
    assert found["loss_matched"] == pytest.approx(found["loss_averaged"])


def test_other_generators() -> None:
    sizes = {"a": (5, 7), "b": (5, 7)}
    condition = torch.randn(3, 2, 4)
    shared = SharedLoRA(sizes, 2)(condition)
    assert shared.batch_size == 3
    assert torch.equal(shared.flatten()[0], shared.flatten()[2])
    made = MLPHypernetwork(sizes, 4, 2)
    assert not any(b.any() for _, b in made(condition).values())
    assert not torch.equal(made(condition)["a"][0][0], made(condition)["a"][0][1])
    assert [part.shape[1:] for part in made(condition)["b"]] == [(2, 5), (7, 2)]
    with pytest.raises(ValueError, match="matrices of one size"):
        MLPHypernetwork({"a": (5, 7), "b": (7, 5)}, 4, 2)


def test_a_language_model_is_trained_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "llama", "vocab_size": 384, **SHAPE}
    monkeypatch.setattr(_hy_wu_smollm2, "PACKAGES", ("torch", "json"))
    monkeypatch.setattr(_hy_wu_smollm2, "language_model", lambda name: language_model(config=config))
    monkeypatch.setattr(_hy_wu_smollm2, "TextEncoder", lambda name: TextEncoder(save_encoder(tmp_path / "encoder")))
    monkeypatch.setattr(_hy_wu_smollm2, "SOURCE", "bytes")
    monkeypatch.setattr(_hy_wu_smollm2, "SIZES", {"train_size": 4, "validation_size": 1, "test_size": 1})
    small = {"rank": 2, "alpha": 4.0, "token_dim": 16, "dim": 16, "head_dim": 8, "accumulation": 2, "depth": 1}
    monkeypatch.setattr(_hy_wu_smollm2, "GENERATOR", small)
    monkeypatch.setattr(_hy_wu_smollm2, "TOKENS", 2)
    _hy_wu_smollm2.report_smollm2(tmp_path, steps=2)
    text = (tmp_path / "smollm2.md").read_text(encoding="utf-8")
    assert {line.partition(":")[0] for line in text.splitlines()} >= {"loss_matched", "loss_shuffled", "loss_without"}
    assert "written exactly as asked: 0 of 6" in text
    assert text.count("\n| ") == 7


def test_a_missing_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hy_wu_smollm2, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(MissingDependencyError, match="no-such-package"):
        _hy_wu_smollm2.report_smollm2(tmp_path)

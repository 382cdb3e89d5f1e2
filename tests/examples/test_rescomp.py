import csv
import math
from pathlib import Path

import _quantization
import _quantization_smollm2
import _smollm2
import pytest
import rescomp
import torch

from lightning_weights.modules import CausalLM


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescomp, "SETTINGS", {name: (bits, 96, 0.4) for name, (bits, *_) in rescomp.SETTINGS.items()})
    monkeypatch.setattr(_quantization, "HELD_OUT_INPUTS", 64)
    monkeypatch.setattr("sys.argv", ["rescomp.py", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)])
    rescomp.main()
    rows = rows_of(tmp_path / "summary.csv")
    assert rows.keys() == rescomp.METHODS.keys()
    errors = {method: float(row["calibration, 3 bits, 384 tokens"]) for method, row in rows.items()}
    assert errors["GPTAQ"] < errors["GPTQ"] < errors["RTN"]
    assert len(set(errors.values())) == len(errors), "two methods do the same"
    assert {path.name for path in tmp_path.iterdir()} == {"rescomp.png", "report.md", "runs.csv", "summary.csv"}


def test_inputs_of_a_made_up_layer_vary_along_few_directions() -> None:
    layer = _quantization.made_up_layer(seed=0, tokens=20_000, noise=0.0)
    assert torch.equal(layer.full, layer.quantized)
    eigenvalues = torch.linalg.eigvalsh(layer.full.T @ layer.full / len(layer.full)).flip(0)
    torch.testing.assert_close(eigenvalues[:8], torch.arange(1, 9) ** -0.6, rtol=0.1, atol=0.0)
    disturbed = _quantization.made_up_layer(seed=0, tokens=500, noise=0.3)
    change = (disturbed.quantized - disturbed.full).norm() / disturbed.full.norm()
    assert float(change) == pytest.approx(0.3, rel=0.1)


@pytest.fixture
def small_lm(monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    """A language model of two blocks, with text of Python's documentation in bytes."""
    pytest.importorskip("transformers")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    lm = CausalLM(config={"model_type": "llama", "vocab_size": 384, "tie_word_embeddings": True, **shape})
    monkeypatch.setattr(_smollm2, "_read", lambda: lm)
    monkeypatch.setattr(_quantization, "SOURCE", "bytes")
    for name, value in {"DEPTHS": (1, 2), "LENGTH": 32, "CALIBRATION": 4, "HELD_OUT": 4}.items():
        monkeypatch.setattr(_quantization, name, value)
    for cached in (_quantization._text, _quantization.full_precision, _quantization._quantize_smollm2):
        cached.cache_clear()
    yield lm
    for cached in (_quantization._text, _quantization.full_precision, _quantization._quantize_smollm2):
        cached.cache_clear()


def test_a_language_model_is_quantized_and_measured(small_lm: CausalLM) -> None:
    before = {key: value.clone() for key, value in small_lm.state_dict().items()}
    grid = {**_quantization.GRID, "group_size": 32, "block_size": 32}
    chosen = ("RTN", "GPTQ", "GPTAQ", "FOEM")
    found = {
        bits: {
            name: _quantization.quantize_smollm2({"bits": bits, **grid, **_quantization_smollm2.METHODS[name]}, seed=0)
            for name in chosen
        }
        for bits in (2, 8)
    }
    for bits, rows in found.items():
        for row in rows.values():
            assert bits < row["bits"] < bits + 2.6
            assert row["share of bfloat16"] == pytest.approx(row["bits"] / 16)
            assert row["gigabytes"] > 0.1 or math.isnan(row["gigabytes"])
            assert row["full precision"] == rows["RTN"]["full precision"]
        assert rows["GPTQ"]["error of layers"] < rows["RTN"]["error of layers"]
        assert len({row["perplexity"] for row in rows.values()}) == len(chosen)
    assert found[8]["RTN"]["perplexity"] == pytest.approx(found[8]["RTN"]["full precision"], rel=0.01)
    assert found[8]["GPTQ"]["error of block 2"] < 0.01 < found[2]["GPTQ"]["error of block 2"]
    assert all(torch.equal(value, before[key]) for key, value in small_lm.state_dict().items())


def test_seeds_choose_the_calibration_and_not_what_is_held_out(small_lm: CausalLM) -> None:
    a, b, again = (torch.cat([x["input_ids"] for x in _quantization.calibration_batches(seed)]) for seed in (0, 1, 0))
    assert a.shape == b.shape == (4, 32)
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    held_out = {tuple(row) for row in _quantization._text()[1].tolist()}
    assert len(held_out) == 4
    assert not held_out & {tuple(row) for row in torch.cat([a, b]).tolist()}


def test_all_methods_are_compared_at_full_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(settings, seed):
        row = {column.metric: 1.0 for column in _quantization_smollm2.COLUMNS}
        perplexity = 30.0 + seed - 4.0 * (settings.get("method") == "rescomp")
        return {**row, "perplexity": perplexity, "full precision": 18.0, "bits": settings["bits"] + 0.7}

    monkeypatch.setattr(_quantization_smollm2, "quantize_smollm2", pretend)
    monkeypatch.setattr(_quantization_smollm2, "FOLDER", tmp_path / "shared")
    monkeypatch.setattr(rescomp, "installed", lambda: True)
    monkeypatch.setattr(rescomp, "METHODS", {"GPTQ": {"method": "gptq"}})
    monkeypatch.setattr(rescomp, "report", lambda results, out: None)
    options = ["--scale", "full", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["rescomp.py", *options])
    rescomp.main()
    methods = _quantization_smollm2.METHODS.keys()
    ablations = _quantization_smollm2.ABLATIONS.keys()
    assert rows_of(tmp_path / "smollm2, 3 bits" / "summary.csv").keys() == methods | ablations
    assert rows_of(tmp_path / "smollm2, 2 bits" / "summary.csv").keys() == methods
    report = (tmp_path / "smollm2, 3 bits" / "report.md").read_text()
    assert "[x] ResComp on GPTAQ has a lower perplexity than GPTAQ: -4.00, 4 of 4 seeds" in report
    assert "[ ] ResComp on GPTQ has a lower perplexity than GPTQ: +0.00, 0 of 3 seeds" in report
    assert (tmp_path / "shared" / "quantization_smollm2.png").exists()

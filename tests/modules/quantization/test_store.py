"""Interrupted runs go on after the last group of layers that was finished."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_weights.functional.column_solver import CompensationConfig
from lightning_weights.modules import quantize
from lightning_weights.modules.quantization import solving
from tests.helpers.blocks import token_batches, transformer

CONFIG = CompensationConfig(method="gptaq", bits=3, group_size=8, mse_clip=False)

pytestmark = pytest.mark.filterwarnings("ignore:.*(fewer calibration tokens|whole network).*")


def run(
    folder: Path | None, blocks: str | None, config: Any = CONFIG, batches: Any = None, seed: int = 0, norm: float = 1.0
) -> Any:
    network = transformer(seed)
    network.layers[0].norm.weight.data.fill_(norm)
    batches = token_batches() if batches is None else batches
    report = quantize(network, batches, config, blocks=blocks, folder=folder, ignore=["head"], progress=False)
    return network, report


@pytest.mark.parametrize("blocks", [None, "layers"])
@pytest.mark.parametrize("finished", [1, 5])
def test_a_run_goes_on_where_it_ended(blocks, finished, tmp_path, monkeypatch):
    straight, report = run(None, blocks)
    solved, quantize_weight = [], solving.quantize_weight

    def failing(*args: Any, **options: Any) -> Any:
        if len(solved) == stop > 0:
            raise KeyboardInterrupt
        solved.append(options["name"])
        return quantize_weight(*args, **options)

    stop = finished
    monkeypatch.setattr(solving, "quantize_weight", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, blocks)
    assert len(list(tmp_path.glob("*.pt"))) == finished
    assert not list(tmp_path.glob("*.part"))
    stop = 0
    resumed, again = run(tmp_path, blocks)
    assert len(solved) == len(set(solved)) == 8
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert again.as_dict(times=False) == report.as_dict(times=False)


OTHERS = {
    "config": {"config": CompensationConfig(method="gptq", bits=3, group_size=8)},
    "calibration data": {"batches": token_batches()[::-1]},
    "weights": {"seed": 1},
    "weights ": {"norm": 0.5},
    "blocks": {"blocks": None},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_run_is_refused(name, tmp_path):
    run(tmp_path, "layers")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match=f"begun with other {name.strip()}. Go on with the same ones .a calibration loader must not"
    ):
        run(tmp_path, **{"blocks": "layers", **OTHERS[name]})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_are_plain(tmp_path):
    run(tmp_path, "layers")
    assert json.loads((tmp_path / "run.json").read_text())["config"]["method"] == "gptaq"
    for path in tmp_path.glob("*.pt"):
        saved = torch.load(path, weights_only=True)
        assert all(part[0]["codes"].dtype == torch.uint8 for part in saved["layers"].values())

"""Two processes: both have the statistics and the networks of one, and every image its own corruption."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_weights.callbacks import RWSPatch
from lightning_weights.data import Corrupted, Digits
from lightning_weights.modules import VGG, Classifier, ShallowSelector, extract_rws
from lightning_weights.runners import SignatureTrainer
from tests.helpers.battery import NOISE, differing, flat
from tests.helpers.tasks import make_trainer
from tests.helpers.two_processes import run_on_two

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.slow]

STRONG = {"corruption": "gaussian_noise", "strength": {"gaussian_noise": 0.5}}
OPTIONS = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "enable_checkpointing": False}
OPTIONS |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_train_batches": 2}


class Watching(Classifier):
    """Keeps its inputs and the statistics that validation sees."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.mean = self.network.features[1].running_mean.clone()
        self.inputs = torch.cat([*([self.inputs] if batch_idx else []), batch[0]])


def results(folder: Path, strategy: Any = "auto", devices: int = 1) -> dict[str, Any]:
    """Return the networks of a SignatureTrainer, and what a patched validation saw and left behind."""
    torch.manual_seed(0)
    network = VGG(in_channels=1, stages=[[4], [6]], batch_norm=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    robust = {name: value + 0.1 * torch.randn_like(value.float()) for name, value in before.items()}
    file = str(folder / f"{devices}.safetensors")
    extract_rws(before, before, robust, ShallowSelector(1), levels=16).save(file)
    module, data = Watching(network), Digits(batch_size=20, as_images=True, validation_size=40, shuffle=False)
    patch = RWSPatch([file], bn="reestimate", bn_batches=2)
    trainer = make_trainer([patch], strategy=copy.deepcopy(strategy), devices=devices)
    trainer.validate(module, datamodule=Corrupted(data, **STRONG), verbose=False)
    left = {name: value - before[name] for name, value in network.state_dict().items()}
    options = {**OPTIONS, "strategy": strategy, "devices": devices}
    networks = SignatureTrainer(options, module, data, **STRONG, folder=str(folder / str(devices))).run()
    return flat({"mean": module.mean, "inputs": module.inputs, "left": left, **networks._asdict()})


def scenarios(rank: int, folder: Path) -> dict[str, Any]:
    """Run on two processes."""
    return results(folder, DDPStrategy(), 2)


def test_both_processes_measure_and_make_the_same(tmp_path):
    first, second = run_on_two(scenarios, tmp_path)
    single, parts = results(tmp_path), [first.pop(".inputs"), second.pop(".inputs")]
    assert not differing(first, second)
    assert not any(value.any() for name, value in first.items() if name.startswith(".left"))
    torch.testing.assert_close(first[".mean"], single[".mean"])
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), single[".inputs"])
    assert not torch.equal(first[".robust.network.head.weight"], first[".standard.network.head.weight"])

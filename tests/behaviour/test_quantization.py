"""Two processes that share the calibration data quantize as one process does with all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import GPTAQ
from lightning_weights.functional.column_solver import CompensationConfig, FOEMConfig
from lightning_weights.modules import quantize, sweep_beta
from tests.helpers.battery import NOISE
from tests.helpers.blocks import token_batches, transformer
from tests.helpers.tasks import make_trainer
from tests.helpers.two_processes import run_on_two

pytestmark = [
    pytest.mark.filterwarnings(NOISE),
    pytest.mark.filterwarnings("ignore:.*(fewer calibration tokens|whole network).*"),
    pytest.mark.slow,
]

SMALL: dict[str, Any] = {"bits": 3, "group_size": 8, "mse_clip": False}
GPTQ = CompensationConfig(method="gptq", **SMALL)
LAYERS = "q|k|down"  # two groups of layers in every block: each costs some twenty exchanges
RUNS: dict[str, dict[str, Any]] = {
    "blocks": {"config": CompensationConfig(method="gptaq", **SMALL), "blocks": "layers", "targets": LAYERS},
    "whole": {"config": FOEMConfig(**SMALL), "targets": LAYERS},
    "packed": {"config": GPTQ, "blocks": "layers", "targets": LAYERS, "export": "packed", "measure_blocks": True},
}
SAMPLES = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))


class Experts(nn.Module):
    """Each sign of the first input has an expert of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return what one expert makes of all inputs."""
        return self.experts[int(x[0, 0] > 0)](x)


def experts() -> Experts:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Experts()


class Small(LightningModule):
    """A module to be tested."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self(batch[0]).square().mean(), sync_dist=True)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(SAMPLES), batch_size=5, shuffle=True)


def quantized(batches: Any, **options: Any) -> dict[str, Any]:
    """Return the weights of the quantized network, and what is reported but for times."""
    network = transformer(blocks=2 if options["config"].asymmetric else 1)
    report = quantize(network, batches, **options, progress=False)
    return {"weights": network.state_dict(), "report": report.as_dict(times=False)}


def after_a_test(**options: Any) -> dict[str, Any]:
    """Return the weights of a module after its test by a Trainer."""
    torch.manual_seed(0)
    module, callback = Small(), GPTAQ(config=CompensationConfig(**SMALL), num_samples=30)
    loader = DataLoader(TensorDataset(SAMPLES), batch_size=5)
    make_trainer([callback], **options).test(module, loader, verbose=False)
    return {"weights": module.state_dict(), "tokens": callback.report.layers[0].tokens}


def refused(work: Any) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def spoiled(rank: int) -> Any:
    batches = [SAMPLES.clone() for _ in range(2)]
    batches[1][rank - 1] = float("nan") if rank else 0.0
    return quantize(nn.Sequential(nn.Linear(16, 4)), batches, GPTQ, progress=False)


def scenarios(rank: int, folder: Path) -> dict[str, Any]:
    """Quantize in many ways with this process's share of the data."""
    share, found = token_batches(5)[rank::2], {}
    for name, options in RUNS.items():
        found[name] = quantized(share, **options)
    for name in ("stored", "again"):
        found[name] = quantized(share, folder=folder / "layers", **RUNS["packed"])
    found["idle"] = quantized([] if rank else token_batches(5), **RUNS["packed"])
    sign = torch.tensor(1.0 if rank else -1.0)
    network = experts()
    quantize(network, [SAMPLES.abs() * sign], GPTQ, progress=False)
    found["experts"] = {"weights": network.state_dict()}
    network, where = transformer(blocks=1), {"blocks": "layers", "targets": LAYERS, "progress": False}
    sweep = sweep_beta(network, share, [0.0, 0.2], share[:1], FOEMConfig(**SMALL), **where)
    found["sweep"] = {"weights": network.state_dict(), "betas": sweep.betas}
    found["tested"] = after_a_test(strategy=DDPStrategy(), devices=2)
    found["spoiled"] = refused(lambda: spoiled(rank))
    network = transformer()
    fully_shard(network.layers[0])
    network.layers[0](torch.zeros(1, 2, 16))  # gathers its weights
    found["sharded"] = refused(lambda: quantize(network, token_batches(), GPTQ, progress=False))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what each of the two processes found."""
    return run_on_two(scenarios, tmp_path_factory.mktemp("quantization"))


def same(a: dict[str, Any], b: dict[str, Any], tolerance: float = 0.0) -> bool:
    if a["weights"].keys() != b["weights"].keys():
        return False
    return all(torch.allclose(v, b["weights"][name], rtol=0.0, atol=tolerance) for name, v in a["weights"].items())


@pytest.mark.parametrize("name", [*RUNS, "stored", "again", "idle", "experts", "sweep", "tested"])
def test_all_processes_end_with_the_same_bits(ranks, name):
    assert same(ranks[0][name], ranks[1][name])
    assert ranks[0][name].get("report") == ranks[1][name].get("report")


@pytest.mark.parametrize("name", RUNS)
def test_statistics_are_those_of_one_process(ranks, name):
    alone = quantized(token_batches(5), **RUNS[name])
    assert same(alone, ranks[0][name], 1e-5)
    assert not same(alone, quantized(token_batches(5)[::2], **RUNS[name]), 1e-5)
    rows = zip(alone["report"]["layers"], ranks[0][name]["report"]["layers"], strict=True)
    assert all(a["tokens"] == b["tokens"] for a, b in rows)
    assert alone["report"]["blocks"] == pytest.approx(ranks[0][name]["report"]["blocks"], rel=1e-3)


def test_a_process_without_data_takes_part(ranks):
    assert same(quantized(token_batches(5), **RUNS["packed"]), ranks[1]["idle"], 1e-5)


def test_finished_layers_are_shared(ranks):
    assert same(ranks[0]["stored"], ranks[0]["again"])
    assert same(ranks[0]["stored"], ranks[0]["packed"])


def test_layers_that_one_process_reaches_are_quantized_on_both(ranks):
    network = experts()
    quantize(network, [-SAMPLES.abs(), SAMPLES.abs()], GPTQ, progress=False)
    assert same({"weights": network.state_dict()}, ranks[0]["experts"], 1e-5)
    assert not torch.equal(network.experts[1].weight, experts().experts[1].weight)


def test_a_trainer_deals_the_samples_to_its_processes(ranks):
    alone = after_a_test()
    assert ranks[0]["tested"]["tokens"] == ranks[1]["tested"]["tokens"] == alone["tokens"] == 30
    assert same(alone, ranks[0]["tested"], 1e-5)


def test_an_error_of_one_process_is_one_of_both(ranks):
    assert ranks[1]["spoiled"].startswith("ValueError: the inputs of 0 hold NaN or infinity in calibration batch 1")
    assert ranks[0]["spoiled"].startswith("RuntimeError: process 1 failed: the inputs of 0 hold NaN")


def test_sharded_weights_are_refused(ranks):
    for rank in ranks:
        assert rank["sharded"].startswith("ShardedParameterError: quantization needs whole weights")
        assert "use DDP" in rank["sharded"]

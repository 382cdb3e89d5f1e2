"""Training by reinforcement on two processes: the same on both, and what one process with all prompts does."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_weights.callbacks import GradientRewardWeights, HypervolumeMetaReward
from lightning_weights.data import DigitSums
from lightning_weights.data._prompt_data import columns
from lightning_weights.modules import RewardWeighting
from tests.helpers.battery import NOISE, differing, flat
from tests.helpers.tasks import make_trainer
from tests.helpers.toy_rl import OBJECTIVES, toy_module
from tests.helpers.two_processes import run_on_two

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.slow]
SIZES = {"maximize": [True, False, True], "reference": [-0.1, 9.0, -0.1], "scale": [1.0, 9.0, 1.0]}
KINDS = {
    "linear": {"estimator": "rloo"},
    "whitened": {"estimator": "reinforce++", "kl_coef": 0.05, "micro_batch_size": 3},
    "normalised first": {"aggregation": "normalize_then_sum"},
}
SYMBOLS = "0123456789S."
GROUP = 4


class Ordered(DigitSums):
    """Serves batches that are, over all processes, those of one process."""

    def train_dataloader(self) -> Any:
        self.setup()
        processes = dist.get_world_size() if dist.is_initialized() else 1
        sampler = DistributedSampler(self._parts[0], shuffle=False) if processes > 1 else None
        return DataLoader(self._parts[0], batch_size=8 // processes, sampler=sampler, collate_fn=columns)


def written(prompt: str, place: int) -> str:
    """Return a response that depends on the prompt and on its place in the group alone."""
    generator = torch.Generator().manual_seed(100 * int(prompt) + place % GROUP)
    length = int(torch.randint(1, 6, (), generator=generator))
    return "".join(SYMBOLS[token] for token in torch.randint(len(SYMBOLS), (length,), generator=generator))


def train(kind: str, **options: Any) -> dict[str, Any]:
    """Train on responses that are given, and return what is left."""
    module = toy_module(**KINDS[kind], group_size=GROUP, optimizer=partial(torch.optim.SGD, lr=0.5))
    moving = GradientRewardWeights(OBJECTIVES, normalize="unit")
    callbacks = [moving] if kind == "linear" else [moving, HypervolumeMetaReward(OBJECTIVES, **SIZES)]

    def sample(policy: Any, prompts: Any, temperature: float, device: Any, generator: Any = None) -> Any:
        validating = generator is not None
        texts = [written(prompt, 0 if validating else place) for place, prompt in enumerate(prompts)]
        return module.responses.demonstrations(prompts, texts, device)

    module.responses.sample = sample
    trainer = make_trainer(callbacks, max_epochs=1, val_check_interval=1, **options)
    trainer.fit(module, Ordered(train_size=24, validation_size=8, test_size=8, val_batch_size=8))
    states = {type(callback).__name__: callback.state_dict() for callback in callbacks}
    lengths = module.responses.rewards["brevity"].state_dict()
    return flat({"policy": module.policy.state_dict(), "lengths": lengths, **states})


def gradients() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [[torch.randn(5, 3, generator=generator), torch.randn(3, generator=generator)] for _ in range(2)]


def scenarios(rank: int, folder: Path) -> dict[str, Any]:
    """Train every kind, and compare sharded gradients."""
    found: dict[str, Any] = {name: train(name, strategy=DDPStrategy(), devices=2) for name in KINDS}
    mesh = init_device_mesh("cpu", (2,))
    for name, placement in (("sharded", Shard(0)), ("replicated", Replicate())):
        rows = [[distribute_tensor(part, mesh, [placement]) for part in row] for row in gradients()]
        weighting = RewardWeighting(["a", "b"], normalize="unit", layers="first")
        found[name] = weighting.update(rows, names=["first", "second"])
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_two(scenarios, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", KINDS)
def test_processes_agree_with_each_other_and_with_one(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert not differing(first, second)
    assert not differing(train(name), first, 1e-5)  # gradients are summed in another order
    begun = toy_module().policy.state_dict()
    assert any(not torch.equal(value, first[f".policy.{key}"]) for key, value in begun.items())
    assert first[".lengths.responses"] == 24 * GROUP


def test_sharded_gradients_weigh_what_whole_ones_do(ranks: list[dict[str, Any]]) -> None:
    want = RewardWeighting(["a", "b"], normalize="unit", layers="first").update(gradients(), names=["first", "second"])
    for rank in ranks:
        for name in ("sharded", "replicated"):
            torch.testing.assert_close(rank[name], want)

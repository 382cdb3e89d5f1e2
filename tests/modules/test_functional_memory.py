"""The LightningModule: learns what no single adapter can, keeps the base, and resumes."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_weights.callbacks import ExactResume
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import FunctionalMemory, WeightGenerator
from lightning_weights.modules.functional_memory import split_batch
from tests.helpers.battery import NOISE, SaveAt
from tests.helpers.edits import backbone, batch, generator, module
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)


def loader(size=12, per=4):
    whole = batch(size)
    return DataLoader([{name: part[row] for name, part in whole.items()} for row in range(size)], batch_size=per)


def fit(made, epochs=2, extra=(), ckpt=None, **options):
    torch.manual_seed(1)
    trainer = make_trainer([*extra], max_epochs=epochs, **options)
    trainer.fit(made, loader(), ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return trainer


def test_training_changes_the_generator_alone_and_lowers_the_loss():
    made, data = module(lr=0.01), batch(12)
    before = copy.deepcopy(made.memory.backbone.state_dict())
    start = made.memory_loss(data).item()
    fit(made, epochs=1)
    optimizer = made.configure_optimizers()
    for _ in range(45):  # as a loop of one's own would
        optimizer.zero_grad()
        made.memory_loss(data).backward()
        optimizer.step()
    assert made.memory_loss(data).item() < 0.7 * start
    assert all(torch.equal(value, before[name]) for name, value in made.memory.backbone.state_dict().items())
    other = made.memory_loss(data, lambda own: own.select(torch.arange(12).roll(1))).item()
    assert other > made.memory_loss(data).item()


def test_the_first_loss_is_the_bases():
    data = batch()
    expected = nn.functional.mse_loss(backbone()(data["inputs"]), data["target"])
    assert torch.equal(module().memory_loss(data), expected)


def test_optimizers_see_the_generator_only():
    made = module()
    ids = {id(param) for group in made.configure_optimizers().param_groups for param in group["params"]}
    assert ids == {id(param) for param in made.memory.generator.parameters()}
    made.optimizer, made.lr_scheduler = torch.optim.SGD, lambda own: torch.optim.lr_scheduler.StepLR(own, 1)
    found = made.configure_optimizers()
    assert isinstance(found["optimizer"], torch.optim.SGD)
    assert found["lr_scheduler"]["interval"] == "step"


def test_checkpoints_hold_the_generator_and_training_resumes_exactly(tmp_path):
    path = tmp_path / "memory.ckpt"
    straight = module(condition_dropout=0.3)
    fit(straight, extra=[ExactResume(), SaveAt("on_train_batch_end", 2, path)])
    checkpoint = torch.load(path, weights_only=True)
    assert not any("backbone" in name for name in checkpoint["state_dict"])
    resumed = module(condition_dropout=0.3)
    fit(resumed, extra=[ExactResume()], ckpt=path)
    ours, theirs = (made.state_dict() for made in (straight, resumed))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if torch.is_tensor(value))
    assert not torch.equal(ours["memory.generator.head_b.bias"], torch.zeros(6))
    with pytest.raises(ValueError, match="belongs to another backbone"):
        fit(module(seed=4), ckpt=path)
    parts = {"backbone": backbone(), "generator": generator(seed=7), "loss_fn": nn.MSELoss()}
    loaded = FunctionalMemory.load_from_checkpoint(path, **parts, weights_only=True)
    assert (loaded.lr, loaded.memory.condition_dropout) == (0.02, 0.3)
    name = "memory.generator.head_b.bias"
    assert torch.equal(loaded.state_dict()[name], checkpoint["state_dict"][name])


def test_accumulation_and_clipping():
    whole, halves = module(optimizer=torch.optim.SGD), module(optimizer=torch.optim.SGD)
    data = batch(8)
    rows = [{name: part[row] for name, part in data.items()} for row in range(8)]
    for made, per, accumulate in ((whole, 8, 1), (halves, 4, 2)):
        trainer = make_trainer([], max_epochs=1, accumulate_grad_batches=accumulate, gradient_clip_val=1.0)
        trainer.fit(made, DataLoader(rows, batch_size=per))
    torch.testing.assert_close(whole.memory.generator.head_b.weight, halves.memory.generator.head_b.weight)


def test_bf16_autocast():
    made = module()
    trainer = fit(made, epochs=1, precision="bf16-mixed")
    trainer.validate(made, loader(), verbose=False)
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert made.memory.generator.head_b.weight.dtype == torch.float32
    assert made.memory.generator.head_b.weight.any()


def test_batches_may_be_tuples_or_mappings():
    made, data = module(), batch()
    names = ("condition", "inputs", "target", "task")
    expected = made.memory_loss(data)
    assert torch.equal(made.memory_loss(tuple(data[name] for name in names)), expected)
    assert torch.equal(made.memory_loss([data[name] for name in names[:3]]), expected)
    assert torch.equal(made.memory_loss({**data, "inputs": [data["inputs"]]}), expected)
    finished = {**data, "condition": made.adapters(data)}
    assert torch.equal(made.memory_loss(finished), expected)
    assert split_batch(finished).size == split_batch(data).size == 6
    assert torch.equal(made.predict_step(data, 0), made(data["condition"], data["inputs"]))


class WithLoss(nn.Module):
    """As a language model returns its own loss."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 4)

    def forward(self, x, labels=None):
        y = self.net(x)
        return {"y": y} if labels is None else {"y": y, "loss": (y - labels).square().mean()}


def test_losses_of_the_backbone():
    made = WeightGenerator({"net": (4, 4)}, 1, 3, rank=2, token_dim=4, dim=16, head_dim=8, depth=1, prefix="")
    memory, data = FunctionalMemory(WithLoss(), made), batch()
    own = {"condition": data["condition"], "inputs": {"x": data["inputs"], "labels": data["target"]}}
    assert memory.memory_loss(own).requires_grad
    with pytest.raises(ValueError, match="result has no loss; give one"):
        memory.memory_loss({**own, "inputs": {"x": data["inputs"]}})


def test_export(tmp_path):
    module().export_lora(batch(), str(tmp_path), index=2)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"condition": torch.zeros(1, 1, 3), "x": 1}, "the batch has x; allowed are condition, inputs"),
        ({"condition": torch.zeros(1, 1, 3)}, "the batch has no inputs"),
        (torch.zeros(3), "the batch is a Tensor"),
        ((1,), "the batch is a tuple"),
    ],
    ids=range(4),
)
def test_bad_batches(bad, message):
    with pytest.raises(ValueError, match=message):
        module().memory_loss(bad)


def test_gradients_that_nobody_uses_are_told():
    made = module()
    made.memory.backbone.head.requires_grad_(True)
    with pytest.warns(LightningWeightsWarning, match=r"2 parameters .* such as backbone.head.weight, but only"):
        made.on_fit_start()


def test_bad_arguments():
    with pytest.raises(ValueError, match="lr is -1"):
        FunctionalMemory(backbone(), generator(), lr=-1.0)

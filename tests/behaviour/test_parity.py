"""torch.compile, Fabric and plain loops give the numbers of the Trainer."""

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch._dynamo.utils import counters

from tests.behaviour.subjects import every_setup, own_optimizers
from tests.helpers.battery import NOISE, Setup, differing, flat, small_module, tasks, train

pytestmark = pytest.mark.filterwarnings(NOISE)

STEPS = 12


def loop(row: Setup, step: Any = None, fabric: Any = None, decay: float = 1.0) -> dict[str, Any]:
    """Train on the first task and return weights and optimizer state.

    Args:
        row: What to train.
        step: Makes the function that takes a step from the optimizer.
        fabric: Where to train, if not in plain PyTorch.
        decay: Factor of the learning rate after every step.
    """
    network = row.make_network()
    optimizer = row.make_optimizer(network.parameters())
    model, driver = (network, optimizer) if fabric is None else fabric.setup(network, optimizer)
    take_step = driver.step if step is None else step(driver)
    data = list(tasks().train_dataloader())
    for index in range(STEPS):
        x, y = data[index % len(data)]
        driver.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward() if fabric is None else fabric.backward(loss)
        take_step()
        for group in optimizer.param_groups:
            group["lr"] *= decay
    return flat({"weights": network.state_dict(), "optimizer": optimizer.state_dict()})


@own_optimizers
def test_fabric_and_a_plain_loop_agree_with_the_trainer(row):
    plain = loop(row)
    assert not differing(plain, loop(row, fabric=Fabric(accelerator="cpu", devices=1)))
    trained = train(row, callbacks=[], max_epochs=STEPS // 4)
    for name, value in plain.items():
        theirs = name.replace(".weights.", ".weights.net.").replace(".optimizer.", ".optimizer.0.")
        assert not differing({name: value}, {name: trained[theirs]}), name


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_frames() -> int:
    return counters["stats"]["unique_graphs"]


@own_optimizers
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("decay", [1.0, 0.9], ids=["constant", "scheduled"])
def test_a_compiled_step_gives_the_same_numbers_and_is_not_compiled_again(row, decay):
    graphs = []

    def compiled(optimizer: Any) -> Any:
        step = torch.compile(optimizer.step, backend="aot_eager")

        def take_step() -> None:
            step()
            graphs.append(compiled_frames())

        return take_step

    assert not differing(loop(row, decay=decay), loop(row, step=compiled, decay=decay))
    # One that is traced may compile while its state is made and its changing numbers are recognised, but not later.
    assert graphs[3:] == [graphs[2]] * len(graphs[3:]), f"graphs after every step: {graphs}"


@every_setup
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_module_gives_the_same_numbers(row):
    module = torch.compile(small_module(row), backend="aot_eager")
    assert not differing(train(row), train(row, module), row.rounding)
    assert compiled_frames() > 0, "nothing was compiled"


@every_setup
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_network_inside_a_module_gives_the_same_numbers(row):
    module = small_module(row)
    module.net = torch.compile(module.net, backend="aot_eager")
    found = {name.replace("._orig_mod", ""): value for name, value in train(row, module).items()}
    assert not differing(train(row), found, row.rounding)
    assert compiled_frames() > 0, "nothing was compiled"

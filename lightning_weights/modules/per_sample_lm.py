"""A language model that is trained on one loss per sample."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.functional.glow import linear_losses, next_token_losses
from lightning_weights.modules._pretrained import IGNORED
from lightning_weights.modules.causal_lm import CausalLM

LARGEST = 1 << 24  # logits of a batch from which on they aren't made as a whole: 64 MiB in fp32
CHECKED = 8  # tokens on which the last layer is compared with the whole model
TOLERANCE = 0.01  # of the largest logit


class PerSampleLM(CausalLM):
    r"""Train a causal language model on the mean over samples of each sample's mean loss per predicted token.

    $$L = \frac{1}{B} \sum_i w_i\, \frac{1}{T_i} \sum_t -\log p_\theta(x_{it} \mid x_{i,<t})$$

    Long and short answers count the same, unlike with `CausalLM`. With the callback ``GLOW`` the samples are weighted;
    without it, w = 1. Arguments, logged values and evaluation are those of `CausalLM`.

    Where the logits of a batch would be large, and the model's last layer is a plain linear one, they are made for a
    few rows at a time, in the forward and again in the backward pass.

    Examples:
        >>> shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> lm = PerSampleLM(config={"model_type": "llama", "vocab_size": 384, **shape})
        >>> lm.sample_losses(torch.randint(384, (2, 5)), torch.full((2, 5), 7)).shape
        torch.Size([2])
    """

    _plain_head: bool | None = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the table of a callback ``GLOW`` that isn't there, as in inference."""
        super().on_load_checkpoint(checkpoint)
        if not hasattr(self, "glow"):
            checkpoint["state_dict"].pop("glow.history", None)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        losses = self.sample_losses(batch["input_ids"], batch["labels"], batch.get("attention_mask"))
        glow = getattr(self, "glow", None)  # the callback's
        loss = losses.mean() if glow is None else glow(losses)
        self.log("train/loss", losses.detach().mean(), batch_size=len(losses), prog_bar=True)
        return loss

    def sample_losses(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the mean loss per predicted token of every sample, (N,), in fp32.

        Args:
            input_ids: Tokens, (N, T).
            labels: Labels, unshifted, (N, T); -100 where nothing is to be predicted.
            attention_mask: Which tokens aren't padding, (N, T).
        """
        head = self.model.get_output_embeddings()
        if head is None or input_ids.numel() * head.weight.shape[0] <= LARGEST or not self._is_plain(head, input_ids):
            return next_token_losses(self(input_ids, attention_mask).logits, labels, ignore_index=IGNORED)
        states = self._states(input_ids, attention_mask)
        return linear_losses(states, head.weight, labels, head.bias, ignore_index=IGNORED)

    def _states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        decoder: Any = self.model.get_decoder()
        return decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def _is_plain(self, head: nn.Module, input_ids: Tensor) -> bool:
        """Tell whether logits are what the last layer makes of the decoder's states, and nothing else."""
        if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
            return False
        if hasattr(head.weight, "placements") or not hasattr(self.model, "get_decoder"):
            return False
        if getattr(self.model.config, "final_logit_softcapping", None) is not None:  # small logits don't show it
            return False
        if self._plain_head is None:  # some models scale or bend their logits
            few = input_ids[:1, :CHECKED]
            with torch.no_grad(), evaluation_mode(self.model):
                logits = self(few).logits
                difference = (head(self._states(few, None)) - logits).abs().max()
            self._plain_head = bool(difference <= TOLERANCE * logits.abs().max())
        return self._plain_head

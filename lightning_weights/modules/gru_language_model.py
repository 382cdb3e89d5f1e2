"""A language model small enough for seconds."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number


class LanguageModelOutput(NamedTuple):
    """What a language model returns, under the names that transformers gives them.

    Attributes:
        logits: Logits of the next tokens, (N, T, vocabulary).
        past_key_values: What the model remembers of the tokens so far, or None.

    Examples:
        >>> LanguageModelOutput(torch.zeros(1, 2, 3), None).logits.shape
        torch.Size([1, 2, 3])
    """

    logits: Tensor
    past_key_values: Tensor | None


class GRULanguageModel(nn.Module):
    """Predict tokens with one recurrent layer, behind the interface of transformers' causal language models.

    Args:
        vocabulary: Number of tokens.
        hidden: Units of the layer.
        embedding: Numbers that stand for a token.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> model = GRULanguageModel(vocabulary=14)
        >>> model(torch.zeros(2, 5, dtype=torch.long)).logits.shape
        torch.Size([2, 5, 14])
    """

    def __init__(self, vocabulary: int, hidden: int = 32, embedding: int = 16) -> None:
        check_number("vocabulary", vocabulary, low=2, whole=True)
        check_number("hidden", hidden, low=1, whole=True)
        check_number("embedding", embedding, low=1, whole=True)
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.recurrence = nn.GRU(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Tensor | None = None,
        use_cache: bool = False,
    ) -> LanguageModelOutput:
        """Return logits of shape (N, T, vocabulary), and with ``use_cache`` the state after the last token.

        Args:
            input_ids: Tokens, (N, T), padded on the left if at all before the first token that is remembered.
            attention_mask: 1 for tokens, 0 for padding, of all tokens so far.
            past_key_values: What an earlier call has returned.
            use_cache: Whether to return the state.
        """
        x = self.embedding(input_ids)
        if past_key_values is not None or attention_mask is None:
            states, last = self.recurrence(x, past_key_values)
        else:
            states, last = self._skip_padding(x, attention_mask)
        return LanguageModelOutput(self.head(states), last if use_cache else None)

    def _skip_padding(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Begin every row at its first token: padding on the left moves to the right, where nothing depends on it."""
        width = x.shape[1]
        first = mask.long().argmax(dim=1, keepdim=True)
        places = (torch.arange(width, device=x.device) + first) % width
        states, _ = self.recurrence(torch.take_along_dim(x, places[:, :, None], dim=1))
        back = (torch.arange(width, device=x.device) - first) % width
        states = torch.take_along_dim(states, back[:, :, None], dim=1)
        return states, states[:, -1].unsqueeze(0).contiguous()

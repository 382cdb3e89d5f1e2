"""Sampling from causal language models, and the log-probabilities of what was sampled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.evaluation_mode import evaluation_mode


class Rollout(NamedTuple):
    """Prompts, padded on the left, and responses, padded on the right, side by side.

    Attributes:
        input_ids: Tokens, (N, P + R).
        attention_mask: 1 for tokens, 0 for padding, (N, P + R).
        response_mask: 1 for tokens of the response up to and including the one that stopped it, (N, R).

    Examples:
        >>> rollout = Rollout(torch.tensor([[7, 1, 2]]), torch.ones(1, 3), torch.tensor([[1.0, 0.0]]))
        >>> rollout.input_ids[:, -rollout.response_mask.shape[1] :]
        tensor([[1, 2]])
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor

    def rows(self, part: slice) -> Rollout:
        """Return some of the rows."""
        return Rollout(*(tensor[part] for tensor in self))

    def responses(self) -> list[list[int]]:
        """Return the tokens of every response, without padding."""
        tokens = self.input_ids[:, -self.response_mask.shape[1] :].tolist()
        lengths = self.response_mask.sum(dim=1).long().tolist()
        return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


def pad_left(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Return sequences of different lengths as one tensor, and the mask of what is real.

    Args:
        rows: Tokens of each sequence, at least one each.
        padding: Token that fills up.

    Raises:
        ValueError: If there is no sequence, or an empty one.

    Examples:
        >>> pad_left([[5, 6], [7]], padding=0)
        (tensor([[5, 6],
                [0, 7]]), tensor([[1, 1],
                [0, 1]]))
    """
    width = max(map(len, rows), default=0)
    if min(map(len, rows), default=0) == 0:
        raise ValueError(f"{len(rows)} prompts, of which one has no token; allowed are prompts of one token and more")
    tokens = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


@torch.no_grad()
def generate(
    policy: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    padding: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Continue prompts token by token, all of a batch at once, with the keys and values of earlier tokens kept.

    The policy takes ``input_ids`` and ``attention_mask`` and returns ``logits``, as models of transformers do. If it
    takes them, it gets ``position_ids``, ``logits_to_keep``, ``use_cache`` and ``past_key_values`` (``cache`` in newer
    models); one that returns no cache reads all tokens again for each new one. It is in evaluation mode meanwhile.
    Nothing but the temperature shapes what is drawn: no top-k, no top-p, no penalty.

    Args:
        policy: Causal language model.
        input_ids: Prompts, padded on the left, (N, P).
        attention_mask: 1 for tokens of prompts, (N, P).
        max_new_tokens: Most tokens of a response.
        stop_tokens: Tokens that end a response, of which they are part.
        padding: Token that fills up.
        temperature: What logits are divided by; 0 takes the most likely token.
        generator: Where numbers are drawn from; None: the global generator.

    Returns:
        Prompts and responses; R is the length of the longest response.

    Raises:
        ValueError: If a number is out of range, or shapes don't fit.

    Examples:
        >>> from types import SimpleNamespace
        >>> class Counter(nn.Module):
        ...     def forward(self, input_ids, attention_mask):
        ...         return SimpleNamespace(logits=nn.functional.one_hot((input_ids + 1) % 9, 9).float())
        >>> prompts = torch.tensor([[1, 2], [0, 6]])
        >>> rule = {"max_new_tokens": 3, "stop_tokens": [8], "padding": 0, "temperature": 0.0}
        >>> generate(Counter(), prompts, (prompts > 0).long(), **rule).responses()
        [[3, 4, 5], [7, 8]]
    """
    check_number("max_new_tokens", max_new_tokens, low=1, whole=True)
    check_number("temperature", temperature, low=0.0)
    if input_ids.ndim != 2 or attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids have shape {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)}; allowed "
            f"is (N, P) for both"
        )
    stops = torch.tensor(list(stop_tokens), dtype=input_ids.dtype, device=input_ids.device)
    tokens, mask, cache = input_ids, attention_mask, None
    running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    masks = []
    takes, name = _arguments(policy)
    with evaluation_mode(policy):
        for _ in range(max_new_tokens):
            unread = tokens if cache is None else tokens[:, -1:]
            output = _call(policy, takes, unread, mask, keep=1, use_cache=True, **{name: cache})
            cache = getattr(output, name, None) if takes(name) else None
            drawn = torch.where(running, _draw(output.logits[:, -1], temperature, generator), padding)
            masks.append(running)
            tokens = torch.cat([tokens, drawn[:, None]], dim=1)
            mask = torch.cat([mask, running[:, None].to(mask.dtype)], dim=1)
            running = running & ~torch.isin(drawn, stops)
            if not bool(running.any()):
                break
    return Rollout(tokens, mask, torch.stack(masks, dim=1).float())


def response_log_probs(policy: nn.Module, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of every token of the responses, in fp32 or wider.

    Only the logits of responses are asked for, of models that take ``logits_to_keep``.

    Args:
        policy: Causal language model, as in [`generate`][].
        rollout: Prompts and responses.
        temperature: That they were drawn with; with 0, where nothing was drawn, 1.

    Returns:
        Log-probabilities with a gradient to the policy, (N, R); what stands in the padding means nothing.

    Examples:
        >>> from types import SimpleNamespace
        >>> class Uniform(nn.Module):
        ...     def forward(self, input_ids, attention_mask):
        ...         return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))
        >>> response_log_probs(Uniform(), Rollout(torch.tensor([[1, 2, 3]]), torch.ones(1, 3), torch.ones(1, 2)))
        tensor([[-1.3863, -1.3863]])
    """
    width = rollout.response_mask.shape[1]
    takes, _ = _arguments(policy)
    output = _call(policy, takes, rollout.input_ids, rollout.attention_mask, keep=width + 1, use_cache=False)
    logits = output.logits[:, -width - 1 : -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / (temperature or 1.0)
    targets = rollout.input_ids[:, -width:]
    return -nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def _arguments(policy: nn.Module) -> tuple[Callable[[str], bool], str]:
    """Return whether a policy takes an argument, and its name for the cache, also if torch.compile or peft wrap it."""
    inner: Any = getattr(policy, "_orig_mod", policy)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    parameters = inspect.signature(inner.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    cache = "cache" if "cache" in parameters else "past_key_values"
    return lambda name: anything or name in parameters, cache


def _call(
    policy: nn.Module, takes: Callable[[str], bool], tokens: Tensor, mask: Tensor, keep: int, **options: Any
) -> Any:
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    options |= {"position_ids": positions[:, -tokens.shape[1] :], "logits_to_keep": keep}
    taken = {name: value for name, value in options.items() if takes(name)}
    return policy(input_ids=tokens, attention_mask=mask, **taken)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    shares = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(shares, 1, generator=generator).squeeze(1)

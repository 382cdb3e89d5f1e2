"""Between texts and tensors: prompts to tokens, responses to rewards."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.dynamic_reward import check_rewards
from lightning_weights.functional.rollout import Rollout, generate, pad_left
from lightning_weights.modules._pretrained import load_tokenizer

RewardFunction = Callable[..., Sequence[float | None]]
PURPOSE = "MultiObjectiveRL"  # who asks for models and tokenizers, in messages


class Responses:
    """Samples responses to prompts and scores them.

    Args:
        rewards: Reward function of each objective, with the interface of trl's.
        tokenizer: A tokenizer of transformers, or one with the same interface, or where one comes from.
        stop: Texts of one token that end a response, beside the end of a text.
        max_new_tokens: Most tokens of a response.
    """

    def __init__(
        self, rewards: Mapping[str, RewardFunction], tokenizer: Any, stop: Sequence[str], max_new_tokens: int
    ) -> None:
        check_number("max_new_tokens", max_new_tokens, low=1, whole=True)
        tokenizer = load_tokenizer(tokenizer, PURPOSE) if isinstance(tokenizer, str) else tokenizer
        self.rewards = dict(rewards)
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.stop_tokens = [self._single(text) for text in stop]
        end = tokenizer.eos_token_id
        if end is not None:
            self.stop_tokens.append(end)
        if not self.stop_tokens:
            raise ValueError("stop is empty and the tokenizer has no token for the end of a text; name one in stop")
        self.padding = self.stop_tokens[-1] if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def _single(self, text: str) -> int:
        tokens = self.encode(text)
        if len(tokens) != 1:
            raise ValueError(f"stop has {text!r}, which is {len(tokens)} tokens; allowed are texts of one token")
        return tokens[0]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def sample(
        self,
        policy: nn.Module,
        prompts: Sequence[str],
        temperature: float,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Return one response to every prompt."""
        tokens, mask = pad_left([self.encode(prompt) for prompt in prompts], self.padding)
        return generate(
            policy,
            tokens.to(device),
            mask.to(device),
            max_new_tokens=self.max_new_tokens,
            stop_tokens=self.stop_tokens,
            padding=self.padding,
            temperature=temperature,
            generator=generator,
        )

    def texts(self, rollout: Rollout) -> list[str]:
        """Return the responses as texts."""
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rollout.responses()]

    def score(self, rollout: Rollout, columns: Mapping[str, Sequence[Any]], validating: bool = False) -> Tensor:
        """Return the rewards, (N, K), fp32; in validation what a reward has ``evaluate`` for."""
        arguments = {
            "prompts": list(columns["prompt"]),
            "completions": self.texts(rollout),
            "completion_ids": rollout.responses(),
            **{name: list(values) for name, values in columns.items() if name != "prompt"},
        }
        found = []
        for name, reward in self.rewards.items():
            function = getattr(reward, "evaluate", reward) if validating else reward
            values = [float("nan") if value is None else float(value) for value in function(**arguments)]
            if len(values) != len(rollout.input_ids):
                raise ValueError(
                    f"reward {name!r} has returned {len(values)} numbers for {len(rollout.input_ids)} responses; "
                    f"allowed is one per response"
                )
            found.append(torch.tensor(values, dtype=torch.float32))
        rewards = torch.stack(found, dim=1).to(rollout.input_ids.device)
        check_rewards(rewards, list(self.rewards))
        return rewards

    def demonstrations(self, prompts: Sequence[str], texts: Sequence[str], device: torch.device) -> Rollout:
        """Return responses that are given, ended, as if they had been sampled."""
        tokens, mask = pad_left([self.encode(prompt) for prompt in prompts], self.padding)
        rows = [[*self.encode(text), self.stop_tokens[-1]] for text in texts]
        width = max(map(len, rows))
        responses = torch.tensor([row + [self.padding] * (width - len(row)) for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        parts = torch.cat([tokens, responses], dim=1), torch.cat([mask, real], dim=1), real.float()
        return Rollout(*(part.to(device) for part in parts))

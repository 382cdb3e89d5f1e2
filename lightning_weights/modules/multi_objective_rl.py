"""A LightningModule that trains a language model on several rewards at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.dynamic_reward import checked_weights
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.functional.rollout import response_log_probs
from lightning_weights.modules._policy_objective import Experience, PolicyObjective
from lightning_weights.modules._policy_training import PolicyTraining
from lightning_weights.modules._pretrained import build_model, load_model
from lightning_weights.modules._responses import PURPOSE, Responses
from lightning_weights.modules.causal_lm import DTYPES


class MultiObjectiveRL(PolicyTraining):
    r"""Train a causal language model by reinforcement on a weighted sum of several rewards.

    $$R_i = \sum_k w_k r_{ik}, \qquad L = \frac{\sum m\,\bigl(\ell(A, \rho) + \beta\,\mathrm{KL}\bigr)}{\sum m}$$

    Every step draws ``group_size`` responses to each prompt, scores them, compares them with each other and updates the
    policy with the dual-clip surrogate. The weights are fixed unless ``callbacks.GradientRewardWeights`` moves them;
    ``callbacks.HypervolumeMetaReward`` scales advantages. Batches are dicts of lists: ``prompt``, and the columns that
    reward functions ask for.

    The policy is the attribute ``policy``. Responses are drawn from the global generators: use
    ``callbacks.ExactResume`` to resume bit for bit. The reference is the policy as it is when reinforcement begins,
    without its adapters if peft has given it some; it is part of checkpoints.

    Logs ``train/<objective>`` (the raw rewards), ``train/loss``, ``train/kl``, ``train/clip_fraction`` and
    ``train/length``, and as means over validation, ``val/<objective>``, which is what a reward's ``evaluate`` returns
    if it has one, and ``val/length``; the same for test.

    Args:
        rewards: Reward function of each objective: ``f(prompts, completions, completion_ids, **columns)`` that returns
            one number per response, as trl has it.
        policy: Causal language model, with the interface of transformers'.
        model: Instead of ``policy``: where a pretrained one comes from, as for ``modules.CausalLM``.
        config: Instead of both: the configuration of a transformers model with random weights.
        tokenizer: ``bytes``, where one comes from, or a tokenizer. ``None``: that of ``model``.
        weights: Positive weights w with a sum of 1. ``None``: all alike.
        estimator: How advantages are estimated.
        aggregation: ``sum_then_normalize``, or ``normalize_then_sum`` (GDPO), which normalises every reward in its
            group, adds them and normalises over the batch; the estimator does nothing then.
        group_size: Responses n to each prompt.
        max_new_tokens: Most tokens of a response.
        temperature: Of sampling, above 0.
        val_temperature: Of validation and test; 0 takes the most likely tokens.
        stop: Texts of one token each that end a response, beside the end of a text.
        gamma: Discount γ of ``reinforce`` and ``reinforce++``.
        clip_low: ε below 1 of the surrogate's clip.
        clip_high: ε above 1.
        dual_clip: c > 1 of the second clip. ``None``: none.
        kl_coef: β of the divergence from the reference. 0: none.
        kl: Kind of the divergence; ``auto`` is ``mse`` for ``reinforce++`` and ``k3`` for all others.
        minibatches: Updates per step, each with a part of the prompts.
        micro_batch_size: Responses per forward and backward pass. ``None``: all at once.
        grad_clip: Largest norm of the gradient of an update. ``None``: none.
        warm_start_steps: First steps, that imitate the column ``demonstration`` instead.
        optimizer: Makes the optimizer from the parameters. ``None``: AdamW with learning rate 1e-6.
        lr_scheduler: Makes the scheduler from the optimizer, stepped after every update. ``None``: none.
        dtype: Type of the weights of ``model`` or ``config``.

    Raises:
        ValueError: If an argument is out of range, or not exactly one policy is given.
        MissingDependencyError: If transformers or gguf is needed and not installed.

    Source: Lu et al. 2025, arXiv:2509.11452, whose experiments these are.

    Examples:
        >>> from lightning_weights.data import SymbolTokenizer
        >>> from lightning_weights.modules import AccuracyReward, BrevityReward, GRULanguageModel
        >>> tokenizer = SymbolTokenizer("0123456789")
        >>> rewards = {"accuracy": AccuracyReward(r"\d"), "brevity": BrevityReward()}
        >>> model = MultiObjectiveRL(rewards, policy=GRULanguageModel(len(tokenizer)), tokenizer=tokenizer)
        >>> model.objectives, model.weights
        (['accuracy', 'brevity'], [0.5, 0.5])
    """

    def __init__(
        self,
        rewards: dict[str, Callable],
        policy: nn.Module | None = None,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: Any = None,
        weights: list[float] | None = None,
        estimator: Literal["grpo", "grpo_nostd", "rloo", "reinforce", "reinforce++"] = "grpo",
        aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize",
        group_size: int = 8,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        val_temperature: float = 0.0,
        stop: list[str] | None = None,
        gamma: float = 1.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = 3.0,
        kl_coef: float = 0.001,
        kl: Literal["auto", "k3", "mse"] = "auto",
        minibatches: int = 1,
        micro_batch_size: int | None = None,
        grad_clip: float | None = 1.0,
        warm_start_steps: int = 0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        _check_sources(rewards, policy, model, config, tokenizer)
        kinds = (estimator, aggregation, gamma, clip_low, clip_high, dual_clip, kl_coef, kl)
        objective = PolicyObjective(*kinds, total=self._total)
        _check_sizes(objective, group_size, temperature, minibatches, micro_batch_size)
        fixed = checked_weights("weights", weights, len(rewards))
        super().__init__(grad_clip, val_temperature, warm_start_steps, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=["rewards", "policy", "tokenizer", "optimizer", "lr_scheduler"])
        self.objectives = list(rewards)
        self.weights = fixed
        self.estimator = estimator
        self.objective = objective
        self.group_size = group_size
        self.temperature = temperature
        self.minibatches = minibatches
        self.micro_batch_size = micro_batch_size
        self.policy = _load(policy, model, config, dtype)
        source = model if tokenizer is None else tokenizer
        self.responses = Responses(rewards, source, stop or [], max_new_tokens)
        self.reward_weighting: Any = None  # of GradientRewardWeights during a fit
        self.meta_reward: Any = None  # of HypervolumeMetaReward during a fit

    def training_step(self, batch: Mapping[str, Sequence[Any]], batch_idx: int) -> None:
        """Sample, score and update, or imitate demonstrations during the warm start."""
        if self.global_step < self.warm_start_steps:
            self._imitate(batch)
            return
        experience = self._explore(batch)
        weights, gradient = self._weigh(experience)
        if gradient is not None:
            self._take(gradient)
            return
        advantages = self.objective.advantages(experience, weights, self.meta_reward)
        for part in experience.pieces(len(experience.group) // self.minibatches):
            self._update(experience.rows(part), advantages[part])

    @torch.no_grad()
    def _explore(self, batch: Mapping[str, Sequence[Any]]) -> Experience:
        columns = {name: [value for value in values for _ in range(self.group_size)] for name, values in batch.items()}
        prompts = len(batch["prompt"])
        if prompts % self.minibatches:
            raise ValueError(
                f"a batch of {prompts} prompts does not divide into minibatches={self.minibatches}; drop the last "
                f"batch or choose another number"
            )
        rollout = self.responses.sample(self.policy, columns["prompt"], self.temperature, self.device)
        rewards = self.responses.score(rollout, columns)
        group = torch.arange(prompts, device=self.device).repeat_interleave(self.group_size)
        means = {f"train/{name}": mean for name, mean in zip(self.objectives, rewards.mean(dim=0), strict=True)}
        lengths = rollout.response_mask.sum(dim=1)
        self.log_dict({**means, "train/length": lengths.mean()}, batch_size=len(rewards), sync_dist=True)
        plain = Experience(rollout, rewards, group, None, None)
        old = self._log_probs(self.policy, plain) if self.minibatches > 1 else None
        return plain._replace(old=old, reference=self._reference_log_probs(plain))

    def _log_probs(self, policy: nn.Module, experience: Experience) -> Tensor:
        """Return log-probabilities without dropout, as responses were drawn."""
        parts = [experience.rollout.rows(part) for part in experience.pieces(self.micro_batch_size)]
        with evaluation_mode(policy):
            return torch.cat([response_log_probs(policy, part, self.temperature) for part in parts])

    def _reference_log_probs(self, experience: Experience) -> Tensor | None:
        if self.objective.kl_coef == 0.0:
            return None
        if hasattr(self.policy, "disable_adapter"):
            with self.policy.disable_adapter():
                return self._log_probs(self.policy, experience)
        if not self._reference:
            self._reference = (self._frozen_copy(),)
        return self._log_probs(self._reference[0], experience)

    def _weigh(self, experience: Experience) -> tuple[Tensor, list[Tensor] | None]:
        """Return the weights, and the mixture's gradient where the objectives' gradients make it up."""
        fixed, weighting = experience.rewards.new_tensor(self.weights), self.reward_weighting
        if weighting is None:
            return fixed, None
        alone = [self.objective.advantages(experience, row) for row in torch.eye(len(fixed)).to(fixed)]
        tokens, sums, values = self._tokens(experience.rollout.response_mask), [], 0.0
        for part in experience.pieces(self.micro_batch_size):
            piece = experience.rows(part)
            logp = response_log_probs(self.policy, piece.rollout, self.temperature)
            common = not weighting.center
            results = [self.objective.loss(piece, logp, own[part], tokens, common) for own in alone]
            found = weighting.gradients([result.loss for result in results])
            pairs = zip(sums, found, strict=True)
            sums = [[a + b for a, b in zip(*rows, strict=True)] for rows in pairs] if sums else found
            values = values + torch.stack([torch.stack(result) for result in results]).detach()
        weights = weighting.update_from(sums).to(fixed)
        whole = self.minibatches == 1 and self.meta_reward is None
        common = self.objective.kl_coef == 0.0 or not weighting.center
        if not (whole and common and self.objective.is_linear):
            return weights, None
        self._log_losses(weights.to(values) @ values, len(experience.group))
        return weights, [sum(w * g for w, g in zip(weights, row, strict=True)) for row in zip(*sums, strict=True)]

    def _update(self, experience: Experience, advantages: Tensor) -> None:
        tokens, found = self._tokens(experience.rollout.response_mask), []
        for part in experience.pieces(self.micro_batch_size):
            piece = experience.rows(part)
            logp = response_log_probs(self.policy, piece.rollout, self.temperature)
            result = self.objective.loss(piece, logp, advantages[part], tokens)
            self.manual_backward(result.loss)
            found.append(torch.stack(result).detach())
        self._log_losses(torch.stack(found).sum(dim=0), len(experience.group))
        self._step()

    def _log_losses(self, values: Tensor, count: int) -> None:
        names = ("train/loss", "train/clip_fraction", "train/kl")
        self.log_dict(dict(zip(names, values, strict=True)), batch_size=count, sync_dist=True)

    def _take(self, gradient: list[Tensor]) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter, own in zip(trained, gradient, strict=True):
            parameter.grad = own if scaler is None else own * scaler.get_scale()  # the step divides by it
        self._step()


def _check_sources(rewards: Any, policy: Any, model: Any, config: Any, tokenizer: Any) -> None:
    if not isinstance(rewards, Mapping) or not rewards or not all(callable(reward) for reward in rewards.values()):
        raise ValueError(f"rewards is {rewards!r}; allowed is a dict of names and reward functions, one at least")
    if sum(source is not None for source in (policy, model, config)) != 1:
        raise ValueError(
            f"policy is {policy!r:.40}, model {model!r} and config {config!r}; give one of them: a module, where a "
            f"pretrained one comes from, or the configuration of one with random weights"
        )
    if model is None and tokenizer is None:
        raise ValueError("tokenizer is None, and there is no model to take it from; give one, 'bytes' for instance")


def _check_sizes(
    objective: PolicyObjective, group_size: int, temperature: float, minibatches: int, micro_batch_size: int | None
) -> None:
    check_number("group_size", group_size, low=2 if objective.compares else 1, whole=True)
    check_number("temperature", temperature, low=0.0, low_allowed=False)
    check_number("minibatches", minibatches, low=1, whole=True)
    if micro_batch_size is not None:
        check_number("micro_batch_size", micro_batch_size, low=1, whole=True)


def _load(policy: nn.Module | None, model: str | None, config: dict[str, Any] | None, dtype: str) -> nn.Module:
    check_choice("dtype", dtype, list(DTYPES))
    if policy is not None:
        return policy
    if model is not None:
        return load_model(model, DTYPES[dtype], PURPOSE)
    return build_model(config or {}, DTYPES[dtype], PURPOSE)

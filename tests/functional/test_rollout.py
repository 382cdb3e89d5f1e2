"""Sampling and log-probabilities: cached against whole, padded against alone."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_weights.functional.rollout import Rollout, generate, pad_left, response_log_probs
from lightning_weights.modules import GRULanguageModel

RULE = {"max_new_tokens": 6, "stop_tokens": [1], "padding": 0}


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(params=[lambda: GRULanguageModel(12, hidden=8), llama], ids=["gru", "llama"])
def policy(request):
    torch.manual_seed(0)
    model = request.param()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # distributions that are not flat
    return model


PROMPTS = pad_left([[5, 6, 7], [8], [9, 2]], padding=0)


def test_greedy_tokens_are_the_most_likely_ones_of_the_whole(policy):
    rollout = generate(policy, *PROMPTS, temperature=0.0, **RULE)
    for row in range(3):
        prompt = PROMPTS[0][row][PROMPTS[1][row] == 1].tolist()
        for token in rollout.responses()[row]:
            assert token == int(policy(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
            prompt.append(token)


def test_log_probabilities_do_not_depend_on_padding(policy):
    torch.manual_seed(1)
    rollout = generate(policy, *PROMPTS, **RULE)
    found = response_log_probs(policy, rollout, temperature=0.7)
    assert found.shape == rollout.response_mask.shape
    for row, response in enumerate(rollout.responses()):
        prompt = PROMPTS[0][row][PROMPTS[1][row] == 1].tolist()
        logits = policy(input_ids=torch.tensor([prompt + response])).logits[0].float() / 0.7
        want = torch.log_softmax(logits, dim=-1)[range(len(prompt) - 1, len(prompt) + len(response) - 1), response]
        torch.testing.assert_close(found[row, : len(response)], want, rtol=1e-4, atol=1e-5)


def test_parts_of_a_rollout_are_its_rows(policy):
    rollout = generate(policy, *PROMPTS, temperature=0.0, **RULE)
    whole = response_log_probs(policy, rollout)
    parts = [response_log_probs(policy, rollout.rows(slice(place, place + 1))) for place in range(3)]
    valid = rollout.response_mask == 1
    torch.testing.assert_close(torch.cat(parts)[valid], whole[valid], rtol=1e-4, atol=1e-5)
    assert whole.requires_grad


class Summing(nn.Module):
    """A model of one's own: it depends on all tokens, keeps nothing, and takes no argument but the two."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 12)

    def forward(self, input_ids, attention_mask):
        states = (self.embedding(input_ids) * attention_mask[:, :, None]).cumsum(dim=1)
        return SimpleNamespace(logits=states)


class Cached(Summing):
    """The same with a cache, in a newer release's words, and with logits of what is asked for alone."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, input_ids, attention_mask, cache=None, use_cache=False, logits_to_keep=0):
        states = super().forward(input_ids, attention_mask[:, -input_ids.shape[1] :]).logits
        states = states if cache is None else states + cache
        self.kept.append(logits_to_keep)
        return SimpleNamespace(logits=states[:, -logits_to_keep:], cache=states[:, -1:] if use_cache else None)


class Wrapped(nn.Module):
    """Takes everything and hands it on, as torch.compile and peft do."""

    def __init__(self, inner, name):
        super().__init__()
        self.inner = inner
        setattr(self, name, inner if name == "_orig_mod" else lambda: inner)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, partial(Wrapped, name="_orig_mod"), partial(Wrapped, name="get_base_model")]
)
def test_policies_without_a_cache_read_everything_again(wrap):
    plain, cached = Summing(), Cached()
    cached.load_state_dict(plain.state_dict())
    greedy = {"temperature": 0.0, "max_new_tokens": 5, "stop_tokens": [], "padding": 0}
    rollouts = [generate(wrap(model), *PROMPTS, **greedy) for model in (plain, cached)]
    assert rollouts[0].responses() == rollouts[1].responses()
    prompt = [5, 6, 7]
    for token in rollouts[0].responses()[0]:
        assert token == int(plain(torch.tensor([prompt]), torch.ones(1, len(prompt))).logits[0, -1].argmax())
        prompt.append(token)
    found = [response_log_probs(wrap(model), rollouts[0]) for model in (plain, cached)]
    torch.testing.assert_close(*found)
    assert cached.kept == [1, 1, 1, 1, 1, 6]


class Scripted(nn.Module):
    """Prefers the token after the last one."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.dropout = nn.Dropout()

    def forward(self, input_ids, attention_mask, past_key_values=None, use_cache=False):
        self.calls.append((tuple(input_ids.shape), self.dropout.training, attention_mask.tolist()))
        logits = 50.0 * nn.functional.one_hot((input_ids + 1) % 9, 9).float()
        return type("Output", (), {"logits": logits, "past_key_values": "kept"})


def test_responses_stop_and_are_padded():
    policy = Scripted()
    tokens, mask = pad_left([[3], [2, 6]], padding=0)
    rollout = generate(policy, tokens, mask, max_new_tokens=9, stop_tokens=[8, 5], padding=0)
    assert rollout.responses() == [[4, 5], [7, 8]]
    assert rollout.input_ids.tolist() == [[0, 3, 4, 5], [2, 6, 7, 8]]
    rollout = generate(policy, tokens, mask, max_new_tokens=9, stop_tokens=[8], padding=0)
    assert rollout.responses() == [[4, 5, 6, 7, 8], [7, 8]]
    assert rollout.input_ids[1].tolist() == [2, 6, 7, 8, 0, 0, 0]
    assert rollout.response_mask[1].tolist() == rollout.attention_mask[1, 2:].tolist() == [1, 1, 0, 0, 0]
    shapes = [call[0] for call in policy.calls[-5:]]
    assert shapes == [(2, 2), (2, 1), (2, 1), (2, 1), (2, 1)]
    assert not any(call[1] for call in policy.calls), "it was in training mode"
    assert policy.training
    assert policy.dropout.training


def test_draws_follow_the_generator_and_the_temperature():
    policy = GRULanguageModel(12, hidden=8)
    tokens, mask = pad_left([[5]] * 400, padding=0)
    draws = [
        generate(policy, tokens, mask, generator=torch.Generator().manual_seed(3), **{**RULE, "max_new_tokens": 1})
        for _ in range(2)
    ]
    assert torch.equal(draws[0].input_ids, draws[1].input_ids)
    shares = torch.bincount(draws[0].input_ids[:, 1], minlength=12) / 400
    with torch.no_grad():
        want = torch.softmax(policy(input_ids=tokens[:1]).logits[0, -1], dim=-1)
    assert (shares - want).abs().max() < 0.1
    before = torch.get_rng_state()
    generate(policy, tokens[:2], mask[:2], temperature=0.0, **RULE)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_input():
    policy = GRULanguageModel(12)
    with pytest.raises(ValueError, match="of which one has no token"):
        pad_left([[1], []], padding=0)
    with pytest.raises(ValueError, match="temperature is -1"):
        generate(policy, *PROMPTS, temperature=-1.0, **RULE)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generate(policy, *PROMPTS, **{**RULE, "max_new_tokens": 0})
    with pytest.raises(ValueError, match=r"input_ids have shape \(3, 3\) and attention_mask \(3, 1\)"):
        generate(policy, PROMPTS[0], PROMPTS[1][:, :1], **RULE)
    empty = Rollout(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 1))
    assert empty.responses() == [[]]

"""Matrices into tokens and back: counts, order, experts, layouts, bad input."""

import math
from types import MappingProxyType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lightning_weights.modules import ExpertGroup, LoRATokenizer

TARGETS = {"qkv": (16, 24), "down": (20, 16), "experts": ExpertGroup(3, {"w1": (16, 8), "w2": (8, 16)})}


def matrices(tokenizer, *leading):
    return {name: torch.randn(*leading, *shape) for name, shape in tokenizer.shapes.items()}


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from(["flat", "rank"]),
)
def test_round_trip_and_counts(targets, rank, width, layout):
    tokenizer = LoRATokenizer(targets, rank, width, layout)
    first = sum(math.ceil(rank * inputs / (rank * width)) for inputs, _ in targets.values())
    second = sum(math.ceil(outputs * rank / (rank * width)) for _, outputs in targets.values())
    assert tokenizer.counts == (first, second)
    assert tokenizer.numbers == sum(rank * (inputs + outputs) for inputs, outputs in targets.values())
    given = matrices(tokenizer, 2)
    tokens = tokenizer.tokenize(given, fill=math.nan)
    assert tokens.shape == (2, first + second, rank, width)
    assert tokens.isfinite().sum() == 2 * tokenizer.numbers
    assert all(torch.equal(part, given[name]) for name, part in tokenizer.detokenize(tokens).items())


@pytest.mark.parametrize("layout", ["flat", "rank"])
def test_all_a_come_first_and_experts_are_layers(layout):
    tokenizer = LoRATokenizer(TARGETS, 4, 8, layout)
    assert list(tokenizer.shapes) == [
        *("qkv.lora_A", "down.lora_A", "experts.w1.lora_A", "experts.w2.lora_A"),
        *("qkv.lora_B", "down.lora_B", "experts.w1.lora_B", "experts.w2.lora_B"),
    ]
    given = matrices(tokenizer, 5)
    again = tokenizer.detokenize(tokenizer.tokenize(given))
    layers = tokenizer.layers_of(again)
    assert torch.equal(layers["experts.2.w1"][0], given["experts.w1.lora_A"][:, 2])
    assert torch.equal(layers["experts.1.w2"][1], given["experts.w2.lora_B"][:, 1])
    assert torch.equal(layers["down"][1], given["down.lora_B"])
    assert len(layers) == 2 + 3 * 2


def test_the_published_sizes():
    experts = {"experts": 64, "weights": {"w1": (4096, 3072), "w2": (3072, 4096), "w3": (4096, 3072)}}
    plain = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 6144), "down": (3072, 4096)}
    tokenizer = LoRATokenizer({**plain, "experts": experts}, 16, 1024)
    assert tokenizer.counts == (719, 660)
    assert 32 * tokenizer.numbers == 722_993_152


@pytest.mark.parametrize("make", [OmegaConf.create, MappingProxyType, lambda value: value])
def test_mappings_of_other_kinds(make):
    given = make({"fc": [5, 6], "experts": {"experts": 2, "weights": {"w": [3, 4]}}})
    tokenizer = LoRATokenizer(given, 2, 4)
    assert tokenizer.targets == {"fc": (5, 6), "experts": ExpertGroup(2, {"w": (3, 4)})}
    assert {type(value) for value in tokenizer.targets.values()} == {tuple, ExpertGroup}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, 2, 4), "targets is {}"),
        (({"fc": (5,)}, 2, 4), "sizes of 'fc' are"),
        (({"fc": (5, 0)}, 2, 4), "sizes of 'fc' is 0"),
        (({"fc": "56"}, 2, 4), "sizes of 'fc' are '56'"),
        (({"fc": {"experts": 2}}, 2, 4), r"targets\['fc'\] has experts; a group has experts and weights"),
        (({"fc": {"experts": 2, "weights": {}}}, 2, 4), "weights is {}"),
        (({"fc": (5, 6)}, 0, 4), "rank is 0"),
        (({"fc": (5, 6)}, 2, 4.5), "token_dim is 4.5"),
        (({"fc": (5, 6)}, 2, 4, "column"), "layout is 'column'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoRATokenizer(*arguments)


def test_bad_tensors():
    tokenizer = LoRATokenizer({"fc": (5, 6)}, 2, 4)
    given = matrices(tokenizer)
    with pytest.raises(ValueError, match=r"matrices has fc.lora_A; allowed are fc.lora_A, fc.lora_B"):
        tokenizer.tokenize({"fc.lora_A": given["fc.lora_A"]})
    with pytest.raises(ValueError, match=r"fc.lora_A has shape \(5, 2\)"):
        tokenizer.tokenize({**given, "fc.lora_A": given["fc.lora_A"].t()})
    with pytest.raises(ValueError, match=r"tokens has shape .*; allowed is \(..., 4, 2, 4\)"):
        tokenizer.detokenize(torch.zeros(5, 2, 4))

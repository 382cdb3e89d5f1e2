"""Fingerprints tell networks apart, and not the forms of one."""

import torch
from torch import nn

from lightning_weights.functional.fingerprint import fingerprint, plain_name


def named(seed=0, width=5):
    torch.manual_seed(seed)
    return dict(nn.Linear(3, width).named_parameters())


def test_same_networks_have_one_and_others_another():
    assert fingerprint(named()) == fingerprint(dict(reversed(named().items())))
    narrow = {name: param.bfloat16() for name, param in named().items()}
    compiled = {f"_orig_mod.{name}": param for name, param in named().items()}
    assert fingerprint(named()) == fingerprint(narrow) == fingerprint(compiled)
    renamed = {f"net.{name}": param for name, param in named().items()}
    assert len({fingerprint(own) for own in (named(), named(1), named(width=6), renamed)}) == 4


def test_without_values_it_says_nothing():
    assert fingerprint(dict(nn.Linear(3, 5, device="meta").named_parameters())) == ""
    assert plain_name("a._orig_mod.b") == "a.b"

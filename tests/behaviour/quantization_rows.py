"""Rows of the battery for what quantizes a trained network: see subjects.py."""

from typing import Any

from torch import nn

from lightning_weights.errors import ShardedParameterError
from tests.helpers.battery import Setup, Subject

_OPTIONS: dict[str, Any] = {
    "targets": "net.0",
    "ignore": ["net.3"],
    "blocks": "net",
    "num_samples": 64,
    "when": "fit_end",
    "export": "packed",
    "cache_device": "meta",
    "on_missing": "skip",
    "mask": "mask",
    "force_tied": True,
    "measure_blocks": True,
    "folder": "layers",
}
_SETTINGS: dict[str, Any] = {
    "bits": 4,
    "group_size": 4,
    "sym": False,
    "mse_clip": False,
    "grid": "gptq",
    "act_order": False,
    "static_groups": True,
    "block_size": 4,
    "damp": 0.1,
    "damp_increment": 0.05,
    "alpha": 0.5,
    "alpha_cae": 0.75,
    "outer": "current",
    "clamp_scope": "block_last",
}
_WRONG = ("num_samples", "all")
_FOEM = {"beta": 0.2, "variant": "v1", "pull": "none", "pull_block_start": True}
_ROOM = "lightning_weights.callbacks"

SUBJECTS = {
    f"{_ROOM}.CompensationQuantization": Subject(
        {**_OPTIONS, "config": {"method": "gptaq", **_SETTINGS}}, wrong=_WRONG
    ),
    f"{_ROOM}.GPTQ": Subject({"config": _SETTINGS, **_OPTIONS}, wrong=_WRONG),
    f"{_ROOM}.GPTAQ": Subject({"config": _SETTINGS, **_OPTIONS}, wrong=_WRONG),
    f"{_ROOM}.ResComp": Subject({"config": _SETTINGS, "base": "gptq", **_OPTIONS}, wrong=_WRONG),
    f"{_ROOM}.FOEM": Subject({"config": {**_SETTINGS, "alpha_cae": 0.0, **_FOEM}, **_OPTIONS}, wrong=_WRONG),
}


def three_layers(dropout: float) -> nn.Module:
    """Return a network with 4 inputs and 2 classes."""
    hidden = nn.Linear(4, 8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(8, 2))


def _quantizing(name: str, target: str, **options: Any) -> tuple[str, dict[str, Any]]:
    config = {"bits": 4, "group_size": 4, "mse_clip": False}
    return f"{_ROOM}.{name}", {"config": config, "targets": target, "when": "fit_end", **options}


_SGD = ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9})
_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_REFUSES = {"fsdp2": ShardedParameterError, "no matrices": ValueError}

SETUPS = (
    Setup(
        "rescomp",
        _SGD,
        (_quantizing("ResComp", "net.0"), _quantizing("GPTAQ", "net.3"), _quantizing("GPTQ", "net.5"), _EXACT),
        network=three_layers,
        refuses=_REFUSES,
    ),
    Setup(
        "foem",
        _SGD,
        (_quantizing("FOEM", "net.0"), _quantizing("CompensationQuantization", "net.3"), _EXACT),
        refuses=_REFUSES,
    ),
)

"""Rows of the battery for robust weight signatures: see subjects.py."""

from pathlib import Path

from lightning_weights.errors import ShardedParameterError
from tests.helpers.battery import Setup, Subject

# extract_rws(network, *others, levels=16, corruption="fog", severity=5) of two_layers(0.0) after torch.manual_seed(0),
# where others are two state dicts with torch.randn_like / 10 added to every tensor in their order, one after the other
SIGNATURE = Path(__file__).parent / "data" / "fog.safetensors"

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.callbacks.RWSPatch": Subject(
        {
            "signatures": ["fog.safetensors", "frost.safetensors"],
            "scales": [0.5, 2.0],
            "stages": ["validate", "test"],
            "bn": "reestimate",
            "bn_batches": 3,
            "weighting": "published",
            "network": "net",
        },
        wrong=("stages", "fit"),
    ),
}

SETUPS: tuple[Setup, ...] = (
    Setup(
        "rws",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
        (
            ("lightning_weights.callbacks.RWSPatch", {"signatures": [str(SIGNATURE)], "scales": [0.5]}),
            ("lightning_weights.callbacks.ExactResume", {}),
        ),
        refuses={"fsdp2": ShardedParameterError, "no matrices": ValueError},
    ),
)

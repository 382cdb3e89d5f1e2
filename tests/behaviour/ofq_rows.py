"""Rows of the battery for quantization-aware training."""

from lightning_weights.errors import ShardedParameterError
from tests.helpers.battery import Setup, Subject

_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_ANNEALING = {"boundary_range": 0.1, "start_epoch": 2, "lr": 0.005}

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.callbacks.OFQ": Subject(
        {
            "weight_bits": 3,
            "act_bits": 4,
            "modules": ["net.0"],
            "skip": ["net.3"],
            "edge_bits": 6,
            "qkr": ["attention"],
            "keep_query_bias": True,
            "weight_quantizer": "lsq",
            "granularity": "tensor",
            "distillation": 0.5,
            "temperature": 2.0,
            "network": "net",
            "track_oscillation": False,
            "momentum": 0.1,
            "calibration_batches": 2,
            "force": True,
        },
        wrong=("weight_quantizer", "log"),
    ),
    "lightning_weights.callbacks.ConfidenceGuidedAnnealing": Subject(
        {"boundary_range": 0.01, "start_epoch": 2, "lr": 1e-4, "anneal_qk": False}, wrong=("boundary_range", "narrow")
    ),
    "lightning_weights.callbacks.OscillationTracker": Subject(
        {"momentum": 0.1, "threshold": 0.05, "log_every_n_steps": 10, "freeze_threshold": 0.3},
        wrong=("momentum", "slow"),
    ),
}

SETUPS: tuple[Setup, ...] = (
    Setup(
        "ofq",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
        (
            ("lightning_weights.callbacks.OFQ", {"modules": ["net.*"], "distillation": 0.0}),
            ("lightning_weights.callbacks.ConfidenceGuidedAnnealing", _ANNEALING),
            ("lightning_weights.callbacks.OscillationTracker", {"log_every_n_steps": 1}),
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError, "no matrices": ValueError},
    ),
)

VARIANTS: tuple[Setup, ...] = (
    Setup(
        "ofq_activations",
        ("torch.optim.AdamW", {"lr": 0.02}),
        (
            ("lightning_weights.callbacks.OFQ", {"act_bits": 3, "modules": ["net.0"], "granularity": "channel"}),
            ("lightning_weights.callbacks.OscillationTracker", {"momentum": 0.1, "freeze_threshold": 0.2}),
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError},
        differs={"ddp": "the first scales come from the first batch of process 0, which is half as large"},
    ),
)

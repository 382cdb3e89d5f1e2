"""Rows of the battery for electronic synapses."""

from lightning_weights.errors import ShardedParameterError
from tests.helpers.battery import Setup, Subject

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.optimizers.PulseSGD": Subject(
        {
            "lr": 0.2,
            "rounding": "nearest",
            "max_pulses": 5,
            "sign_threshold": 0.4,
            "refresh": "pulsed",
            "refresh_every": 2,
            "refresh_threshold": 0.8,
            "refresh_low": 0.05,
            "seed": 3,
        },
        wrong=("rounding", "floor"),
    ),
    "lightning_weights.callbacks.HardwareSynapses": Subject(
        {
            "device": {"kind": "exp", "n_states": 32, "nu_ltp": 3.0, "c2c": 0.1},
            "mode": "bidirectional",
            "modules": ["net.*"],
            "exclude": ["net.3"],
            "w_scale": 2.0,
            "split": True,
            "input_bits": 6,
            "error_bits": 8,
            "seed": 3,
            "read_out_on_end": True,
        },
        wrong=("mode", "triple"),
    ),
}

_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_ROUNDED = {  # a last bit of a gradient decides whether there is a pulse
    "accumulation": "gradients summed in another order are rounded to other pulses",
    "ddp": "gradients summed in another order are rounded to other pulses",
}
_PULSES = {"lr": 1.0, "seed": 3}
_DEVICE = {"kind": "soft", "n_states": 64, "d2d_states": 0.2, "c2c": 0.1}

SETUPS: tuple[Setup, ...] = (
    Setup(
        "hw_synapse",
        ("lightning_weights.optimizers.PulseSGD", _PULSES),
        (("lightning_weights.callbacks.HardwareSynapses", {"device": _DEVICE}), _EXACT),
        refuses={"fsdp2": ShardedParameterError, "no matrices": ValueError},
        differs=_ROUNDED,
    ),
)

VARIANTS: tuple[Setup, ...] = (
    Setup(
        "hw_synapse_bidirectional",
        ("lightning_weights.optimizers.PulseSGD", {**_PULSES, "rounding": "nearest"}),
        (
            (
                "lightning_weights.callbacks.HardwareSynapses",
                {"device": {"kind": "exp", "d2d_nu": 0.2, "stuck": 0.05}, "mode": "bidirectional"},
            ),
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError},
        differs=_ROUNDED,
    ),
)

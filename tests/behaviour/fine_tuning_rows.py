"""Rows of the battery for fine-tuning under a memory budget, and for the regulariser of bounded weights."""

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_weights.errors import ShardedParameterError
from tests.helpers.battery import Setup, Subject

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.optimizers.GradNormLoRPAdamW": Subject(
        {
            "lr": 0.01,
            "betas": [0.8, 0.9],
            "eps": 1e-4,
            "weight_decay": 0.1,
            "rank": 1,
            "update_proj_gap": 5,
            "scale": 0.5,
            "proj_type": "left",
            "state_bits": 8,
            "svd": "gram",
            "moment_transport": "rotate",
            "sign_fix": False,
        },
        wrong=("proj_type", "both"),
    ),
    "lightning_weights.callbacks.GradNormLoRP": Subject(
        {
            "r": 2,
            "alpha": 4.0,
            "dropout": 0.1,
            "target_modules": ["net.0"],
            "modules_to_save": ["net.3"],
            "detach_norm": False,
            "merge_every": 5,
            "merge_on_fit_end": True,
        },
        wrong=("mode", "dense"),
    ),
    "lightning_weights.optimizers.LIFTAdamW": Subject(
        {
            "lr": 0.01,
            "betas": [0.8, 0.9],
            "eps": 1e-4,
            "weight_decay": 0.1,
            "budget_rank": None,
            "density": 0.5,
            "filter_rank": 1,
            "update_interval": 50,
            "selector": "bottom",
            "svd": "exact",
            "seed": 3,
            "state_dtype": "float64",
            "stochastic_rounding": True,
        },
        wrong=("selector", "largest"),
    ),
    "lightning_weights.callbacks.LIFTFinetuning": Subject(
        {
            "target_modules": ["net.0", "net.3"],
            "exclude_modules": ["head"],
            "train_other": True,
            "sparse_grads": False,
            "log_mask_churn": False,
            "save_delta": True,
        },
        wrong=("sparse_grads", "sometimes"),
    ),
    "lightning_weights.callbacks.BoneFinetuning": Subject(
        {
            "r": 2,
            "variant": "free",
            "target_modules": ["net.0", "net.3"],
            "exclude_modules": ["head"],
            "rank_pattern": {"net.0": 4},
            "modules_to_save": ["net.3"],
            "grid": [1, 2],
            "mini_r": 2,
            "dropout": 0.1,
            "keep": "step",
            "merge_on_fit_end": True,
            "save_adapter_only": False,
        },
        wrong=("variant", "diagonal"),
    ),
    "lightning_weights.callbacks.WeightCompander": Subject(
        {
            "kappa": 2.5,
            "beta": 1.5,
            "function": "tanh",
            "learnable": True,
            "share": "channel",
            "modules": ["net.*"],
            "exclude": ["net.3"],
            "init": "latent",
            "lr_scale": 0.1,
            "merge_on_end": True,
            "decay_target": "effective",
        },
        wrong=("function", "cube"),
    ),
}

_PLAIN_SGD = ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9})
_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_PROJECTED = {"lr": 0.02, "eps": 1e-3, "rank": 1, "update_proj_gap": 4}
_PRINCIPAL = {"lr": 0.02, "eps": 1e-3, "budget_rank": 1, "filter_rank": 1, "update_interval": 5}

SETUPS: tuple[Setup, ...] = (
    Setup(
        "gradnorm_lorp",
        ("lightning_weights.optimizers.GradNormLoRPAdamW", _PROJECTED),
        (
            ("lightning_weights.callbacks.GradNormLoRP", {"r": 2, "modules_to_save": ["net.3"], "merge_every": 5}),
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError, "no matrices": ValueError},
    ),
    Setup(
        "lift",
        ("lightning_weights.optimizers.LIFTAdamW", _PRINCIPAL),
        (("lightning_weights.callbacks.LIFTFinetuning", {}), _EXACT),
        refuses={"fsdp2": ShardedParameterError, "no matrices": ValueError},
    ),
    Setup(
        "bone",
        _PLAIN_SGD,
        (("lightning_weights.callbacks.BoneFinetuning", {"r": 4, "modules_to_save": ["net.3"]}), _EXACT),
        refuses={"fsdp2": ShardedParameterError, "no matrices": ValueError},
    ),
    Setup(
        "weight_compander",
        _PLAIN_SGD,
        (
            ("lightning_weights.callbacks.WeightCompander", {"kappa": 2.5, "beta": 1.5, "learnable": True}),
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError, "no matrices": MisconfigurationException},
    ),
)

VARIANTS: tuple[Setup, ...] = (
    Setup(
        "gradnorm_lorp_full",
        ("lightning_weights.optimizers.GradNormLoRPAdamW", {**_PROJECTED, "moment_transport": "rotate"}),
        (("lightning_weights.callbacks.GradNormLoRP", {"mode": "full", "detach_norm": False}), _EXACT),
        refuses={"fsdp2": ShardedParameterError},
    ),
    Setup(
        "lift_whole_gradients",
        ("lightning_weights.optimizers.LIFTAdamW", _PRINCIPAL),
        (("lightning_weights.callbacks.LIFTFinetuning", {"train_other": True, "sparse_grads": False}), _EXACT),
        refuses={"fsdp2": ShardedParameterError},
    ),
    Setup(
        "bone_row",
        _PLAIN_SGD,
        (
            (
                "lightning_weights.callbacks.BoneFinetuning",
                {"r": 2, "variant": "row", "save_adapter_only": False},
            ),
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError},
    ),
    Setup(
        "weight_compander_decay",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
        (
            (
                "lightning_weights.callbacks.WeightCompander",
                {"learnable": True, "share": "global", "lr_scale": 0.5, "decay_target": "effective"},
            ),
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError},
    ),
)

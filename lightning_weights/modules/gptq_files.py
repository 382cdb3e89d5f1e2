"""Quantized networks as files: the layout of GPTQ, which transformers, vLLM and others read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import lightning_weights
from lightning_weights.errors import check_choice
from lightning_weights.functional._safetensors import safetensors
from lightning_weights.functional.bit_packing import BLOCK, pack_bits, packed_words, unpack_bits
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules.quantized_linear import QuantizedLinear

WEIGHTS, CONFIG, MODEL_CONFIG = "model.safetensors", "quantize_config.json", "config.json"
FORMATS = ("gptq", "gptq_v2")
BITS = (2, 3, 4, 8)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
PURPOSE = "Reading and writing quantized networks"
OWN = ("codes", "scales", "zeros", "g_idx", "code_bits")


def write_gptq(
    module: nn.Module,
    folder: str | Path,
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq",
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a network whose layers are quantized into a folder that GPTQ's readers take.

    ``model.safetensors`` has four tensors per quantized layer: ``qweight``, int32 of shape (in_features·bits/32,
    out_features), the codes of a column one after the other in the bits of its words; ``qzeros``, int32 of shape
    (groups, out_features·bits/32), packed alike along a row; ``scales``, shape (groups, out_features); and ``g_idx``,
    int32, the group of every input. All other tensors are in it under their names and in their types; of tensors that
    share memory, the first. ``quantize_config.json`` says how they are to be read. If the network has a configuration
    of transformers, ``config.json`` has that and the same under ``quantization_config``.

    The format ``gptq``, the first and the one that all readers know, holds every zero less one. So it has no place for
    a zero of 0, which asymmetric grids may have; ``gptq_v2`` holds zeros as they are.

    Args:
        module: What the names count from: of a ``CausalLM`` its ``model``.
        folder: Where the files go; made if it is not there. Each is replaced whole.
        checkpoint_format: See above.
        scale_dtype: Type of the scales. Readers expect ``float16``, which rounds them to 11 bits; ``float32`` is exact.
        meta: What is to be noted in the configuration beside the writer, as JSON takes it.

    Raises:
        ValueError: If no layer is quantized, one does not fit the format, or they differ in bits or group size.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> import tempfile
        >>> network = nn.Sequential(QuantizedLinear(64, 32, bits=3, groups=2))
        >>> network[0].g_idx[32:], network[0].zeros[:] = 1, 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_gptq(network, folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['model.safetensors', 'quantize_config.json']
    """
    check_choice("checkpoint_format", checkpoint_format, FORMATS)
    check_choice("scale_dtype", scale_dtype, list(DTYPES))
    save = safetensors("hf", PURPOSE).save_file
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear) and name}
    config = _describe(module, layers, checkpoint_format, dict(meta or {}))
    tensors = _others(module, layers)
    for name, layer in layers.items():
        packed = _to_gptq(name, layer, checkpoint_format, DTYPES[scale_dtype])
        tensors |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
    folder = Path(folder)
    with replacing_file(folder / WEIGHTS) as path:
        save(tensors, path, metadata={"format": "pt"})
    _write_json(folder / CONFIG, config)
    if hasattr(module, "config") and hasattr(module.config, "to_dict"):
        _write_json(folder / MODEL_CONFIG, {**module.config.to_dict(), "quantization_config": config})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, default=str) + "\n"
    with replacing_file(path) as part:
        part.write_text(text, "utf-8")


def _describe(
    module: nn.Module, layers: Mapping[str, QuantizedLinear], checkpoint_format: str, meta: dict[str, Any]
) -> dict[str, Any]:
    """Return the configuration that all layers share."""
    if not layers:
        raise ValueError("module contains no QuantizedLinear; quantize it with export='packed' first")
    bits = {name: layer.bits for name, layer in layers.items()}
    if len(set(bits.values())) > 1 or next(iter(bits.values())) not in BITS:
        raise ValueError(f"layers have {bits} bits; allowed is one of {', '.join(map(str, BITS))} for all")
    groups = {name: layer.g_idx.bincount(minlength=layer.groups) for name, layer in layers.items()}
    several = {name: int(sizes.max()) for name, sizes in groups.items() if len(sizes) > 1}
    size = next(iter(several.values()), -1)
    one = {name: layer.in_features for name, layer in layers.items() if layer.groups == 1}
    if len(set(several.values())) > 1 or any(features > size for features in one.values() if several):
        raise ValueError(f"layers have groups of {several | one} columns; allowed is one size for all")
    in_order = all(torch.equal(layer.g_idx, _contiguous(layer.in_features, size)) for layer in layers.values())
    middle = 2 ** (next(iter(bits.values())) - 1)
    whole = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return {
        "quant_method": "gptq",
        "bits": next(iter(bits.values())),
        "group_size": size,
        "desc_act": not in_order,
        "sym": all(bool((layer.zeros == middle).all()) for layer in layers.values()),
        "lm_head": "lm_head" in layers,
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
        # readers that go by the names of layers leave these alone
        "dynamic": {f"-:^{re.escape(name)}$": {} for name in whole if name != "lm_head"},
        "meta": {"quantizer": [f"lightning-weights:{lightning_weights.__version__}"], **meta},
    }


def _contiguous(in_features: int, group_size: int) -> Tensor:
    columns = torch.arange(in_features, dtype=torch.int32)
    return torch.zeros_like(columns) if group_size == -1 else columns // group_size


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _others(module: nn.Module, layers: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    """Return the tensors that are not quantized; tied ones once, as readers tie them again."""
    own = {f"{name}.{key}" for name in layers for key in OWN}
    others, seen = {}, set()
    for key, tensor in module.state_dict().items():
        if key in own or (tensor.numel() and _place(tensor) in seen):
            continue
        seen.add(_place(tensor))
        others[key] = tensor.detach().cpu().contiguous()
    return others


def _to_gptq(name: str, layer: QuantizedLinear, checkpoint_format: str, dtype: torch.dtype) -> dict[str, Tensor]:
    if layer.in_features % BLOCK or layer.out_features % BLOCK:
        raise ValueError(
            f"{name} has {layer.in_features} inputs and {layer.out_features} outputs; allowed in GPTQ's files are "
            f"multiples of {BLOCK}. Leave the layer out when quantizing, or keep the state dict instead"
        )
    zeros, offset = layer.zeros.cpu().int(), int(checkpoint_format == "gptq")
    if offset and not bool(zeros.all()):
        raise ValueError(
            f"{name} has zeros of 0, which the format 'gptq' has no place for; use checkpoint_format='gptq_v2', or a "
            f"symmetric grid"
        )
    scales = layer.scales.cpu().to(dtype)
    if not bool(torch.isfinite(scales).all()) or bool(((scales == 0) & (layer.scales.cpu() != 0)).any()):
        raise ValueError(f"{name} has scales that {dtype} can't hold; use scale_dtype='float32'")
    return {
        "qweight": layer.codes.cpu().T.contiguous(),
        "qzeros": pack_bits((zeros - offset).T, layer.bits),
        "scales": scales.T.contiguous(),
        "g_idx": layer.g_idx.cpu(),
    }


def read_gptq(module: nn.Module, folder: str | Path) -> nn.Module:
    """Load what ``write_gptq`` or another writer of GPTQ's files has put into a folder.

    Layers that are quantized in the files take the place of the ``nn.Linear`` that the network has there. Nothing has
    changed if this fails.

    Args:
        module: Network that fits the files, such as ``CausalLM(config=...).model``, changed in place.
        folder: Folder with ``quantize_config.json``, or ``config.json`` with a ``quantization_config``, and
            ``model.safetensors``.

    Returns:
        The network.

    Raises:
        ValueError: If the folder lacks a file, is in another format, or does not fit the network.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> import tempfile
        >>> network = nn.Sequential(QuantizedLinear(64, 32, bits=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_gptq(network, folder, "gptq_v2")
        ...     read_gptq(nn.Sequential(nn.Linear(64, 32)), folder)[0]
        QuantizedLinear(in_features=64, out_features=32, bits=4, groups=1, bias=True)
    """
    folder = Path(folder)
    config = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; a file that is split into several has to be joined first")
    tensors = safetensors("hf", PURPOSE).load_file(folder / WEIGHTS)
    names = [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]
    layers = {name: _from_gptq(name, tensors, config, _layer(module, name)) for name in names}
    others = {key: value for key, value in tensors.items() if key.rpartition(".")[0] not in layers}
    _check_others(module, others, layers)
    for name, layer in layers.items():
        module.set_submodule(name, layer)
    module.load_state_dict(others, strict=False)
    return module


def _read_config(folder: Path) -> dict[str, Any]:
    if (folder / CONFIG).is_file():
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    elif (folder / MODEL_CONFIG).is_file():
        config = json.loads((folder / MODEL_CONFIG).read_text("utf-8")).get("quantization_config", {})
    else:
        config = {}
    if not {"bits", "group_size"} <= config.keys():
        raise ValueError(
            f"{folder} has no {CONFIG}, and no {MODEL_CONFIG} with a quantization_config, that has bits and group_size"
        )
    config["checkpoint_format"] = config.get("checkpoint_format", config.get("format", "gptq"))
    check_choice("quant_method", config.get("quant_method", "gptq"), ["gptq"])
    check_choice("checkpoint_format", config["checkpoint_format"], FORMATS)
    check_choice("bits", config["bits"], BITS)
    check_choice("pack_dtype", config.get("pack_dtype", "int32"), ["int32"])
    return config


def _layer(module: nn.Module, name: str) -> nn.Linear | QuantizedLinear:
    layer = dict(module.named_modules()).get(name)
    if not isinstance(layer, nn.Linear | QuantizedLinear):
        raise ValueError(f"{name} is quantized in the files; allowed is a network with an nn.Linear of that name")
    return layer


def _from_gptq(
    name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], old: nn.Linear | QuantizedLinear
) -> QuantizedLinear:
    bits, (columns, rows) = config["bits"], (old.in_features, old.out_features)
    qweight, qzeros, scales = (tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales"))
    words = (packed_words(columns, bits), rows), (len(scales), packed_words(rows, bits))
    if (qweight.shape, qzeros.shape) != words or scales.shape[1] != rows:
        raise ValueError(
            f"{name} has qweight, qzeros and scales of {tuple(qweight.shape)}, {tuple(qzeros.shape)} and "
            f"{tuple(scales.shape)}; a layer of {columns} inputs and {rows} outputs has {words[0]}, {words[1]} and "
            f"({len(scales)}, {rows}) with {bits} bits"
        )
    zeros = unpack_bits(qzeros, bits, rows).int() + (config["checkpoint_format"] == "gptq")
    layer = QuantizedLinear(columns, rows, bits, len(scales), bias=False)
    layer.codes, layer.scales = qweight.T.contiguous(), scales.float().T.contiguous()
    layer.zeros = (zeros % 2**bits).to(torch.uint8).T.contiguous()
    layer.g_idx = tensors.get(f"{name}.g_idx", _contiguous(columns, config["group_size"])).int()
    if layer.g_idx.shape != (columns,) or not 0 <= int(layer.g_idx.min()) <= int(layer.g_idx.max()) < len(scales):
        raise ValueError(f"{name} has a g_idx that does not name one of {len(scales)} groups for {columns} inputs")
    if f"{name}.bias" in tensors:
        layer.bias = nn.Parameter(tensors[f"{name}.bias"].to(old.weight.dtype))
    return layer.to(old.weight.device).train(old.training)


def _check_others(module: nn.Module, others: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> None:
    """Check that the tensors that are not quantized fit; one that is tied to another may be missing."""
    own = {key: value for key, value in module.state_dict().items() if key.rpartition(".")[0] not in layers}
    loaded = {_place(value) for key, value in own.items() if key in others}
    missing = [key for key, value in own.items() if key not in others and _place(value) not in loaded]
    unexpected = [key for key in others if key not in own]
    shapes = [key for key in others if key in own and others[key].shape != own[key].shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"the files don't fit the network: it lacks {unexpected}, the files lack {missing}, and shapes differ in "
            f"{shapes}"
        )

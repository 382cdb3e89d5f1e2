"""Adapters of the Bone family as files: the folders that peft writes and reads."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_choice
from lightning_weights.functional._safetensors import safetensors
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules.bone import BoneLinear

PEFT_TYPE = "LW_BONE"  # what lightning_weights.adapters registers; peft's own MISS knows no row, left or free
CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
PURPOSE = "Reading and writing adapters"
KEYS = {"MISS": "miss_block", "BONE": "bone_block", PEFT_TYPE: "lw_bone_block"}  # by the type in the config
# what peft calls a variant: MissConfig's init_weights, and that of the BoneConfig which older releases had
TO_MISS: dict[str, Any] = {"col": "bat", "miss": True, "mini": "mini"}


class BoneAdapter(NamedTuple):
    """An adapter as it was read from files.

    Attributes:
        variant: How its blocks act, as of ``BoneLinear``.
        blocks: Blocks by the name of their layer.
        ranks: Block size by the name of the layer.
        grid: As of ``BoneLinear``.
        mini_r: As of ``BoneLinear``.
        dropout: As of ``BoneLinear``.
        others: Parameters of modules that were trained whole, by name.

    Examples:
        >>> BoneAdapter("col", {"0": torch.zeros(3, 4, 4)}, {"0": 4}, None, 1, 0.0, {}).variant
        'col'
    """

    variant: str
    blocks: dict[str, Tensor]
    ranks: dict[str, int]
    grid: tuple[int, int] | None
    mini_r: int
    dropout: float
    others: dict[str, Tensor]


def variant_of(config: Mapping[str, Any]) -> str:
    """Return how the blocks of a peft adapter act, from its ``adapter_config.json``.

    Args:
        config: What the file holds.

    Raises:
        ValueError: If it is not an adapter of this family, or of a kind that does not exist.
    """
    kind = config.get("peft_type")
    if kind not in KEYS:
        raise ValueError(f"peft_type is {kind!r}; allowed are {', '.join(KEYS)}")
    if kind == PEFT_TYPE:
        return str(config["variant"])
    start = config.get("init_weights", True)
    variants = {name: variant for variant, name in TO_MISS.items()} | {False: "miss"}
    check_choice("init_weights", start, list(variants))
    return variants[start]


def read_bone_adapter(folder: str | Path) -> BoneAdapter:
    """Read an adapter that peft has saved: MiSS, its kinds "bat" and "mini", Bone of older releases, or our own.

    Args:
        folder: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ValueError: If the folder holds no adapter of this family.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> read_bone_adapter("nowhere")
        Traceback (most recent call last):
        ValueError: nowhere has no adapter_config.json; give the folder of an adapter that peft has saved
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no {CONFIG}; give the folder of an adapter that peft has saved")
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    variant, suffix = variant_of(config), f".{KEYS[config['peft_type']]}"
    tensors = {key.removeprefix(PREFIX): value for key, value in _read_tensors(folder).items()}
    blocks = {key.removesuffix(suffix): value for key, value in tensors.items() if key.endswith(suffix)}
    if not blocks:
        raise ValueError(f"{folder} has no blocks: no key ends with {suffix!r}; there are {', '.join(tensors)}")
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{folder} has trained biases ({config['bias']!r}), which there is no place for; merge it instead"
        )
    ranks = {name: _rank(block, variant) for name, block in blocks.items()}
    grid, dropout = config.get("grid"), config.get("dropout", config.get("miss_dropout", 0.0))
    others = {key: value for key, value in tensors.items() if not key.endswith(suffix)}
    return BoneAdapter(variant, blocks, ranks, grid and tuple(grid), config.get("mini_r", 1), dropout, others)


def _rank(block: Tensor, variant: str) -> int:
    return block.shape[0] if variant in ("miss", "mini") else block.shape[-1]


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        return safetensors("peft", PURPOSE).load_file(folder / WEIGHTS)
    if (folder / OLD_WEIGHTS).is_file():
        return torch.load(folder / OLD_WEIGHTS, map_location="cpu", weights_only=True)
    raise ValueError(f"{folder} has neither {WEIGHTS} nor {OLD_WEIGHTS}; the adapter is not complete")


def bone_adapter_of(network: nn.Module, modules_to_save: Sequence[str] = ()) -> BoneAdapter:
    """Return the blocks of a network as an adapter, by names that count from this network.

    Args:
        network: What peft will wrap: the network itself, not the LightningModule around it.
        modules_to_save: Names of modules that were trained whole, which become part of it.

    Raises:
        ValueError: If the network has no blocks, or blocks of several kinds.

    Examples:
        >>> network = nn.Sequential(nn.Linear(8, 4))
        >>> network[0] = BoneLinear(network[0], r=4)
        >>> bone_adapter_of(network).blocks["0"].shape
        torch.Size([1, 4, 4])
    """
    layers = {plain_name(name): layer for name, layer in network.named_modules() if isinstance(layer, BoneLinear)}
    if not layers:
        raise ValueError("the network has no layer with blocks; give the one that BoneFinetuning was attached to")
    kinds = [(layer.variant, layer.grid, layer.mini_r, layer.dropout) for layer in layers.values()]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"an adapter has one variant, grid, mini_r and dropout, but the layers have {kinds}")
    variant, grid, mini_r, dropout = kinds[0]
    others = {
        f"{name}.{key}": _whole(value)
        for name in modules_to_save
        for key, value in network.get_submodule(name).state_dict().items()
    }
    blocks = {name: _whole(layer.bone_block) for name, layer in layers.items()}
    ranks = {name: layer.r for name, layer in layers.items()}
    return BoneAdapter(variant, blocks, ranks, None if grid is None else tuple(grid), mini_r, dropout, others)


def write_bone_adapter(
    adapter: BoneAdapter, folder: str | Path, kind: Literal["MISS", "LW_BONE"] = "MISS", base_model: str | None = None
) -> None:
    """Write an adapter into a folder that peft reads.

    Args:
        adapter: What ``bone_adapter_of`` or ``read_bone_adapter`` returned.
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` go; made if it is not there.
        kind: ``MISS`` is read by any peft that has MiSS, and can hold ``col`` (there called "bat"), ``miss`` and
            ``mini`` with one block size. ``LW_BONE`` holds all; for peft, import ``lightning_weights.adapters``.
        base_model: Name or path of the base model, for peft's ``base_model_name_or_path``.

    Raises:
        ValueError: If this kind cannot hold the adapter.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> import tempfile
        >>> adapter = BoneAdapter("row", {"0": torch.zeros(3, 4, 4)}, {"0": 4}, None, 1, 0.0, {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bone_adapter(adapter, folder, "LW_BONE")
        ...     read_bone_adapter(folder).variant
        'row'
    """
    check_choice("kind", kind, ("MISS", PEFT_TYPE))
    ranks = list(adapter.ranks.values())
    config: dict[str, Any] = {
        "peft_type": kind,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "task_type": None,
        "r": ranks[0],
        "mini_r": adapter.mini_r,
        # a regular expression: as a list, the name "0" would also find "head.0"
        "target_modules": "|".join(map(re.escape, adapter.blocks)),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.others}) or None,
    }
    if kind == "MISS":
        if adapter.variant not in TO_MISS or len(set(ranks)) > 1:
            raise ValueError(
                f"peft's MiSS holds {', '.join(TO_MISS)} with one block size, not {adapter.variant} with sizes "
                f"{sorted(set(ranks))}; use kind={PEFT_TYPE!r}"
            )
        config |= {"init_weights": TO_MISS[adapter.variant], "miss_dropout": adapter.dropout}
    else:
        others = {re.escape(name): r for name, r in adapter.ranks.items() if r != ranks[0]}
        config |= {"variant": adapter.variant, "grid": adapter.grid, "rank_pattern": others, "dropout": adapter.dropout}
    tensors = {f"{name}.{KEYS[kind]}": block for name, block in adapter.blocks.items()} | adapter.others
    whole = {f"{PREFIX}{key}": value.contiguous() for key, value in tensors.items()}
    save_file = safetensors("peft", PURPOSE).save_file
    with replacing_file(Path(folder, WEIGHTS)) as path:
        save_file(whole, path, metadata={"format": "pt"})
    with replacing_file(Path(folder, CONFIG)) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _whole(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu()

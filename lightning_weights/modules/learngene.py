"""The few layers from which networks of any depth begin, and their file."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_weights.functional._safetensors import read_described, safetensors
from lightning_weights.functional.learngene_sws import stages_of_layers
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules._layer_stacks import class_of, facts_of, find_stack, tensors_of
from lightning_weights.modules._wrapped import plain
from lightning_weights.modules.vision_transformer import CompactViT

PURPOSE = "Reading and writing learngenes"
KEY, FORMAT = "learngene", 1
STAGE, REST = "stages", "rest"
HEADS = ("head", "classifier", "lm_head", "fc", "score")
PADDED = 256  # bytes of the description are a multiple, so that the number of digits in it doesn't change the size


@dataclass(frozen=True, eq=False)
class Learngene:
    """One block per stage, what all depths share around them, and what has to be true of a network that takes them.

    Attributes:
        stages: Tensors of every stage's block, by their name in the block.
        rest: Tensors of everything else (stem, positions, last normalisation, head), by their name in the network.
        repeats: How often the auxiliary network applied every stage.
        layers: Name of the stack of blocks in a network.
        head: Name of the part that depends on the classes; empty if there is none.
        block: What a block computes beside its tensors: numbers of heads, eps, activations, by what has them.
        network: The same for the rest of the network.
        architecture: What a network of another depth is built from: a ``class`` with its arguments; empty if nobody
            but the user can build one.

    Source: Xia et al. 2024, arXiv:2404.16897.

    Examples:
        >>> from lightning_weights.modules import CompactViT
        >>> learngene = extract_learngene(CompactViT(depth=5, repeats=[2, 1, 2]))
        >>> len(learngene.stages), learngene.repeats, learngene.head, learngene.block["attention.num_heads"]
        (3, [2, 1, 2], 'head', 4)
    """

    stages: list[dict[str, Tensor]]
    rest: dict[str, Tensor]
    repeats: list[int]
    layers: str
    head: str
    block: dict[str, Any]
    network: dict[str, Any]
    architecture: dict[str, Any]

    @property
    def mapping(self) -> list[int]:
        """The stage of every layer of the auxiliary network."""
        return stages_of_layers(self.repeats)

    @property
    def num_parameters(self) -> int:
        """Number of entries of all tensors."""
        return sum(tensor.numel() for tensor in self._tensors().values())

    def in_head(self, name: str) -> bool:
        """Tell whether a tensor of the rest belongs to the head."""
        return bool(self.head) and (name == self.head or name.startswith(f"{self.head}."))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whose size depends on the stages, not on how often they were applied.

        Args:
            path: File, which is replaced whole; its folder is made if it is not there.

        Raises:
            MissingDependencyError: If the package safetensors is not installed.
        """
        save_file = safetensors("hf", PURPOSE).save_file
        described = {name: value for name, value in vars(self).items() if name not in (STAGE, REST)}
        text = json.dumps({"format": FORMAT, **described}, sort_keys=True)
        text += " " * (-len(text.encode()) % PADDED)
        with replacing_file(path) as part:
            save_file({name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}, part, {KEY: text})

    @classmethod
    def load(cls, path: str | Path) -> "Learngene":
        """Read a file that ``save`` has written.

        Args:
            path: The file.

        Raises:
            ValueError: If there is no such file, it is no learngene, or tensors are missing or too many.
            MissingDependencyError: If the package safetensors is not installed.
        """
        package = safetensors("hf", PURPOSE)
        if not Path(path).is_file():
            raise ValueError(f"{path} is not there; give the file that Learngene.save has written")
        text, tensors = read_described(package, path, KEY, "a learngene")
        described = {} if text is None else json.loads(text)
        if described.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no learngene of format {FORMAT}; write one with extract_learngene(...).save")
        if odd := described.keys() ^ {field.name for field in fields(cls)} - {STAGE, REST}:
            raise ValueError(f"{path} is not whole: in its description {sorted(odd)} are missing or unexpected")
        stages: list[dict[str, Tensor]] = [{} for _ in described["repeats"]]
        rest, unexpected = {}, []
        for name, tensor in tensors.items():
            place, _, inner = name.partition(".")
            index, _, inside = inner.partition(".")
            if place == REST:
                rest[inner] = tensor
            elif place == STAGE and index.isdecimal() and int(index) < len(stages):
                stages[int(index)][inside] = tensor
            else:
                unexpected.append(name)
        wanted = {name for stage in stages for name in stage}
        missing = [f"{STAGE}.{i}.{name}" for i, stage in enumerate(stages) for name in sorted(wanted - stage.keys())]
        missing += [f"{STAGE}.{i}.*" for i, stage in enumerate(stages) if not wanted and not stage]
        if missing or unexpected:
            raise ValueError(f"{path} is not whole: it lacks {missing or 'nothing'} and has unexpected {unexpected}")
        return cls(stages=stages, rest=rest, **described)

    def _tensors(self) -> dict[str, Tensor]:
        stages = {f"{STAGE}.{i}.{name}": t for i, stage in enumerate(self.stages) for name, t in stage.items()}
        return stages | {f"{REST}.{name}": tensor for name, tensor in self.rest.items()}


def extract_learngene(network: nn.Module, layers: str | None = None, head: str | None = None) -> Learngene:
    """Take the learngene out of a trained auxiliary network; the tensors are copies.

    Args:
        network: Network with a [`StageSharedStack`][lightning_weights.modules.StageSharedStack], one that
            [`share_stages`][lightning_weights.modules.share_stages] was applied to, or the
            [`SWSDistillation`][lightning_weights.modules.SWSDistillation] whose ``student`` it is. Of an ordinary
            network, every layer is a stage.
        layers: Name of the stack of layers. ``None``: the only one in which layers share blocks.
        head: Name of the part that depends on the classes; empty for none. ``None``: what is called ``head``,
            ``classifier``, ``lm_head``, ``fc`` or ``score``.

    Returns:
        The learngene.

    Raises:
        ValueError: If a part is not there, or blocks of two stages differ in more than their weights.

    Source: Xia et al. 2024, arXiv:2404.16897.

    Examples:
        >>> from lightning_weights.modules import CompactViT
        >>> aux = CompactViT(width=16, depth=12, repeats=[4, 4, 4])
        >>> extract_learngene(aux).num_parameters == sum(param.numel() for param in aux.parameters())
        True
    """
    network = plain(getattr(network, "student", network))
    stack = find_stack(network, layers)
    if head is None:
        named = [name for name in HEADS if any(True for _ in _parameters(network, name))]
        head = named[0] if named else ""
    elif head and not any(True for _ in _parameters(network, head)):
        raise ValueError(f"head is {head!r}, which names no part of {type(network).__name__} with parameters")
    stages = [tensors_of(block) for block in stack.blocks]
    facts = [facts_of(block) for block in stack.blocks]
    for stage, (tensors, fact) in enumerate(zip(stages, facts, strict=True)):
        if fact != facts[0] or _shapes(tensors) != _shapes(stages[0]):
            raise ValueError(
                f"the blocks of stages 0 and {stage} in {stack.name} differ in more than their weights; allowed are "
                f"blocks of one kind, so that any layer can have any stage's weights"
            )
    rest = {name: t for name, t in tensors_of(network).items() if not name.startswith(f"{stack.name}.")}
    return Learngene(
        stages=[{name: _copy(tensor) for name, tensor in stage.items()} for stage in stages],
        rest={name: _copy(tensor) for name, tensor in rest.items()},
        repeats=list(stack.repeats),
        layers=stack.name,
        head=head,
        block=facts[0],
        network=facts_of(network, without=stack.name),
        architecture=architecture_of(network),
    )


def architecture_of(network: nn.Module) -> dict[str, Any]:
    """Return what networks like this one are built from.

    Args:
        network: A network.

    Returns:
        ``class`` and arguments of this package's or transformers' networks; nothing of others.
    """
    if isinstance(network, CompactViT):
        return {"class": class_of(network).__name__, **network.architecture}
    if class_of(network).__module__.startswith("transformers.") and hasattr(network, "config"):
        config = json.loads(network.config.to_json_string(use_diff=False))
        return {"class": f"transformers.{class_of(network).__name__}", "config": config}
    return {}


def _parameters(network: nn.Module, name: str) -> Any:
    part: Any = network
    for step in name.split("."):
        part = getattr(part, step, None)
    return part.parameters() if isinstance(part, nn.Module) else ()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _copy(tensor: Any) -> Tensor:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().to("cpu", copy=True).contiguous()

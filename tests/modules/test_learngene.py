"""The few layers from which networks of any depth begin, and their file."""

import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_weights.modules import (
    CompactViT,
    Learngene,
    StageSharedStack,
    SWSDistillation,
    TransformerBlock,
    extract_learngene,
    share_stages,
)

SHAPE = {"image_size": 4, "width": 8, "heads": 2, "mlp_ratio": 2.0, "num_classes": 3}


def auxiliary(repeats=(2, 1, 2), **options):
    return CompactViT(**{**SHAPE, **options}, depth=sum(repeats), repeats=list(repeats))


def test_everything_is_in_it_once():
    network = auxiliary()
    learngene = extract_learngene(network)
    assert learngene.num_parameters == sum(param.numel() for param in network.parameters())
    assert learngene.mapping == [0, 0, 1, 2, 2]
    assert set(learngene.rest) == {
        f"{part}.{leaf}" for part in ("patch_embed", "norm", "head") for leaf in ("weight", "bias")
    } | {"positions"}
    for stage, tensors in enumerate(learngene.stages):
        for name, tensor in tensors.items():
            assert torch.equal(tensor, network.blocks[stage].get_parameter(name))
    assert [name for name in learngene.rest if learngene.in_head(name)] == ["head.weight", "head.bias"]


def test_tensors_are_copies():
    network = auxiliary()
    learngene = extract_learngene(network)
    before = learngene.stages[0]["mlp.fc1.weight"].clone()
    with torch.no_grad():
        for param in network.parameters():
            param.add_(1.0)
    assert torch.equal(learngene.stages[0]["mlp.fc1.weight"], before)
    assert not before.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_files_give_back_every_bit(tmp_path, dtype):
    learngene = extract_learngene(auxiliary(pool="class", eps=1e-6).to(dtype))
    learngene.save(tmp_path / "folder" / "gene.safetensors")
    found = Learngene.load(tmp_path / "folder" / "gene.safetensors")
    for field in ("repeats", "layers", "head", "block", "network", "architecture"):
        assert getattr(found, field) == getattr(learngene, field)
    assert [list(stage) for stage in found.stages] == [sorted(stage) for stage in learngene.stages]
    for mine, theirs in zip([*found.stages, found.rest], [*learngene.stages, learngene.rest], strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == dtype for name in mine)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["gene.safetensors"]


@settings(deadline=None, max_examples=5)
@given(repeats=st.lists(st.integers(1, 120), min_size=2, max_size=2))
def test_the_size_of_the_file_does_not_depend_on_the_depth(tmp_path_factory, repeats):
    folder, sizes = tmp_path_factory.mktemp("sizes"), []
    for counts in ([1, 1], repeats):
        network = nn.Module()
        network.blocks = StageSharedStack([TransformerBlock(8, 2, 16) for _ in counts], counts)
        extract_learngene(network).save(folder / "gene")
        sizes.append((folder / "gene").stat().st_size)
    assert sizes[0] == sizes[1]


def test_heads_and_epsilons_are_in_the_file(tmp_path):
    extract_learngene(auxiliary(eps=1e-6)).save(tmp_path / "gene")
    with safe_open(tmp_path / "gene", framework="pt") as file:
        described = json.loads(file.metadata()["learngene"])
    assert described["block"]["attention.num_heads"] == 2
    assert described["block"]["norm1.eps"] == described["network"]["norm.eps"] == 1e-6
    assert described["block"]["mlp.act"] == "GELU(approximate='none')"
    assert described["architecture"]["pool_first"] is False


def test_it_comes_from_tied_compiled_and_distilled_networks_alike():
    torch.manual_seed(0)
    tied = share_stages(CompactViT(**SHAPE, depth=5), "blocks", (2, 1, 2))
    wanted = extract_learngene(tied)
    stacked = auxiliary()
    stacked.load_state_dict(
        {f"blocks.{s}.{name}": t for s, stage in enumerate(wanted.stages) for name, t in stage.items()} | wanted.rest
    )
    for network in (
        stacked,
        torch.compile(tied, backend="eager"),
        SWSDistillation(tied, nn.Linear(4, 3), num_classes=3),
    ):
        found = extract_learngene(network)
        assert found.repeats == wanted.repeats
        assert found.rest.keys() == wanted.rest.keys()
        for mine, theirs in zip(found.stages, wanted.stages, strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, partial(torch.compile, backend="eager")])
def test_wrapped_blocks_are_the_blocks(wrap):
    network = auxiliary()
    wanted = extract_learngene(network)
    for stage, block in enumerate(network.blocks):
        network.blocks[stage] = wrap(block)
    found = extract_learngene(network)
    assert (found.block, found.network, found.architecture) == (wanted.block, wanted.network, wanted.architecture)
    assert [list(stage) for stage in found.stages] == [list(stage) for stage in wanted.stages]


def test_what_is_computed_is_in_it():
    """Attributes and functions that change the output and have no tensors."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding="same", dilation=(2, 1))
            self.pool, self.drop = nn.AvgPool2d(3, 1, 1), nn.Dropout(0.1)
            self.activation, self.act = partial(nn.functional.gelu, approximate="tanh"), "relu"

    facts = extract_learngene(StageSharedStackOwner([Block()]), head="").block
    assert json.loads(json.dumps(facts)) == facts
    assert facts == {
        "class": "Block",
        "activation": "gelu(){'approximate': 'tanh'}",
        "act": "relu",
        "conv.stride": "(1, 1)",
        "conv.padding": "same",
        "conv.dilation": "(2, 1)",
        "conv.padding_mode": "zeros",
        "pool.stride": 1,
        "pool.padding": 1,
        "pool": "AvgPool2d(kernel_size=3, stride=1, padding=1)",
    }


class StageSharedStackOwner(nn.Module):
    """A network that is a stack."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = StageSharedStack(blocks)


def test_parts_are_found_or_named():
    network = auxiliary(num_classes=None)
    assert extract_learngene(network).head == ""
    assert extract_learngene(auxiliary(), head="norm").head == "norm"
    assert extract_learngene(CompactViT(**SHAPE, depth=2), "blocks").repeats == [1, 1]
    assert extract_learngene(auxiliary(), head="").head == ""


def test_what_can_be_no_learngene():
    with pytest.raises(ValueError, match=r"no stack of CompactViT shares blocks.*name one of its stacks: blocks$"):
        extract_learngene(CompactViT(**SHAPE))
    with pytest.raises(ValueError, match="layers is 'layer'"):
        extract_learngene(auxiliary(), "layer")
    with pytest.raises(ValueError, match="head is 'classifier', which names no part"):
        extract_learngene(auxiliary(), head="classifier")
    with pytest.raises(ValueError, match=r"no stack of Linear shares blocks.*there are none"):
        extract_learngene(nn.Linear(2, 2))
    network = CompactViT(**SHAPE, depth=3)
    network.blocks[2] = network.blocks[0]
    with pytest.raises(ValueError, match="share a block and are no neighbours"):
        extract_learngene(network)
    network = auxiliary()
    network.blocks[1].attention.num_heads = 4
    with pytest.raises(ValueError, match="stages 0 and 1 in blocks differ"):
        extract_learngene(network)
    network = auxiliary()
    network.blocks[2] = TransformerBlock(8, 2, 8)
    with pytest.raises(ValueError, match="stages 0 and 2 in blocks differ"):
        extract_learngene(network)


def edited(path, edit):
    """Change the tensors of a file and leave its description."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("stages.1.mlp.fc1.bias"), r"lacks \['stages.1.mlp.fc1.bias'\]"),
        (lambda tensors: tensors.update({"stages.3.x": torch.zeros(1)}), r"unexpected \['stages.3.x'\]"),
        (lambda tensors: tensors.update({"optimizer": torch.zeros(1)}), r"unexpected \['optimizer'\]"),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("stages.")],
            r"lacks \['stages.0.\*', 'stages.1.\*', 'stages.2.\*'\]",
        ),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path, edit, message):
    extract_learngene(auxiliary()).save(tmp_path / "gene")
    edited(tmp_path / "gene", edit)
    with pytest.raises(ValueError, match=message):
        Learngene.load(tmp_path / "gene")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="gene is not there"):
        Learngene.load(tmp_path / "gene")
    save_file({"weight": torch.zeros(1)}, tmp_path / "gene")
    with pytest.raises(ValueError, match="gene is no learngene of format 1"):
        Learngene.load(tmp_path / "gene")
    save_file({"weight": torch.zeros(1)}, tmp_path / "gene", {"learngene": json.dumps({"format": 1, "repeats": [1]})})
    with pytest.raises(ValueError, match=r"gene is not whole: in its description \['architecture', .*'network'\]"):
        Learngene.load(tmp_path / "gene")
    (tmp_path / "gene").write_text("a text, and no tensors")
    with pytest.raises(ValueError, match="gene cannot be read as a learngene: "):
        Learngene.load(tmp_path / "gene")
    save_file({"weight": torch.zeros(1)}, tmp_path / "gene", {"learngene": json.dumps({"format": 2})})
    with pytest.raises(ValueError, match="gene is no learngene of format 1"):
        Learngene.load(tmp_path / "gene")

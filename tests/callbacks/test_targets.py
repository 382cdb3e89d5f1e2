import pytest
from torch import nn

from lightning_weights.callbacks._targets import target_layers


class Language(nn.Module):
    """Embedding, two blocks and an output layer, which may share the embedding's weight."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "up": nn.Linear(4, 8)}) for _ in range(2)
        )
        self.lm_head = nn.Linear(4, 10, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


INNER = ["blocks.0.q_proj", "blocks.0.up", "blocks.1.q_proj", "blocks.1.up"]


@pytest.mark.parametrize("tied", [False, True])
def test_all_linear_leaves_the_output_of_a_language_model_out(tied):
    net = Language(tied)
    found = target_layers(net, "all-linear")
    assert list(found) == INNER
    assert all(found[name] is net.get_submodule(name) for name in INNER)


def test_all_linear_leaves_shared_weights_out():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    assert list(target_layers(net, "all-linear")) == ["1"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("q_proj", ["blocks.0.q_proj", "blocks.1.q_proj"]),
        (["0.up", "q_proj"], ["blocks.0.q_proj", "blocks.0.up", "blocks.1.q_proj"]),
        ("blocks.1.*", ["blocks.1.q_proj", "blocks.1.up"]),
        (["blocks.?.u*"], ["blocks.0.up", "blocks.1.up"]),
        ("lm_head", ["lm_head"]),
        ("*", [*INNER, "lm_head"]),
    ],
)
def test_names_and_their_last_parts(patterns, names):
    assert list(target_layers(Language(), patterns)) == names


def test_a_name_does_not_fit_in_the_middle_of_a_word():
    with pytest.raises(ValueError, match=r"has .proj., which names no module; linear layers are: .*q_proj"):
        target_layers(Language(), "proj")


def test_excluded_layers_are_left_out():
    assert list(target_layers(Language(), "all-linear", ["up", "blocks.0.*"])) == ["blocks.1.q_proj"]
    assert list(target_layers(Language(), "all-linear", ["up", "blocks.0"])) == ["blocks.1.q_proj"]


@pytest.mark.parametrize(
    ("patterns", "exclude", "message"),
    [
        (["norm"], [], r"'norm', which names blocks\.0\.norm, a LayerNorm; only nn\.Linear"),
        ("blocks.?.n*", [], "a LayerNorm; only"),
        (["q_proj", "k_proj"], [], "'k_proj', which names no module"),
        ("q_proj", ["blocks.*"], r"target_modules='q_proj' without exclude_modules=\['blocks\.\*'\] leaves no layer"),
        ([], [], "leaves no layer; nn.Linear layers are: blocks"),
    ],
)
def test_what_names_nothing_is_refused(patterns, exclude, message):
    with pytest.raises(ValueError, match=message):
        target_layers(Language(), patterns, exclude)


def test_a_network_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match=r"nn.Linear layers are: none"):
        target_layers(nn.Sequential(nn.Conv1d(1, 1, 1)), "all-linear")

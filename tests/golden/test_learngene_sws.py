"""Stage-wise weight sharing against the vectors of the authors' auxiliary network and loss."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.learngene_sws import stages_of_layers, sws_loss
from lightning_weights.modules import CompactViT, expand, extract_learngene, share_stages
from tests.helpers.golden import load

GOLDEN = load("learngene_sws")
TOLERANCE = 1e-9
IMAGE, PATCH, CHANNELS, WIDTH, HEADS, CLASSES, DEPTH, STAGES, BATCH = (int(value) for value in GOLDEN["hp"][:9])
ALPHA, TAU = (float(value) for value in GOLDEN["hp"][9:])
REPEATS = [int(count) for count in GOLDEN["repeats"]]
MLP_WIDTH = len(GOLDEN["aux.blocks.block.mlp.fc1.instances.0.bias"])
SHAPE = {
    "image_size": IMAGE,
    "patch_size": PATCH,
    "in_channels": CHANNELS,
    "width": WIDTH,
    "heads": HEADS,
    "mlp_ratio": MLP_WIDTH / WIDTH,
    "num_classes": CLASSES,
}
OURS = {
    "aux.pos_embed": "positions",
    "aux.patch_embed.proj.": "patch_embed.",
    "aux.norm.": "norm.",
    "aux.head.": "head.",
}


def vector(name):
    return torch.tensor(GOLDEN[name])


def assert_near(actual, name):
    np.testing.assert_allclose(actual.detach(), GOLDEN[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def our_name(name):
    """Return what the authors' tensor is called here."""
    for theirs, ours in OURS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    part, _, rest = name.removeprefix("aux.blocks.block.").partition(".instances.")
    stage, _, leaf = rest.partition(".")
    return f"blocks.{stage}.{part.replace('attn', 'attention')}.{leaf}"


def auxiliary():
    network = CompactViT(**SHAPE, depth=DEPTH, repeats=REPEATS).double()
    state = {our_name(name): vector(name) for name in GOLDEN if name.startswith("aux.")}
    network.load_state_dict(state)
    return network


def test_every_vector_is_known():
    alone = {"x", "hp", "repeats", "stage_of_layer", "teacher_logits", "labels", "expand_mapping"}
    rooms = ("aux.", "aux_", "loss_", "grad_soft.", "des_")
    assert all(name in alone or name.startswith(rooms) for name in GOLDEN)
    assert GOLDEN["x"].shape[0] == BATCH
    assert len(REPEATS) == STAGES


def test_layers_and_stages():
    assert stages_of_layers(REPEATS) == GOLDEN["stage_of_layer"].tolist()
    assert auxiliary().blocks.stage_of_layer == GOLDEN["stage_of_layer"].tolist()


def test_the_auxiliary_network():
    network, outputs = auxiliary(), []
    for block in network.blocks:
        block.register_forward_hook(lambda block, inputs, output: outputs.append(output))
    network.blocks.register_forward_pre_hook(lambda stack, inputs: outputs.append(inputs[0]))
    features = []
    network.norm.register_forward_hook(lambda norm, inputs, output: features.append(output))
    assert_near(network(vector("x")), "aux_logits")
    assert_near(torch.stack(outputs), "aux_layer_outputs")
    assert_near(features[0], "aux_features_after_norm")


def test_layers_that_are_tied_are_the_same_network():
    apart = CompactViT(**SHAPE, depth=DEPTH).double()
    shared = share_stages(apart, "blocks", REPEATS)
    state = auxiliary().state_dict()
    for layer, stage in enumerate(GOLDEN["stage_of_layer"]):
        shared.blocks[layer].load_state_dict(
            {
                name.removeprefix(f"blocks.{stage}."): t
                for name, t in state.items()
                if name.startswith(f"blocks.{stage}.")
            }
        )
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.")}
    assert not shared.load_state_dict(rest, strict=False).unexpected_keys
    assert_near(shared(vector("x")), "aux_logits")


@pytest.mark.parametrize(
    ("name", "options"),
    [("none", {"alpha": 0.0}), ("soft", {"alpha": ALPHA, "tau": TAU}), ("hard", {"alpha": ALPHA, "kind": "hard"})],
)
def test_losses(name, options):
    logits, labels = vector("aux_logits"), vector("labels")
    assert_near(sws_loss(logits, vector("teacher_logits"), labels, **options), f"loss_{name}")
    mixed = torch.nn.functional.one_hot(labels, CLASSES).double()
    assert_near(sws_loss(logits, vector("teacher_logits"), mixed, **options), f"loss_{name}")


def test_gradients_of_tied_tensors():
    network = auxiliary()
    loss = sws_loss(network(vector("x")), vector("teacher_logits"), vector("labels"), alpha=ALPHA, tau=TAU)
    loss.backward()
    places = {"qkv": "attention.qkv", "fc1": "mlp.fc1", "norm1": "norm1"}
    names = [name for name in GOLDEN if name.startswith("grad_soft.")]
    assert len(names) == STAGES * len(places)
    for name in names:
        _, stage, part = name.split(".")
        block = network.blocks[int(stage.removeprefix("stage"))]
        assert_near(block.get_submodule(places[part]).weight.grad, name)


def test_the_descendant():
    mapping = GOLDEN["expand_mapping"].tolist()
    network = expand(extract_learngene(auxiliary()), mapping=mapping)
    tokens = []
    network.blocks.register_forward_hook(lambda blocks, inputs, output: tokens.append(output))
    assert_near(network(vector("x")), "des_logits_norm_then_pool")
    assert_near(tokens[0], "des_last_tokens")


def test_the_authors_descendant_pools_first():
    """Built by hand: filling such a network from a learngene that normalises first is refused."""
    learngene, mapping = extract_learngene(auxiliary()), GOLDEN["expand_mapping"].tolist()
    theirs = CompactViT(**SHAPE, depth=len(mapping), pool_first=True).double()
    theirs.norm.eps = 1e-6  # of the last normalisation alone
    with pytest.raises(ValueError, match="pool_first is True here and False there"):
        expand(learngene, mapping=mapping, network=theirs)
    theirs.load_state_dict(expand(learngene, mapping=mapping).state_dict())
    assert_near(theirs(vector("x")), "des_logits_pool_then_norm")

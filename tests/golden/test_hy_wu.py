"""HY-WU against the published generator with random weights."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weights.modules import WeightGenerator, adapt_layers, inject
from tests.helpers.golden import load

GOLDEN = load("hy_wu")
TOKEN_DIM, RANK, ALPHA, COND_DIM, ACCUMULATION, DIM, HEAD_DIM, LAYERS, _, DEPTH = (int(n) for n in GOLDEN["cfg/ints"])
COUNTS = tuple(int(n) for n in GOLDEN["cfg/token_counts"])
LAYER = bytes(GOLDEN["inj/key"]).decode()
PREFIX = LAYER.partition(".")[0]
FORWARD, BACKWARD = 2e-5, 1e-4
NAMES = {  # ours by theirs
    "condition_in": "hidden_in",
    "norm_condition": "model.norm_input",
    "norm_queries": "model.norm_tokens",
    "norm_out": "model.norm_final",
    "head_a": "model.proj_out_A",
    "head_b": "model.proj_out_B",
}
IN_BLOCKS = {
    "norm_layers": "norm1",
    "norm_tokens": "norm2",
    "norm_condition": "norm3",
    "norm_feed": "norm4",
    "feed_forward.0": "feed_forward.fc1",
    "feed_forward.2": "feed_forward.fc2",
}
ATTENTION = {"over_layers": "self_attn_n", "over_tokens": "self_attn_hw", "to_condition": "self_attn_cross"}
PROJECTIONS = {"query": "W_q", "key": "W_k", "value": "W_v", "output": "W_o"}
IN_BLOCKS |= {f"{a}.{p}": f"{ATTENTION[a]}.{PROJECTIONS[p]}" for a in ATTENTION for p in PROJECTIONS}
QUERIES = {"sheet_queries": "model.hw_pos.weight", "layer_queries": "model.layer_pos.weight"}


def vector(name):
    return torch.tensor(GOLDEN[name])


def assert_near(actual, name, tolerance):
    scale = max(1.0, np.abs(GOLDEN[name]).max()) if tolerance == FORWARD else np.abs(GOLDEN[name]).max()
    np.testing.assert_allclose(
        actual.detach().numpy(), GOLDEN[name], rtol=tolerance, atol=tolerance * scale, err_msg=name
    )


def targets():
    """Return targets and groups of experts of the file, in their order."""
    first = f"out/{PREFIX}.0."
    found = {}
    for key in (key for key in GOLDEN if key.startswith(first) and key.endswith(".lora_A")):
        name = key.removeprefix(first).removesuffix(".lora_A")
        a, b = GOLDEN[key].shape[1:], GOLDEN[key.replace("lora_A", "lora_B")].shape[1:]
        sizes = a[-1], b[-2]
        if len(a) == 2:
            found[name] = sizes
        else:
            group, _, part = name.rpartition(".")
            found.setdefault(group, {"experts": a[0], "weights": {}})["weights"][part] = sizes
    return found


@pytest.fixture(scope="module")
def generator():
    made = WeightGenerator(
        targets(),
        LAYERS,
        COND_DIM,
        rank=RANK,
        alpha=ALPHA,
        token_dim=TOKEN_DIM,
        dim=DIM,
        head_dim=HEAD_DIM,
        accumulation=ACCUMULATION,
        depth=DEPTH,
        prefix=PREFIX,
    )
    names = NAMES | {
        f"blocks.{block}.{ours}": f"model.blocks.{block}.{theirs}"
        for block in range(DEPTH)
        for ours, theirs in IN_BLOCKS.items()
    }
    state = {}
    for key in made.state_dict():
        owner, _, kind = key.rpartition(".")
        state[key] = vector(f"param/{QUERIES.get(key) or f'{names[owner]}.{kind}'}")
    assert len(state) == sum(name.startswith("param/") for name in GOLDEN)
    made.load_state_dict(state)
    return made


def condition():
    return vector("condition")[:, 0]  # the published code wants an axis more


def test_sizes_and_queries(generator):
    assert generator.tokenizer.counts == COUNTS
    assert generator.scale == pytest.approx(float(GOLDEN["out/scale"]))
    assert_near(generator.queries(), "queries0", FORWARD)


def test_rotation_tables(generator):
    tables = generator.rotary_tables(condition().shape[1])
    for name, table in zip(("n", "hw", "q", "kv"), tables, strict=True):
        cosine, sine = table.unbind(-1)
        matrices = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
        assert_near(matrices[None, None], f"rope/{name}", FORWARD)


def test_tokens_and_matrices(generator):
    assert_near(generator.token_grid(condition()), "token_grid", FORWARD)
    adapters = generator(condition())
    outputs = [name for name in GOLDEN if name.startswith("out/") and name != "out/scale"]
    for name in outputs:
        layer, _, half = name.removeprefix("out/").rpartition(".")
        which = "AB".index(half[-1])
        if layer in adapters:
            assert_near(adapters[layer][which], name, FORWARD)
            continue
        group, _, part = layer.rpartition(".")
        experts = [adapters[f"{group}.{expert}.{part}"][which] for expert in range(GOLDEN[name].shape[1])]
        assert_near(torch.stack(experts, 1), name, FORWARD)
    tokens = generator.tokenizer.tokenize(
        {name: vector(f"out/{PREFIX}.1.{name}") for name in generator.tokenizer.shapes}
    )
    again = generator.tokenizer.detokenize(tokens)
    assert all(torch.equal(value, vector(f"out/{PREFIX}.1.{name}")) for name, value in again.items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_injected_layer_and_gradients(generator, checkpointing):
    outputs, inputs = GOLDEN["inj/weight"].shape
    model = nn.ModuleDict({"layer": nn.Linear(inputs, outputs)})
    model["layer"].load_state_dict({"weight": vector("inj/weight"), "bias": vector("inj/bias")})
    adapt_layers(model, ["layer"])
    assert_near(model["layer"](vector("inj/x")), "inj/y_base", FORWARD)
    generator.checkpointing = checkpointing
    generator.zero_grad()
    adapters = generator(condition())
    own = type(adapters)({"layer": adapters[LAYER]}, adapters.scale)
    with inject(model, own):
        y = model["layer"](vector("inj/x"))
    assert_near(y, "inj/y", FORWARD)
    loss = y.double().square().mean()
    assert loss.item() == pytest.approx(float(GOLDEN["inj/loss"]), rel=FORWARD)
    loss.backward()
    assert_near(generator.condition_in.weight.grad, "grad/hidden_in.weight", BACKWARD)
    assert_near(generator.sheet_queries.grad, "grad/model.hw_pos.weight", BACKWARD)
    assert_near(generator.layer_queries.grad, "grad/model.layer_pos.weight", BACKWARD)
    assert model["layer"].weight.grad is None

"""A backbone with its generator: frozen, equal to the base at first, and saved without it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_weights.functional.fingerprint import fingerprint
from lightning_weights.modules import AdaptedBackbone, GeneratedLinear, WeightGenerator, samples_of_rows
from tests.helpers.edits import COND, awake, backbone, batch, generator


def adapted(**change):
    return AdaptedBackbone(backbone(), awake(generator()), **change)


def test_at_first_it_is_the_base_in_every_bit():
    data = batch()
    model = AdaptedBackbone(backbone(), generator())
    assert torch.equal(model(data["condition"], data["inputs"]), backbone()(data["inputs"]))
    assert not torch.equal(adapted()(data["condition"], data["inputs"]), backbone()(data["inputs"]))


def test_only_the_generator_is_trained():
    model, data = adapted(), batch()
    model(data["condition"], data["inputs"]).square().sum().backward()
    frozen = [param for name, param in model.named_parameters() if not name.startswith("generator.")]
    assert all(param.grad is None and not param.requires_grad for param in frozen)
    assert all(param.grad is not None for param in model.generator.parameters())


def test_the_backbone_stays_in_evaluation_mode():
    model = AdaptedBackbone(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5)), one(), nn.Dropout(0.5)).train()
    assert model.generator.training
    assert not any(part.training for part in (*model.backbone.modules(), *model.condition_encoder.modules()))


def one():
    return WeightGenerator({"0": (4, 6)}, 1, COND, rank=2, token_dim=4, dim=16, head_dim=8, depth=1, prefix="")


def test_state_holds_the_generator_and_refuses_another_base(tmp_path):
    model, data = adapted(), batch()
    torch.save(model.state_dict(), tmp_path / "memory.pt")
    state = torch.load(tmp_path / "memory.pt", weights_only=True)
    assert {name.partition(".")[0] for name in state} == {"generator", "_extra_state"}
    again = AdaptedBackbone(backbone(), generator(seed=9))
    again.load_state_dict(state)
    assert torch.equal(again(data["condition"], data["inputs"]), model(data["condition"], data["inputs"]))
    other = AdaptedBackbone(backbone(seed=3), generator(seed=9))
    before = copy.deepcopy(other.generator.state_dict())
    with pytest.raises(ValueError, match=r"the generator belongs to another backbone"):
        other.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in other.generator.state_dict().items())


def test_another_encoder_is_refused():
    def made(seed):
        torch.manual_seed(seed)
        encoder = nn.Linear(2, COND)
        return AdaptedBackbone(backbone(), awake(generator()), encoder)

    state = made(0).state_dict()
    made(0).load_state_dict(state)
    with pytest.raises(ValueError, match="belongs to another backbone or condition encoder"):
        made(1).load_state_dict(state)


def test_it_may_be_part_of_something():
    outer = nn.ModuleDict({"memory": adapted(), "head": nn.Linear(2, 2)})
    state = outer.state_dict()
    assert not any("backbone" in name for name in state)
    again = nn.ModuleDict({"memory": AdaptedBackbone(backbone(), generator(seed=9)), "head": nn.Linear(2, 2)})
    again.load_state_dict(state)
    assert torch.equal(again["memory"].generator.sheet_queries, outer["memory"].generator.sheet_queries)
    whole = {f"memory.backbone.{name}": value + 1 for name, value in outer["memory"].backbone.state_dict().items()}
    again.load_state_dict({**state, **whole})  # a backbone that is there is loaded
    name = "blocks.0.fc1.base_layer.weight"
    assert torch.equal(again["memory"].backbone.state_dict()[name], whole[f"memory.backbone.{name}"])


def test_the_fingerprint_is_that_of_the_plain_backbone():
    model = adapted()
    narrow = AdaptedBackbone(backbone().bfloat16(), generator())
    found = model.get_extra_state()
    assert bytes(found.tolist()).hex() == fingerprint(dict(backbone().named_parameters()))
    assert torch.equal(narrow.get_extra_state(), found)
    assert not torch.equal(AdaptedBackbone(backbone(1), generator()).get_extra_state(), found)


def test_copies_are_independent():
    model, data = adapted(), batch()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.generator.head_b.bias += 1.0
    assert {name.partition(".")[0] for name in twin.state_dict()} == {"generator", "_extra_state"}
    assert not torch.equal(*(own(data["condition"], data["inputs"]) for own in (model, twin)))


def test_changed_and_finished_matrices():
    model, data = adapted(), batch()
    adapters = model.adapters(data["condition"])
    y = model(adapters, data["inputs"])
    assert torch.equal(y, model(data["condition"], data["inputs"]))
    order = torch.tensor([1, 0, 3, 2, 5, 4])
    changed = model(data["condition"], data["inputs"], change=lambda own: own.select(order))
    assert torch.equal(changed, model(adapters.select(order), data["inputs"]))
    torch.testing.assert_close(model(adapters.select(2), data["inputs"])[2], y[2])


class Encoder(nn.Module):
    """Returns tokens in one of the ways in which encoders do."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(2, COND)

    def forward(self, ids=None, attention_mask=None, output_hidden_states=False):
        tokens = self.layer(ids)
        if self.kind == "tuple":
            return tokens, attention_mask
        if self.kind == "last":
            return SimpleNamespace(last_hidden_state=tokens, hidden_states=None)
        if self.kind == "hidden":
            return SimpleNamespace(hidden_states=(None, tokens))
        return tokens


@pytest.mark.parametrize("kind", ["tuple", "last", "hidden", "plain"])
def test_encoders_of_many_kinds(kind):
    encoder, ids = Encoder(kind), torch.randn(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    model = adapted(condition_encoder=encoder)
    tokens, kept = model.encode({"ids": ids, "attention_mask": mask})
    assert torch.equal(tokens, encoder.layer(ids))
    assert torch.equal(kept, mask.bool())
    assert not tokens.requires_grad
    assert not any(param.requires_grad for param in encoder.parameters())


def test_the_backbone_itself_encodes_without_matrices():
    base = nn.Sequential(nn.Linear(COND, COND))
    made = WeightGenerator({"0": (COND, COND)}, 1, COND, rank=2, token_dim=4, dim=16, head_dim=8, depth=1, prefix="")
    model = AdaptedBackbone(base, awake(made), condition_encoder="backbone")
    condition = torch.randn(3, 5, COND)
    tokens, _ = model.encode(condition)
    assert torch.equal(tokens, model.backbone[0].base_layer(condition))
    assert model(condition, torch.randn(3, COND)).shape == (3, COND)


def test_conditions_are_dropped_in_training_only():
    model = adapted(condition_dropout=0.5)
    condition = torch.ones(200, 1, COND)
    torch.manual_seed(0)
    kept = model.train().encode(condition)[0].mean((1, 2))
    assert set(kept.tolist()) == {0.0, 1.0}
    assert 0.35 < kept.mean() < 0.65
    assert torch.equal(model.eval().encode(condition)[0], condition)


class Experts(nn.Module):
    """Sends every token to one of three experts, which get the tokens of all samples as rows."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.ModuleDict({"w1": nn.Linear(4, 5), "w2": nn.Linear(5, 4)}) for _ in range(3)])

    def forward(self, x, chosen):
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            samples, places = (chosen == number).nonzero(as_tuple=True)
            if len(samples):
                with samples_of_rows(samples):
                    y[samples, places] = expert["w2"](expert["w1"](x[samples, places]).relu())
        return y


def test_experts_have_matrices_of_every_sample():
    torch.manual_seed(0)
    experts = {"experts": {"experts": 3, "weights": {"w1": (4, 5), "w2": (5, 4)}}}
    made = WeightGenerator(experts, 1, COND, rank=2, token_dim=4, dim=16, head_dim=8, depth=1, prefix="")
    model = AdaptedBackbone(Experts(), awake(made))
    x, condition, chosen = torch.randn(2, 6, 4), torch.randn(2, 1, COND), torch.tensor([[0, 2, 2, 0, 2, 0]] * 2)
    adapters = model.adapters(condition)
    assert adapters.select(0).optional == set(made.names)  # expert 1 gets no token
    y = model(condition, x, chosen)
    for sample in range(2):
        for place in range(6):
            name = f"experts.{chosen[sample, place]}"
            inner = x[sample, place]
            for part in ("w1", "w2"):
                layer = model.backbone.get_submodule(f"{name}.{part}")
                delta = adapters.delta_weight(f"{name}.{part}")[sample]
                inner = nn.functional.linear(inner.relu() if part == "w2" else inner, layer.weight + delta, layer.bias)
            torch.testing.assert_close(y[sample, place], inner, rtol=1e-5, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="condition_encoder is 'clip'"):
        adapted(condition_encoder="clip")
    with pytest.raises(ValueError, match=r"condition_dropout is 1.0"):
        adapted(condition_dropout=1.0)
    wide = nn.Sequential(nn.Linear(4, 7))
    with pytest.raises(ValueError, match=r"don't fit the backbone: 0 \(4 to 7\); linear layers are 0 4 to 7"):
        AdaptedBackbone(wide, one())
    with pytest.raises(ValueError, match=r"blocks.0.fc1 \(missing\)"):
        AdaptedBackbone(wide, generator())
    assert not any(isinstance(part, GeneratedLinear) for part in wide.modules())
    with pytest.raises(ValueError, match=r"the condition is a list without an encoder; allowed is a tensor"):
        adapted()(["Shout."], batch(1)["inputs"])
    with pytest.raises(ValueError, match="of 4 samples"):
        adapted()(batch(4)["condition"], batch(6)["inputs"])

"""Three hyper-models for the kinds of tensors, and their file."""

import copy
import json

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_weights.modules import KNOWN, KNOWNBank, LinearExtrapolation, known_bank
from tests.helpers.keras_files import write_dense_layers
from tests.modules.test_known import a_known, histories, keras_layers

ABOUT = {"script": "a run of ours", "seeds": [0, 1], "networks": 12, "lr": 1e-3}


def a_bank(history=5, **options):
    return KNOWNBank(*(a_known(history, seed=seed) for seed in range(3)), **options)


def test_each_kind_has_its_own():
    bank, rows = a_bank(), histories(12)
    for seed, kind in enumerate(("conv", "fc", "bias")):
        wanted = a_known(seed=seed)
        assert torch.equal(bank.nowcast(rows.view(3, 2, 2, 5), kind, 2), wanted.nowcast(rows, 2).view(3, 2, 2, 2))
        torch.testing.assert_close(bank(rows.view(3, 4, 5), kind), wanted(rows).view(3, 4))
    assert len(list(bank.parameters())) == 3
    with pytest.raises(ValueError, match="kind is 'norm'; allowed are 'conv', 'fc', 'bias'"):
        bank.nowcast(rows, "norm")
    with pytest.raises(ValueError, match="kind is 'norm'"):
        bank(rows, "norm")


@pytest.mark.parametrize("history", [4, 5])
def test_files_give_back_every_bit_and_their_provenance(tmp_path, history):
    slopes = {"conv": 0.3, "fc": 0.1, "bias": 0.0}
    parts = {kind: a_known(history, leaky_slope=slope) for kind, slope in slopes.items()}
    bank = KNOWNBank(**parts, route="shape3x3", about=ABOUT)
    bank.save(tmp_path / "folder" / "bank.safetensors")
    found = KNOWNBank.load(tmp_path / "folder" / "bank.safetensors")
    assert (found.route, found.about, found.history) == ("shape3x3", ABOUT, history)
    for kind, slope in slopes.items():
        part = getattr(found, kind)
        assert torch.equal(part.packed(), parts[kind].packed())
        assert part.leaky_slope == slope
        assert part.packed().requires_grad
    with safe_open(tmp_path / "folder" / "bank.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"conv", "fc", "bias"}
        assert file.get_tensor("fc").shape == (128 * history + 8785,)
        assert json.loads(file.metadata()["lightning_weights"])["about"]["about"] == ABOUT


def test_one_network_may_serve_all_kinds(tmp_path):
    known = a_known()
    KNOWNBank(known, known, known).save(tmp_path / "bank")
    found = KNOWNBank.load(tmp_path / "bank")
    assert torch.equal(found.conv.packed(), known.packed())
    assert torch.equal(found.bias.packed(), known.packed())


def test_banks_come_by_name_or_path(tmp_path, monkeypatch):
    bank = a_bank(about=ABOUT)
    bank.save(tmp_path / "mine.safetensors")
    found = KNOWNBank.from_pretrained(str(tmp_path / "mine.safetensors"))
    assert torch.equal(found.fc.packed(), bank.fc.packed())
    monkeypatch.setattr(known_bank, "BANKS", tmp_path)
    assert KNOWNBank.from_pretrained("mine").about == ABOUT
    with pytest.raises(
        ValueError, match=r"name is 'theirs', neither a file nor a bank of this package; these are: mine"
    ):
        KNOWNBank.from_pretrained("theirs")


@pytest.mark.parametrize(
    "settings",
    [
        {"class_path": "lightning_weights.modules.KNOWNBank.from_pretrained", "init_args": {"name": "PATH"}},
        {
            "class_path": "lightning_weights.modules.KNOWNBank",
            "init_args": {key: {"class_path": "lightning_weights.modules.KNOWN"} for key in ("conv", "fc", "bias")},
        },
    ],
    ids=["saved", "new"],
)
def test_banks_are_built_from_yaml(tmp_path, settings):
    bank = a_bank(about=ABOUT)
    bank.save(tmp_path / "bank")
    parser = ArgumentParser()
    parser.add_argument("--bank", type=KNOWNBank)
    text = json.dumps(settings).replace("PATH", str(tmp_path / "bank"))
    built = parser.instantiate(parser.parse_args(["--bank", text])).bank
    assert isinstance(built, KNOWNBank)
    if "PATH" in json.dumps(settings):
        assert torch.equal(built.conv.packed(), bank.conv.packed())


def test_files_of_keras(tmp_path):
    parts = {kind: a_known(4, seed=seed) for seed, kind in enumerate(("conv", "fc", "bias"))}
    files = {kind: write_dense_layers(tmp_path / f"{kind}.h5", keras_layers(part)) for kind, part in parts.items()}
    bank = KNOWNBank.from_keras_h5(**files, route="shape3x3", leaky_slope=0.2)
    assert (bank.route, bank.history, bank.conv.leaky_slope) == ("shape3x3", 4, 0.2)
    for kind, part in parts.items():
        assert torch.equal(getattr(bank, kind).packed(), part.packed())
    write_dense_layers(files["fc"], keras_layers(a_known(5)))
    with pytest.raises(ValueError, match=r"lengths \{'conv': 4, 'fc': 5, 'bias': 4\}; allowed is one length"):
        KNOWNBank.from_keras_h5(**files)


def test_copies_and_state_dicts():
    bank, other, rows = a_bank(), KNOWNBank(KNOWN(), KNOWN(), KNOWN()), histories(4)
    other.load_state_dict(bank.state_dict())
    for same in (other, copy.deepcopy(bank)):
        assert torch.equal(same.nowcast(rows, "bias"), bank.nowcast(rows, "bias"))
    assert "history=5, route='paper'" in repr(bank)


def test_odd_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"fc is a Linear; allowed is a KNOWN or a LinearExtrapolation"):
        KNOWNBank(KNOWN(), torch.nn.Linear(5, 1), KNOWN())
    with pytest.raises(ValueError, match=r"lengths .*allowed is one length for all three"):
        KNOWNBank(KNOWN(), KNOWN(history=4), KNOWN())
    with pytest.raises(ValueError, match="route is 'size'"):
        a_bank(route="size")
    line = LinearExtrapolation([0.0, 1.0])
    with pytest.raises(ValueError, match=r"\['conv', 'fc', 'bias'\] are no KNOWN"):
        KNOWNBank(line, line, line).save(tmp_path / "bank")
    with pytest.raises(ValueError, match=r"about is .*allowed are numbers"):
        a_bank(about={"net": KNOWN}).save(tmp_path / "bank")
    assert not list(tmp_path.iterdir())


def test_odd_files_are_refused(tmp_path):
    bank, path = a_bank(), tmp_path / "bank"
    save_file({"fc": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is not a bank of hyper-models"):
        KNOWNBank.load(path)
    with torch.no_grad():
        bank.fc.values[7] = float("inf")
    bank.save(path)
    with pytest.raises(ValueError, match=r"not finite in \['fc'\]"):
        KNOWNBank.load(path)

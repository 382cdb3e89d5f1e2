"""Snapshots of a network that forgets, and their files."""

import copy
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_weights.errors import MissingDependencyError
from lightning_weights.modules import Snapshot, check_forgetting, read_snapshots, write_snapshot

RUN = {"sessions": 4, "rate": 0.5, "subset_seed": 7}
SAMPLES = (800, 400, 200, 100)


def tensors(session):
    return {"fc.weight": torch.full((2, 3), float(session)), "steps": torch.tensor(session)}


def write_run(folder, sessions=range(4), **changes):
    for session in sessions:
        numbers = {**RUN, "samples": SAMPLES[session], **changes}
        write_snapshot(folder, tensors(session), session=session, **numbers, about={"lr": 0.1, "layers": [3, 2]})


def snapshot(session, **changes):
    return Snapshot(tensors(session), **{"session": session, "samples": SAMPLES[session], **RUN, **changes})


def test_the_most_forgotten_comes_first_whatever_the_order_of_files(tmp_path):
    write_run(tmp_path / "run")
    files = sorted((tmp_path / "run").iterdir())
    assert [file.name for file in files] == [f"session_0{number}.safetensors" for number in range(4)]
    for source in (tmp_path / "run", str(tmp_path / "run"), files, [str(file) for file in files[::-1]]):
        found = read_snapshots(source)
        assert [(s.session, s.samples) for s in found] == [(3, 100), (2, 200), (1, 400), (0, 800)]
    last = found[-1]
    assert (last.sessions, last.rate, last.subset_seed, last.about) == (4, 0.5, 7, {"lr": 0.1, "layers": [3, 2]})
    assert dict(last).keys() == tensors(0).keys()
    assert torch.equal(found[0]["fc.weight"], tensors(3)["fc.weight"])
    assert found[0]["steps"].dtype == torch.int64


def test_the_last_ones_are_those_with_most_data(tmp_path):
    write_run(tmp_path)
    assert [s.session for s in read_snapshots(tmp_path, last=2)] == [1, 0]
    (tmp_path / "session_03.safetensors").unlink()
    assert [s.session for s in read_snapshots(tmp_path, last=3)] == [2, 1, 0]
    with pytest.raises(ValueError, match=r"lacks the sessions \[3\]"):
        read_snapshots(tmp_path)
    for last in (0, 5, 1.5):
        with pytest.raises(ValueError, match="last is"):
            read_snapshots(tmp_path, last=last)


def test_files_hold_every_bit_and_say_what_they_are(tmp_path):
    values = {"net._orig_mod.a": torch.tensor([1e-42, -0.0, float("nan")]), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    values["cut"] = torch.arange(10.0)[3:5]
    path = write_snapshot(tmp_path, values, session=0, samples=3, **RUN)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"net.a", "b", "cut"}
        described = json.loads(file.metadata()["lightning_weights"])
        assert described["about"]["samples"] == 3
        for name in file.keys():  # noqa: SIM118
            wanted = values[name.replace("net.", "net._orig_mod.")]
            assert torch.equal(file.get_tensor(name).view(torch.uint8), wanted.contiguous().view(torch.uint8))
    assert Path(path).stat().st_size < 2000, "a part of a tensor brings the whole with it"


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path):
    shared = torch.ones(100, 100)
    parts = {"embed.weight": shared, "other": torch.zeros(2), "head.weight": shared.detach()}
    path = write_snapshot(tmp_path, parts, session=0, samples=3, **{**RUN, "sessions": 1})
    assert Path(path).stat().st_size < 2 * shared.nbytes
    found = read_snapshots(tmp_path)[0]
    assert set(found) == set(parts)
    assert found["embed.weight"] is found["head.weight"]


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    write_run(tmp_path, sessions=[0])
    before = (tmp_path / "session_00.safetensors").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_run(tmp_path, sessions=[0], samples=5)
    assert [file.name for file in tmp_path.iterdir()] == ["session_00.safetensors"]
    assert (tmp_path / "session_00.safetensors").read_bytes() == before


def test_runs_are_not_mixed(tmp_path):
    write_run(tmp_path / "a")
    for name, value in (("rate", 0.4), ("subset_seed", 8)):
        write_run(tmp_path / name, sessions=[2], **{name: value})
        files = [file for file in sorted((tmp_path / "a").iterdir()) if "02" not in file.name]
        with pytest.raises(ValueError, match=f"different runs: {name} is"):
            read_snapshots([*files, tmp_path / name / "session_02.safetensors"])
    with pytest.raises(ValueError, match=r"has \[1\] more than once"):
        read_snapshots([*sorted((tmp_path / "a").iterdir()), tmp_path / "a" / "session_01.safetensors"])


def test_equal_subsets_leave_the_order_open(tmp_path):
    write_run(tmp_path, samples=100)
    with pytest.raises(ValueError, match="equal numbers leave the order open"):
        read_snapshots(tmp_path)


def test_orders_that_are_known_are_checked():
    forgetting = [snapshot(session) for session in (3, 2, 1, 0)]
    check_forgetting(forgetting)
    check_forgetting(forgetting[:3])
    check_forgetting(forgetting[::2])
    with pytest.raises(
        ValueError, match=r"trained on \[800, 400, 200, 100\] samples; most forgotten comes first.*reverse"
    ):
        check_forgetting(forgetting[::-1])
    with pytest.raises(ValueError, match="sort the list"):
        check_forgetting([snapshot(session, samples=n) for session, n in ((3, 200), (2, 400), (1, 100))])
    with pytest.raises(ValueError, match="sessions at equal distances"):
        check_forgetting([snapshot(3), snapshot(1), snapshot(0)])
    with pytest.raises(ValueError, match=r"taken after the sessions \[0, 1\]"):
        check_forgetting([snapshot(0, samples=10), snapshot(1, samples=20)])


def test_orders_of_plain_tensors_are_checked_where_sizes_are_known():
    plain = [tensors(0), tensors(1)]
    check_forgetting(plain)
    check_forgetting(plain, samples=[1, 2])
    with pytest.raises(ValueError, match="reverse the list"):
        check_forgetting(plain, samples=[2, 1])
    with pytest.raises(ValueError, match="samples has 3 numbers for 2 snapshots"):
        check_forgetting(plain, samples=[1, 2, 3])


def test_networks_are_not_mixed():
    one = {"a": torch.ones(2)}
    for other, message in (
        ({"b": torch.ones(2)}, r"snapshot 0 and the last one differ in the names \['a', 'b'\]"),
        ({"a": torch.ones(3)}, r"a is \(3,\) of torch.float32 in snapshot 0 and \(2,\)"),
        ({"a": torch.ones(2).half()}, r"a is \(2,\) of torch.float16 in snapshot 0"),
        ({"a": 1.0}, "a is a float in snapshot 0; allowed are tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            check_forgetting([other, one])


def test_snapshots_are_mappings_with_a_memory():
    made = snapshot(1, about={"lr": 0.5})
    for other in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert list(other) == ["fc.weight", "steps"]
        assert len(other) == 2
        assert (other.session, other.about) == (1, {"lr": 0.5})
        assert torch.equal(other["fc.weight"], tensors(1)["fc.weight"])
    assert made == made
    assert made != copy.copy(made)
    assert "tensor" not in repr(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session": 4}, r"session is 4; allowed is a whole number in \[0, 4\)"),
        ({"session": -1}, "session is -1"),
        ({"sessions": 0}, "sessions is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"rate": 1.0}, r"rate is 1.0; allowed is a finite number in \(0.0, 1.0\)"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"subset_seed": -1}, "subset_seed is -1"),
        ({"about": {"net": torch.nn.Linear}}, "about is .*allowed are numbers, strings"),
    ],
)
def test_odd_numbers_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_snapshot(tmp_path / "run", tensors(0), **{"session": 0, "samples": 5, **RUN, **changes})
    assert not (tmp_path / "run").exists()


def test_odd_files_are_refused(tmp_path):
    path = tmp_path / "session_00.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is not a snapshot of format 1, but 'other tensors'"):
        read_snapshots(tmp_path)
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match="can't be read as a snapshot"):
        read_snapshots([path])
    with pytest.raises(ValueError, match="not there"):
        read_snapshots([tmp_path / "session_01.safetensors"])
    with pytest.raises(ValueError, match="empty list"):
        read_snapshots([])
    with pytest.raises(ValueError, match="extra is a dict; allowed are tensors"):
        write_snapshot(tmp_path, {"extra": {}}, session=0, samples=5, **RUN)


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingDependencyError, match="pip install safetensors"):
        write_run(tmp_path)

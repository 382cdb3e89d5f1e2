import csv
from pathlib import Path
from types import SimpleNamespace

import _chain_of_thought as chains
import glow
import pytest
import torch

from lightning_weights.data import ChainOfThought
from lightning_weights.data.chain_of_thought import Trajectory


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Trajectory], list[Trajectory]]:
    """Chains that no model wrote, and few problems of few operands."""
    for module in (chains, glow):
        monkeypatch.setattr(module, "OPERANDS", 3)
    monkeypatch.setitem(chains.SHAPE, "operands", 3)
    data = ChainOfThought(operands=chains.OPERANDS, train_size=16, wrong_share=0.5)
    found = chains.sorted_out(data, t := data.trajectories(), [trajectory.solution for trajectory in t])
    monkeypatch.setattr(glow, "own_trajectories", lambda seed, size: tuple(map(tuple, found)))
    for size in ("validation_size", "test_size"):
        monkeypatch.setitem(chains.SHAPE, size, 8)
    return found


@pytest.mark.usefixtures("few")
def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["glow.py", "--seeds", "1", "--epochs", "2", "--workers", "1", "--out", str(tmp_path)]
    )
    glow.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == glow.METHODS.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"glow.png", "report.md", "runs.csv", "summary.csv"}
    weights = {name: (float(row["weight_right"]), float(row["weight_wrong"])) for name, row in rows.items()}
    assert weights[glow.PLAIN] == (1.0, 1.0)
    assert all(0.5 <= weight < 2 and weight != 1.0 for weight in weights[glow.WEIGHTED])
    losses = {name: float(row["loss_wrong"]) for name, row in rows.items()}
    assert len({losses[name] for name in (glow.PLAIN, glow.WEIGHTED, glow.INVERTED, glow.FOCAL, glow.DFT)}) == 5


def test_what_a_model_wrote_is_read_and_sorted(few: tuple[list[Trajectory], list[Trajectory]]) -> None:
    right, wrong = few
    assert (len(right), len(wrong)) == (8, 8)
    texts = ["8,16", "8,17\nmore", " 7,16", "8", "8,x", "8,1666", "8,16,1"]
    wanted = [(8, 16), (8, 17), (7, 16), None, None, None, None]
    assert [chains.steps_of(text, 2) for text in texts] == wanted
    answers = [Trajectory((3, 5, 8), (8, 6))] * 4
    assert chains.accuracy(["8,6", "1,6", "6", "8,7"], answers) == 50.0


def test_a_weak_model_writes_for_problems_that_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "WEAK_EPOCHS", 1)
    monkeypatch.setattr(chains, "POOL", 24)
    written = []

    def write(lm, problems, tokens, sample):
        written.extend(problems)
        sums = [sum(map(int, problem.strip("=").split("+"))) for problem in problems]
        answers = [(total + number % 2) % 10 for number, total in enumerate(sums)]
        return chains.Rollout([",".join([*"1234"[: chains.OPERANDS - 2], str(answer)]) for answer in answers], 1.0)

    monkeypatch.setattr(chains, "roll_out", write)
    right, wrong = chains.own_trajectories(3, 2)
    assert all(sum(trajectory.operands) % 10 == trajectory.steps[-1] for trajectory in right)
    assert all(sum(trajectory.operands) % 10 != trajectory.steps[-1] for trajectory in wrong)
    asked = [trajectory.problem for part in chains.Given(right, 3).evaluation() for trajectory in part]
    assert len(written) == 24
    assert len(asked) == 2 * chains.ASKED
    assert not set(asked) & set(written)
    with pytest.raises(ValueError, match="20 of each are needed"):
        chains.own_trajectories(3, 20)


def test_valid_steps_follow_from_the_step_before() -> None:
    found = [Trajectory((3, 5, 8), (8, 6)), Trajectory((3, 5, 8), (7, 5)), Trajectory((3, 5, 8), (7, 6))]
    assert chains.valid_steps(found) == 50.0


def test_weights_are_added_up_by_kind_and_part_of_the_training() -> None:
    watch, trainer = chains.Watch(2, parts=2), SimpleNamespace(max_epochs=5)
    module = SimpleNamespace(glow=SimpleNamespace(last=None))
    assert set(watch.means().values()) == {1.0}
    for epoch in range(5):
        weights = torch.tensor([1.0, 2.0, 4.0]) * epoch
        module.glow.last = SimpleNamespace(ids=torch.tensor([0, 1, 2]), weights=weights)
        trainer.current_epoch = epoch
        watch.on_train_batch_end(trainer, module, None, None, 0)
    want = {"right": 1.5 * 2.5, "right_0": 1.5 * 1.5, "right_1": 1.5 * 3.5}
    want |= {"wrong": 4 * 2.5, "wrong_0": 4 * 1.5, "wrong_1": 4 * 3.5}
    assert {name: float(value) for name, value in watch.means().items()} == {f"weight_{k}": v for k, v in want.items()}


def test_a_model_that_knows_the_answer_writes_it() -> None:
    lm = chains.tiny_lm()
    tokens = lm.tokenizer("1,8", add_special_tokens=False).input_ids

    class Knowing(torch.nn.Module):
        """Logits of the next token of one text, whatever was asked."""

        def generate(self, input_ids, max_new_tokens, **options):
            ids = torch.tensor([*tokens, 1, 0, 0])[:max_new_tokens].repeat(len(input_ids), 1)
            logits = [torch.zeros(len(input_ids), 7) for _ in range(ids.shape[1])]
            return type("Found", (), {"sequences": torch.cat([input_ids, ids], 1), "logits": logits})

    lm.model = Knowing()
    written = chains.roll_out(lm, ["1+0+7=", "2+9+7="], 6)
    assert written.texts == ["1,8", "1,8"]
    assert written.entropy == pytest.approx(torch.tensor(7.0).log().item(), rel=1e-5)


def test_controls_deal_out_and_turn_around_the_same_weights() -> None:
    losses, ids = torch.tensor([1.0, 1.1, 0.9, 1.0]), torch.arange(4)
    found = {}
    for control in ("shuffled", "inverted"):
        loss = glow.Controlled(num_samples=4)
        loss.control = control
        loss(torch.ones(4), ids, 0)
        torch.testing.assert_close(loss.last.weights, torch.ones(4))
        value = loss(losses, ids, 1)
        torch.testing.assert_close(value, (loss.last.weights * losses).mean())
        found[control] = loss.last.weights
    want = torch.sigmoid(-10 * (1 - losses)) * 2
    torch.testing.assert_close(found["shuffled"].sort().values, want.clamp(min=0.5).sort().values)
    torch.testing.assert_close(found["inverted"], (2 - want).clamp(min=0.5))

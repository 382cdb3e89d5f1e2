"""The adapter for trl: against a stand-in, and in trainings of trl itself where it is installed."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.dynamic_reward import ParetoArchive, meta_reward
from lightning_weights.modules import AccuracyReward, BrevityReward, RewardWeighting

pytest.importorskip("transformers")

from lightning_weights.adapters.trl import TrlRewardWeights

NAMES = ["accuracy", "brevity"]
NOTHING = SimpleNamespace(log_history=[{}])


def trainer(**options):
    found = SimpleNamespace(
        reward_weights=torch.tensor([0.5, 0.5]),
        reward_func_names=NAMES,
        args=SimpleNamespace(**options),
        callbacks=[],
    )
    found.add_callback = found.callbacks.append
    return found


def metrics(accuracy, brevity):
    return {"eval_rewards/accuracy/mean": accuracy, "eval_rewards/brevity/mean": brevity}


def test_weights_are_written_before_every_step():
    target, weighting = trainer(), RewardWeighting(NAMES, eta=1.0)
    adapter = TrlRewardWeights(target, weights=lambda: weighting.weights)
    assert target.callbacks == [adapter]
    weighting.update([[torch.tensor([1.0])], [torch.tensor([-0.5])]])
    adapter.on_step_begin(None, None, None)
    torch.testing.assert_close(target.reward_weights, weighting.weights.float())
    with pytest.raises(ValueError, match="allowed are 2, one per reward function"):
        TrlRewardWeights(trainer(), weights=lambda: [1.0]).on_step_begin(None, None, None)


def test_evaluations_set_the_meta_reward():
    target = trainer()
    adapter = TrlRewardWeights(target, archive=ParetoArchive([0.0, 0.0]))
    adapter.on_evaluate(None, SimpleNamespace(log_history=[metrics(0.5, 0.5)]), None, metrics={"eval_loss": 0.0})
    adapter.on_step_begin(None, None, None)
    assert adapter.value > 0.5
    torch.testing.assert_close(target.reward_weights, torch.full((2,), 0.5 * adapter.value))
    again = TrlRewardWeights(trainer(), archive=ParetoArchive([9.0, 9.0]))
    again.load_state_dict(adapter.state_dict())
    for twin in (adapter, again):
        twin.on_evaluate(None, NOTHING, None, metrics=metrics(0.4, 0.4))
        assert twin.value == 0.5
    with pytest.raises(ValueError, match="'eval_rewards/accuracy/mean' was not among the evaluated metrics"):
        adapter.on_evaluate(None, NOTHING, None, metrics={"loss": 1.0})


@pytest.mark.parametrize(
    "options",
    [
        {"scale_rewards": "group"},
        {"scale_rewards": "none", "multi_objective_aggregation": "normalize_then_sum"},
        {"normalize_advantages": True},
    ],
)
def test_normalising_trainers_are_warned_of(options):
    (name, value) = list(options.items())[-1]
    with pytest.warns(LightningWeightsWarning, match=f"{name}={value!r} divides by a standard deviation"):
        TrlRewardWeights(trainer(**options), archive=ParetoArchive([0.0, 0.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrlRewardWeights(trainer(**options))
        TrlRewardWeights(trainer(scale_rewards="none"), archive=ParetoArchive([0.0, 0.0]))


def test_reward_functions_take_what_trl_gives():
    batch = {"prompts": ["1+1"], "completions": [r"\boxed{2}"], "completion_ids": [[5, 6]], "answer": ["2"]}
    extra = {"trainer_state": None}
    assert AccuracyReward()(**batch, **extra) == [1.0]
    assert BrevityReward()(**batch, **extra) == [0.0]


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_a_training_of_trl(kind, tmp_path):
    """Weights reach the mixture, rewards are called as trl calls them, and evaluations set the meta-reward."""
    trl = pytest.importorskip("trl")
    import pyarrow
    from datasets import Dataset
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, pad_token_id=0, eos_token_id=1, **shape))
    rows = Dataset(pyarrow.Table.from_pylist([{"prompt": "1+1=", "answer": "2"}] * 4), fingerprint="rows")
    options = {"scale_rewards": "none"} if kind == "GRPO" else {}
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_completion_length": 4}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path),
        max_steps=2,
        num_generations=2,
        eval_strategy="steps",
        eval_steps=1,
        beta=0.0,
        reward_weights=[0.5, 0.5],
        **{**sizes, **quiet, **options},
    )
    target = getattr(trl, f"{kind}Trainer")(
        model=model,
        reward_funcs=[AccuracyReward(r"\d"), BrevityReward()],
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=ByT5Tokenizer(padding_side="left"),
    )
    assert target.reward_func_names == NAMES
    archive = ParetoArchive([-1.0, -1.0])
    adapter = TrlRewardWeights(target, weights=lambda: [0.75, 0.25], archive=archive)
    before = []
    adapter.on_step_end = lambda *_, **__: before.append(target.reward_weights.tolist())
    target.train()
    evaluated = [entry for entry in target.state.log_history if "eval_rewards/accuracy/mean" in entry]
    assert len(evaluated) == 2
    assert before[0] == [0.75, 0.25]
    first = meta_reward(ParetoArchive([-1.0, -1.0]).add([evaluated[0][f"eval_rewards/{name}/mean"] for name in NAMES]))
    assert before[1] == pytest.approx([0.75 * first, 0.25 * first])
    assert archive.points

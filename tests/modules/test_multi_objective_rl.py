"""Training by reinforcement: what an update is, what resumes, and what is refused."""

import contextlib
import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_weights.callbacks import ExactResume, GradientRewardWeights, HypervolumeMetaReward
from lightning_weights.functional.dynamic_reward import group_advantage
from lightning_weights.functional.rollout import response_log_probs
from lightning_weights.kernels.policy_loss import policy_loss
from lightning_weights.modules import BrevityReward, GRULanguageModel
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.helpers.toy_rl import OBJECTIVES, toy_data, toy_fit, toy_module, toy_rewards

pytestmark = pytest.mark.filterwarnings(NOISE)
SGD = partial(torch.optim.SGD, lr=1.0)
SIZES = {"maximize": [True, False, True], "reference": [0.0, 9.0, 0.0], "scale": [1.0, 9.0, 1.0]}


def weights_of(module):
    return {name: value.clone() for name, value in module.policy.state_dict().items()}


def one_step(module, callbacks=(), **options):
    toy_fit(module, callbacks, max_steps=1, limit_val_batches=0, **options)
    return weights_of(module)


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], **tolerance)


def test_a_step_is_the_gradient_of_the_surrogate():
    module = toy_module(optimizer=SGD, grad_clip=None, weights=[0.5, 0.25, 0.25])
    twin = copy.deepcopy(module)
    found = one_step(module)
    torch.manual_seed(1)
    batch = next(iter(toy_data().train_dataloader()))
    columns = {name: [value for value in values for _ in range(4)] for name, values in batch.items()}
    rollout = twin.responses.sample(twin.policy, columns["prompt"], 1.0, twin.device)
    rewards = twin.responses.score(rollout, columns) @ torch.tensor([0.5, 0.25, 0.25])
    advantages = group_advantage(rewards, torch.arange(16) // 4, "rloo")
    logp = response_log_probs(twin.policy, rollout)
    policy_loss(logp, logp, advantages, rollout.response_mask).loss.backward()
    with torch.no_grad():
        for parameter in twin.policy.parameters():
            parameter -= parameter.grad
    assert_same(found, weights_of(twin))


@pytest.mark.parametrize("options", [{}, {"estimator": "grpo", "kl_coef": 0.1}, {"estimator": "reinforce++"}])
def test_micro_batches_change_nothing(options):
    whole, parts = (one_step(toy_module(optimizer=SGD, micro_batch_size=size, **options)) for size in (None, 5))
    assert_same(whole, parts, rtol=1e-4, atol=1e-6)


def test_minibatches_are_updates_of_their_own():
    trainer = toy_fit(toy_module(minibatches=2), max_epochs=1)
    assert trainer.global_step == 12
    with pytest.raises(ValueError, match="a batch of 4 prompts does not divide into minibatches=3"):
        toy_fit(toy_module(minibatches=3))


def test_objectives_gradients_make_up_the_mixture_where_it_is_linear():
    """A step of the mixture of gradients is the step of a mixture of rewards with the weights that came out."""
    callback = GradientRewardWeights(OBJECTIVES, initial=[0.2, 0.4, 0.4], normalize="unit", eta=0.5)
    found = one_step(toy_module(optimizer=SGD), [callback])
    fixed = one_step(toy_module(optimizer=SGD, weights=callback.weights.tolist()))
    assert_same(found, fixed, rtol=1e-4, atol=1e-6)
    assert callback.weights.tolist() != [0.2, 0.4, 0.4]
    pieces = GradientRewardWeights(OBJECTIVES, initial=[0.2, 0.4, 0.4], normalize="unit", eta=0.5)
    assert_same(found, one_step(toy_module(optimizer=SGD, micro_batch_size=6), [pieces]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("estimator", "minibatches"), [("grpo", 1), ("rloo", 2)])
def test_other_estimators_go_the_long_way_with_the_new_weights(estimator, minibatches):
    options = {"estimator": estimator, "minibatches": minibatches, "kl_coef": 0.05, "optimizer": SGD}
    callback = GradientRewardWeights(OBJECTIVES, normalize="unit", eta=0.5)
    found = one_step(toy_module(**options), [callback])
    assert_same(found, one_step(toy_module(weights=callback.weights.tolist(), **options)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"estimator": "grpo"}, {"estimator": "rloo", "kl_coef": 0.01, "micro_batch_size": 6}]
)
def test_stop_and_resume_is_bit_for_bit(options, tmp_path):
    """Weights, front, running lengths, reference and responses go on as if nobody had stopped."""

    def callbacks():
        moving = GradientRewardWeights(OBJECTIVES, normalize="unit", accumulate=2)
        return [moving, HypervolumeMetaReward(OBJECTIVES, **SIZES), ExactResume()]

    outcomes, lengths = [], []
    for ckpt in (None, tmp_path / "ckpt"):
        module = toy_module(**options, warm_start_steps=2)
        extra = [] if ckpt else [SaveAt("on_train_batch_end", 7, tmp_path / "ckpt")]
        trainer = toy_fit(module, [*callbacks(), *extra], seed=99 if ckpt else 1, ckpt=ckpt)
        outcomes.append(outcome(trainer))
        lengths.append(module.responses.rewards["brevity"].state_dict())
    assert not differing(*outcomes)
    assert lengths[0] == lengths[1] != {"tokens": 0, "responses": 0}
    assert any("accumulator" in name for name in outcomes[0])


def test_a_warm_start_imitates():
    module = toy_module(warm_start_steps=24, optimizer=partial(torch.optim.Adam, lr=5e-2))
    before = toy_imitation(module)
    toy_fit(module, max_epochs=4, limit_val_batches=0)
    assert toy_imitation(module) < 0.8 * before
    assert module.responses.rewards["brevity"].responses == 0, "it sampled"


@torch.no_grad()
def toy_imitation(module):
    batch = next(iter(toy_data().train_dataloader()))
    rollout = module.responses.demonstrations(batch["prompt"], batch["demonstration"], module.device)
    return -float((response_log_probs(module.policy, rollout) * rollout.response_mask).mean())


def test_the_meta_reward_scales_advantages_or_rewards():
    double = SimpleNamespace(value=2.0, apply_to="advantage")
    module = toy_module(estimator="grpo")
    module.trainer = SimpleNamespace(world_size=1)
    batch = next(iter(toy_data().train_dataloader()))
    module.log_dict = lambda *_, **__: None
    experience, weights = module._explore(batch), torch.tensor([0.5, 0.25, 0.25])
    plain = module.objective.advantages(experience, weights)
    torch.testing.assert_close(module.objective.advantages(experience, weights, double), 2.0 * plain)
    literal = SimpleNamespace(value=2.0, apply_to="reward")
    taken_back = module.objective.advantages(experience, weights, literal)
    torch.testing.assert_close(taken_back, plain, rtol=1e-3, atol=1e-4)


def test_validation_measures_and_draws_nothing_from_global_generators():
    module = toy_module(val_temperature=1.0)
    before = torch.get_rng_state()
    trainer = toy_fit(module, limit_train_batches=0)
    torch.manual_seed(1)
    found = []
    for _ in range(2):
        state = torch.get_rng_state()
        trainer.validate(module, toy_data(), verbose=False)
        assert torch.equal(torch.get_rng_state(), state)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert found[0] == found[1]
    assert {"val/accuracy", "val/brevity", "val/clarity", "val/length"} <= found[0].keys()
    assert found[0]["val/brevity"] == found[0]["val/length"]
    trainer.test(module, toy_data(), verbose=False)
    assert "test/accuracy" in trainer.callback_metrics
    assert module.responses.rewards["brevity"].responses == 0
    torch.set_rng_state(before)


def test_the_mixtures_losses_are_logged_without_a_pass_of_their_own():
    start, kl = [0.2, 0.4, 0.4], {"kl_coef": 0.1, "micro_batch_size": 6}
    names = ("train/loss", "train/kl", "train/clip_fraction")
    moving = GradientRewardWeights(OBJECTIVES, initial=start)
    found = toy_fit(toy_module(**kl), [moving], max_steps=2, limit_val_batches=0).callback_metrics
    again = GradientRewardWeights(OBJECTIVES, initial=start)
    front = HypervolumeMetaReward(OBJECTIVES, **SIZES)  # scales nothing yet, but every step has its pass
    own = toy_fit(toy_module(**kl), [again, front], max_steps=2, val_check_interval=6).callback_metrics
    assert float(found["train/kl"]) > 0
    for name in names:
        torch.testing.assert_close(found[name], own[name], rtol=1e-4, atol=1e-6)


def test_raw_rewards_are_logged_and_responses_are_texts():
    module = toy_module(estimator="reinforce", kl_coef=0.01, aggregation="sum_then_normalize")
    logged = toy_fit(module).callback_metrics
    assert {f"train/{name}" for name in (*OBJECTIVES, "length", "loss", "kl", "clip_fraction")} <= logged.keys()
    answers = module.respond(["12", "77"])
    assert len(answers) == 2
    assert set("".join(answers)) <= set("0123456789S.")


def test_language_models_of_transformers_and_schedules():
    pytest.importorskip("transformers")
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = toy_module(
        policy=None,
        config={"model_type": "llama", "vocab_size": 14, **shape},
        stop=["."],
        lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        aggregation="normalize_then_sum",
    )
    trainer = toy_fit(module, max_epochs=1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.5**6)
    assert module.responses.stop_tokens == [13, 1]


def test_adapters_are_switched_off_for_the_reference():
    class Adapted(GRULanguageModel):
        def disable_adapter(self):
            return torch.no_grad()

    policy = Adapted(14, hidden=8)
    policy.head = nn.Sequential(nn.Dropout(0.5), policy.head)
    module = toy_module(policy=policy, kl_coef=0.1, minibatches=2)
    seen, explore = [], module._explore
    module._explore = lambda batch: seen.append(explore(batch)) or seen[-1]
    toy_fit(module, max_steps=2)
    assert module._reference == ()
    assert torch.equal(seen[0].old, seen[0].reference), "dropout was on"
    assert policy.head.training
    plain = toy_module(kl_coef=0.1)
    toy_fit(plain, max_steps=2)
    assert len(plain._reference) == 1
    assert not any(parameter.requires_grad for parameter in plain._reference[0].parameters())
    assert all(not name.startswith("_reference") for name in plain.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": {}}, "rewards is {}"),
        ({"rewards": {"a": 3}}, "allowed is a dict of names and reward functions"),
        ({"model": "somewhere"}, "give one of them"),
        ({"policy": None}, "give one of them"),
        ({"tokenizer": None}, "there is no model to take it from"),
        ({"weights": [0.5, 0.5]}, "weights is"),
        ({"weights": [0.5, 0.5, 0.5]}, "sum of 1.5"),
        ({"estimator": "ppo"}, "estimator is 'ppo'"),
        ({"group_size": 1}, "group_size is 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"gamma": 2.0}, "gamma is 2.0"),
        ({"dual_clip": 0.5}, "dual_clip is 0.5"),
        ({"kl_coef": -1.0}, "kl_coef is -1.0"),
        ({"kl": "k1"}, "kl is 'k1'"),
        ({"minibatches": 0}, "minibatches is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"grad_clip": 0.0}, "grad_clip is 0.0"),
        ({"stop": ["12"]}, "stop has '12', which is 2 tokens"),
        ({"aggregation": "mean"}, "aggregation is 'mean'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        toy_module(**options)
    if options == {"group_size": 1}:
        assert toy_module(estimator="reinforce", **options).group_size == 1


def test_checkpoints_of_other_rewards_and_of_other_modules():
    module, checkpoint = toy_module(), {}
    module.on_save_checkpoint(checkpoint)
    others = toy_module(rewards={"accuracy": toy_rewards()["accuracy"]})
    with pytest.raises(ValueError, match=r"a state of reward 'brevity', and the rewards here .* are: none"):
        others.on_load_checkpoint(checkpoint)
    others.on_load_checkpoint({"state_dict": {}})  # weights alone, of supervised training for instance
    assert others._reference == ()


def test_bad_rewards_and_batches():
    def broken(value):
        return {**toy_rewards(), "accuracy": lambda completions, **_: [value] * len(completions)}

    with pytest.raises(ValueError, match="reward 'accuracy' of response 0 is nan"):
        toy_fit(toy_module(rewards=broken(None)))
    short = {"accuracy": lambda completions, **_: [1.0], "brevity": BrevityReward()}
    with pytest.raises(ValueError, match="reward 'accuracy' has returned 1 numbers for"):
        toy_fit(toy_module(rewards=short, weights=None))
    with pytest.raises(ValueError, match="need the column 'demonstration'; the batch has prompt"):
        toy_module(warm_start_steps=1)._imitate({"prompt": ["12"]})
    module = toy_module(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ValueError, match="lr_scheduler watches a metric"):
        module.configure_optimizers()


class Scaled(MixedPrecision):
    """Losses are scaled as in half precision, the arithmetic is that of fp32."""

    def __init__(self, scale):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def autocast_context_manager(self):
        return contextlib.nullcontext()


@pytest.mark.parametrize("moving", [False, True])
def test_bfloat16_is_near_double_precision(moving):
    results = []
    for precision in ("64-true", "bf16-mixed"):
        module = toy_module(optimizer=SGD, kl_coef=0.05)
        callbacks = [GradientRewardWeights(OBJECTIVES, normalize="unit")] if moving else []
        results.append(one_step(module, callbacks, precision=precision))
    assert all(value.dtype == torch.float32 for value in results[1].values())
    begun = weights_of(toy_module())
    assert all(value.dtype == torch.float64 for value in results[0].values())
    steps = [torch.cat([(found[name] - begun[name]).flatten() for name in begun]) for found in results]
    assert 0 < (steps[0] - steps[1]).norm() < 0.5 * steps[0].norm()


@pytest.mark.parametrize("moving", [False, True])
def test_loss_scaling_changes_nothing(moving):
    results = []
    for options in ({}, {"plugins": Scaled(1024.0)}, {"plugins": Scaled(float("inf"))}):
        module = toy_module(optimizer=SGD, grad_clip=0.05, kl_coef=0.05)
        callbacks = [GradientRewardWeights(OBJECTIVES, normalize="unit")] if moving else []
        results.append(one_step(module, callbacks, **options))
    assert_same(results[0], results[1])
    assert_same(results[2], weights_of(toy_module()))  # gradients are infinite, and the step is left out

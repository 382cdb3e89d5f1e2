"""ConfidenceGuidedAnnealing in a Trainer: what stays, what moves, in which steps, and what is refused."""

import warnings

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import nn

from lightning_weights.callbacks import OFQ, ConfidenceGuidedAnnealing, ExactResume
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.ofq import boundary_mask
from lightning_weights.modules import FakeQuantLinear, QKRAttention, fake_quantized
from tests.behaviour.test_gradients import ScalingOnly
from tests.callbacks.ofq_cases import NOISE, fit, images, latents, vit

pytestmark = pytest.mark.filterwarnings(NOISE)
QUANTIZE = {"edge_bits": None, "distillation": 0.0}


def annealing(boundary_range=0.1, **options):
    return ConfidenceGuidedAnnealing(boundary_range, **{"start_epoch": 0, "lr": 0.01, **options})


class Watch(Callback):
    """Keeps the weights and the mask of before every step; comes after the annealing in the list."""

    def __init__(self, boundary_range):
        self.boundary_range, self.steps, self.before = boundary_range, [], None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before = latents(pl_module)
        self.masks = {
            f"{name}.weight": boundary_mask(layer.weight.detach(), layer.weight_quantizer.bits, self.boundary_range)
            for name, layer in fake_quantized(pl_module).items()
            if isinstance(layer, FakeQuantLinear)
        }
        self.gradients = {name: param.grad.clone() for name, param in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        if self.before is not None:
            self.steps.append((self.before, latents(pl_module), self.masks, self.gradients))
        self.before = None


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.01}], ids=str)
def test_only_weights_near_a_threshold_move_whatever_decay_and_momentum_do(options):
    model, watch = vit(), Watch(0.1)
    fit(model, [OFQ(**QUANTIZE), annealing(), watch], epochs=2, **options)
    assert watch.steps
    for before, after, masks, gradients in watch.steps:
        assert masks
        for name, movable in masks.items():
            assert torch.equal(before[name][~movable], after[name][~movable]), name
            assert not gradients[name][~movable].any()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved & masks.keys(), "nothing was annealed"
        assert {"network.head.weight", "network.patch_embed.weight", "network.norm.bias"} <= moved


@pytest.mark.parametrize("qkr", [False, True])
def test_a_range_of_zero_leaves_every_bit_under_adamw_with_decay(qkr):
    model, ofq = vit(), OFQ(qkr=qkr, **QUANTIZE)
    ofq.attach(model)
    before = latents(model)
    fit(model, [ofq, annealing(0.0)], epochs=2)
    after = latents(model)
    annealed = {name for name in before if name.startswith("network.blocks") and name.endswith("weight")}
    annealed -= {name for name in annealed if "norm" in name}
    assert len(annealed) == 6
    for name in annealed:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["network.head.weight"], after["network.head.weight"])


def test_a_range_of_half_a_step_frees_all_weights_between_thresholds():
    with pytest.warns(LightningWeightsWarning, match="freezes nothing"):
        wide = annealing(0.5, lr=None)
    # rows of equal magnitudes, whose codes are ±(outermost - 1): no weight is beyond the outer thresholds
    models = [vit() for _ in range(2)]
    for model in models:
        for param in model.network.blocks.parameters():
            if param.ndim == 2:
                param.data = 0.1 * param.data.sign()
    torch.manual_seed(0)
    fit(models[0], [OFQ(weight_bits=3, **QUANTIZE), wide], epochs=1, limit_train_batches=1)
    fit(models[1], [OFQ(weight_bits=3, **QUANTIZE)], epochs=1, limit_train_batches=1)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b), name


def test_products_are_masked_element_wise_and_factors_stay_that_no_free_entry_depends_on():
    model, watch = vit(), Watch(0.02)
    seen = []

    class Product(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            (attention,) = (part for part in pl_module.modules() if isinstance(part, QKRAttention))
            free = boundary_mask(attention.latent_weight().detach(), 2, 0.02).view(attention.heads, 8, 8)
            seen.append((free.any(2).repeat_interleave(4, 0), free.any(1).repeat_interleave(4, 0)))

    fit(model, [OFQ(qkr=True, **QUANTIZE), annealing(0.02), Product(), watch], epochs=3)
    partly = 0
    for (before, after, _, gradients), masks in zip(watch.steps, seen, strict=True):
        for factor, movable in zip("qk", masks, strict=True):
            name = f"network.blocks.0.attention.{factor}.weight"
            assert torch.equal(before[name][~movable], after[name][~movable])
            assert not gradients[name][~movable].any()
            partly += bool(movable.any()) and not bool(movable.all())
    assert partly, "either everything was free or nothing"


def test_products_may_be_left_out():
    models = {anneal_qk: vit() for anneal_qk in (False, True)}
    for anneal_qk, model in models.items():
        ofq = OFQ(qkr=True, **QUANTIZE)
        ofq.attach(model)
        before = latents(model)
        fit(model, [ofq, annealing(0.0, anneal_qk=anneal_qk)], epochs=1)
        moved = not torch.equal(
            before["network.blocks.0.attention.q.weight"], model.network.blocks[0].attention.q.weight
        )
        assert moved is not anneal_qk
        assert model.network.blocks[0].attention.boundary_range is None


class Overflow(Callback):
    """Makes a gradient infinite in one step."""

    def __init__(self, at):
        self.at, self.step, self.states = at, 0, []

    def on_after_backward(self, trainer, pl_module):
        if self.step == self.at:
            pl_module.network.blocks[0].mlp[0].weight.grad[0, 0] = torch.inf
        self.step += 1

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.states.append(latents(pl_module))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_loss_scaler_anneals_too_and_a_skipped_step_changes_nothing(autocast):
    model, watch, overflow = vit(), Watch(0.1), Overflow(at=2)
    plugin = ScalingOnly(autocast)
    fit(model, [OFQ(**QUANTIZE), annealing(), watch, overflow], epochs=2, plugins=[plugin])
    for before, after, masks, _ in watch.steps:
        for name, movable in masks.items():
            assert torch.equal(before[name][~movable], after[name][~movable]), name
    skipped, following = overflow.states[2], overflow.states[3]
    assert all(torch.equal(overflow.states[1][name], skipped[name]) for name in skipped)
    assert any(not torch.equal(skipped[name], following[name]) for name in skipped)


def test_several_optimizers_restore_their_own_weights():
    class Two(type(vit())):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

        def configure_optimizers(self):
            block = self.network.blocks[0]
            parts = [block.attention, block.mlp]
            return [torch.optim.AdamW(part.parameters(), lr=0.01, weight_decay=0.5) for part in parts]

    model, ofq = vit(root=Two), OFQ(**QUANTIZE)
    ofq.attach(model)
    moves = []

    class Moves(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            self.before = latents(pl_module)

        def on_train_batch_end(self, trainer, pl_module, *args):
            moves.append(
                {name for name, value in latents(pl_module).items() if not torch.equal(value, self.before[name])}
            )

    fit(model, [ofq, annealing(0.1), Moves()], epochs=2)
    assert all("attention" in name for name in set().union(*moves[0::3]))
    assert any("attention" in name for name in set().union(*moves))
    assert any("mlp" in name for name in set().union(*moves))
    for index, moved in enumerate(moves):
        wrong = "mlp" if index % 3 % 2 == 0 else "attention"
        assert not any(wrong in name for name in moved)


def rates(trainer):
    return [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]


@pytest.mark.parametrize(("start", "first"), [(0.5, 2), (3, 3), (0.9, 4)])
def test_the_phase_begins_where_it_should_with_a_constant_rate(start, first):
    model, seen = vit(), []
    model.lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, *args):
            seen.append((trainer.current_epoch, rates(trainer)[0]))

    callback = annealing(start_epoch=start, lr=3e-4)
    fit(model, [OFQ(**QUANTIZE), callback, Look()], epochs=5)
    assert {rate for epoch, rate in seen if epoch >= first} == {3e-4}
    assert all(rate != 3e-4 for epoch, rate in seen if epoch < first)
    assert len(seen) == 15
    assert callback.started
    assert callback.state_dict() == {"started": True}


def test_a_rate_that_is_a_tensor_stays_the_same_one():
    rate = torch.tensor(0.01)
    model = vit(lambda params: torch.optim.AdamW(params, lr=rate))
    trainer = fit(model, [OFQ(**QUANTIZE), annealing(lr=3e-4)], epochs=1, limit_train_batches=1)
    assert rates(trainer)[0] is rate
    assert float(rate) == pytest.approx(3e-4)


def test_resuming_inside_the_phase_changes_no_bit(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "ckpt")

    def parts():
        return [OFQ(qkr=True, act_bits=3, edge_bits=4), annealing(0.1, start_epoch=1), ExactResume()]

    straight, resumed = vit(dropout=0.3), vit(dropout=0.3)
    fit(straight, [*parts(), Save()], epochs=3, data=images(shuffle=True))
    fit(resumed, parts(), epochs=3, ckpt=tmp_path / "ckpt", data=images(shuffle=True))
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_ranges_that_do_not_fit_the_rate_are_warned_of_and_logged():
    for boundary_range, lr, words in ((0.001, 0.01, "leave it with their next"), (0.4, 1e-4, "go on oscillating")):
        with pytest.warns(LightningWeightsWarning, match=words):
            trainer = fit(vit(), [OFQ(**QUANTIZE), annealing(boundary_range, lr=lr)], epochs=1)
        steps = [layer.coded_weight().step.mean() for layer in fake_quantized(trainer.lightning_module).values()]
        logged = float(trainer.callback_metrics["weights/ofq/updates_per_range"])
        assert boundary_range / lr * min(steps) <= logged <= boundary_range / lr * max(steps)
        assert 0 <= float(trainer.callback_metrics["weights/ofq/free"]) <= 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*times as wide.*")
        fit(vit(), [OFQ(**QUANTIZE), annealing(0.1, lr=2e-3)], epochs=1)


def test_bad_input_is_refused():
    for options in ({"boundary_range": -0.1}, {"start_epoch": -1}, {"start_epoch": 1.5}, {"lr": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ConfidenceGuidedAnnealing(**options)
    for callbacks in ([annealing()], [annealing(), OFQ(weight_quantizer="lsq", **QUANTIZE)]):
        with pytest.raises(MisconfigurationException, match="no weight that is quantized from its statistics"):
            fit(vit(), callbacks)
    with pytest.raises(ValueError, match=r"start_epoch 0.9 is a share of the Trainer's max_epochs, which is -1"):
        fit(vit(), [OFQ(**QUANTIZE), annealing(start_epoch=0.9)], epochs=None, max_steps=2)

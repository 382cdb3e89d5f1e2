"""Training an auxiliary network on a teacher's answers."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import ExactResume
from lightning_weights.modules import Classifier, CompactViT, Learngene, SWSDistillation, extract_learngene
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)

CLASSES = 3


def student(**options):
    sizes = {"image_size": 4, "width": 8, "heads": 2, "mlp_ratio": 2.0, "num_classes": CLASSES}
    return CompactViT(**sizes, depth=3, repeats=[2, 1], **options)


def teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))


def model(seed=0, **options):
    torch.manual_seed(seed)
    return SWSDistillation(student(), teacher(), CLASSES, **options)


def loader(rows=16, shuffle=False):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, 1, 4, 4, generator=generator), torch.arange(rows) % CLASSES
    return DataLoader(TensorDataset(x, y), batch_size=4, shuffle=shuffle)


def fit(module, callbacks=(), ckpt=None, **options):
    trainer = make_trainer(list(callbacks), **{"max_epochs": 2, **options})
    trainer.fit(module, loader(shuffle=True), loader(), ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("reduction", ["numel", "batch"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_the_loss_is_that_of_the_equation(alpha, reduction):
    module = model(alpha=alpha, tau=2.0, reduction=reduction)
    x, y = next(iter(loader()))
    logits, wanted = module.student(x), module.teacher(x)
    size = logits.numel() if reduction == "numel" else len(logits)
    log_q, log_p = (z.div(2.0).log_softmax(1) for z in (logits, wanted))
    taught = 4.0 / size * F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    base = F.cross_entropy(logits, y, label_smoothing=0.1)
    torch.testing.assert_close(module.training_step((x, y), 0), (1 - alpha) * base + alpha * taught)


def test_the_teacher_sees_what_the_student_sees_even_mixed():
    module, seen = model(kind="hard", alpha=0.5), []
    for network in (module.student, module.teacher):
        network.register_forward_pre_hook(lambda part, inputs: seen.append(inputs[0]))
    x, targets = torch.randn(4, 1, 4, 4), torch.rand(4, CLASSES).softmax(1)
    module.training_step((x, targets), 0)
    assert len(seen) == 2
    assert all(inputs is x for inputs in seen)


def test_the_teacher_stays_as_it_is_and_is_in_no_checkpoint(tmp_path):
    module = model()
    module.teacher.train()
    before = copy.deepcopy(module.teacher.state_dict())
    trainer = fit(module)
    trainer.save_checkpoint(tmp_path / "ckpt")
    assert not module.teacher.training
    assert all(torch.equal(before[name], value) for name, value in module.teacher.state_dict().items())
    assert all(param.grad is None and not param.requires_grad for param in module.teacher.parameters())
    checkpoint = torch.load(tmp_path / "ckpt", weights_only=True)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"student"}
    assert not {"student", "teacher"} & set(checkpoint["hyper_parameters"])
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(list(module.student.parameters()))
    found = SWSDistillation.load_from_checkpoint(tmp_path / "ckpt", student=student(), teacher=teacher())
    assert torch.equal(found.student.positions, module.student.positions)


def test_it_learns_what_the_teacher_says_and_logs_it():
    options = {"optimizer": lambda params: torch.optim.AdamW(params, lr=0.02), "kind": "hard"}
    module, x = model(**options), loader().dataset.tensors[0]
    before = (module.eval()(x).argmax(1) == module.teach(x).argmax(1)).float().mean()
    trainer = fit(module.train(), max_epochs=15, check_val_every_n_epoch=15)
    found = trainer.callback_metrics
    assert {"train/loss", "val/loss", "val/accuracy", "val/agreement"} <= set(found)
    agreement = (module.eval()(x).argmax(1) == module.teacher(x).argmax(1)).float().mean()
    assert found["val/agreement"] == agreement >= 0.75
    assert agreement > before
    [tested] = trainer.test(module, loader(), verbose=False)
    assert tested["test/accuracy"] == pytest.approx(found["val/accuracy"].item())


def test_resuming_changes_no_bit(tmp_path):
    frozen = teacher()

    def run(seed, ckpt=None, extra=()):
        torch.manual_seed(seed)
        module = SWSDistillation(student(drop_path=0.3), frozen, CLASSES, alpha=0.7)
        return outcome(fit(module, [ExactResume(), *extra], ckpt, max_epochs=3))

    straight = run(0, extra=[SaveAt("on_train_batch_end", 6, tmp_path / "ckpt")])
    assert not differing(straight, run(9, ckpt=tmp_path / "ckpt"))
    assert differing(straight, run(9))


def test_accumulated_batches_are_one_large_one():
    """With a divergence over all logits a batch counts as many samples as it has."""
    found = []
    for accumulate, size in ((2, 4), (1, 8)):
        module = model(optimizer=lambda params: torch.optim.SGD(params, lr=0.5), alpha=0.5)
        data = DataLoader(loader().dataset, batch_size=size)
        make_trainer([], max_epochs=2, accumulate_grad_batches=accumulate).fit(module, data)
        found.append(module.state_dict())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_train_and_the_loss_stays_wide(precision):
    module, losses = model(), []
    loss = module.loss
    module.loss = lambda *tensors: losses.append(loss(*tensors)) or losses[-1]
    fit(module, precision=precision, max_epochs=1)
    wide = torch.float64 if precision == "64-true" else torch.float32
    assert {value.dtype for value in losses} == {wide}
    assert all(value.isfinite() for value in losses)
    assert {param.dtype for param in module.teacher.parameters()} == {next(module.student.parameters()).dtype}


def test_a_teacher_that_moves_in_a_validation_keeps_ordinary_tensors():
    module = SWSDistillation(student().double(), nn.Sequential(teacher(), nn.BatchNorm1d(CLASSES)), CLASSES)
    with torch.inference_mode():
        module.teach(torch.randn(4, 1, 4, 4, dtype=torch.float64))
    assert not any(tensor.is_inference() for tensor in module.teacher.state_dict().values())
    assert module.teacher[1].running_mean.dtype == torch.float64


class Wrapped(nn.Module):
    """Returns logits as other libraries do."""

    def __init__(self, wrap):
        super().__init__()
        self.network, self.wrap = teacher(), wrap

    def forward(self, x):
        return self.wrap(self.network(x))


def test_outputs_of_other_libraries_are_unpacked():
    x = torch.randn(4, 1, 4, 4)
    wraps = (lambda z: z, lambda z: (z, None), lambda z: [z], lambda z: SimpleNamespace(logits=z))
    for wrap in wraps:
        module = SWSDistillation(Wrapped(wrap), Wrapped(wrap), CLASSES).eval()
        assert torch.equal(module(x), module.student.network(x))
        assert torch.equal(module.teach(x), module.teacher.network(x))
    for wrap in (lambda z: {"logits": z}, lambda z: z[0], lambda z: ()):
        module = SWSDistillation(student(), Wrapped(wrap), CLASSES)
        with pytest.raises(ValueError, match=r"the teacher returned a .* without logits"):
            module.training_step((x, torch.zeros(4).long()), 0)


def test_teachers_of_other_classes_and_shared_weights_are_refused():
    module = SWSDistillation(student(), nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), CLASSES)
    with pytest.raises(ValueError, match=r"shape \(4, 3\) and teacher_logits \(4, 5\)"):
        module.training_step((torch.randn(4, 1, 4, 4), torch.zeros(4).long()), 0)
    network = student()
    with pytest.raises(ValueError, match="teacher shares parameters with the student"):
        SWSDistillation(network, nn.Sequential(network, nn.Identity()), CLASSES)
    assert all(param.requires_grad for param in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"kind": "medium"}, "kind is 'medium'"),
        ({"reduction": "mean"}, "reduction is 'mean'"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"num_classes": 1}, "num_classes is 1"),
    ],
)
def test_bad_input(options, message):
    network = teacher()
    with pytest.raises(ValueError, match=message):
        SWSDistillation(student(), network, **{"num_classes": CLASSES, **options})
    assert network.training


def test_without_a_teacher_there_are_labels_alone():
    module = SWSDistillation(student(), num_classes=CLASSES, alpha=0.0)
    x, y = next(iter(loader()))
    assert torch.equal(module.training_step((x, y), 0), F.cross_entropy(module(x), y, label_smoothing=0.1))
    found = fit(module, max_epochs=1).callback_metrics
    assert "val/accuracy" in found
    assert "val/agreement" not in found
    with pytest.raises(ValueError, match=r"teacher is None, but alpha is 1.0"):
        SWSDistillation(student(), num_classes=CLASSES)
    with pytest.raises(ValueError, match="teacher is None"):
        module.teach(x)


def test_the_teacher_comes_from_the_checkpoint_of_its_module(tmp_path):
    trained = Classifier(teacher(), num_classes=CLASSES)
    fit(trained, max_epochs=1).save_checkpoint(tmp_path / "ckpt")
    module = model(teacher_checkpoint=str(tmp_path / "ckpt"))
    assert torch.equal(module.teacher[1].weight, trained.network[1].weight)
    saved = {f"{prefix}{name}": value for prefix in ("net.", "net.1") for name, value in teacher().state_dict().items()}
    torch.save({"state_dict": saved}, tmp_path / "longer")
    module = model(teacher_checkpoint=str(tmp_path / "longer"))
    assert torch.equal(module.teacher[1].weight, saved["net.1.weight"])
    torch.save({"a.1.weight": torch.zeros(1), "b.1.weight": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"0 networks have all tensors of the teacher, 1.weight and 3 more"):
        model(teacher_checkpoint=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"teacher_checkpoint is 'nowhere.ckpt', which is not there"):
        model(teacher_checkpoint="nowhere.ckpt")


def test_the_learngene_is_written_at_the_end(tmp_path):
    module = model(save_to=str(tmp_path / "gene.safetensors"))
    fit(module, max_epochs=1)
    found = Learngene.load(tmp_path / "gene.safetensors")
    assert torch.equal(found.stages[1]["mlp.fc1.weight"], module.student.blocks[1].mlp.fc1.weight)


def test_that_there_will_be_no_learngene_is_known_before_the_fit(tmp_path):
    path = tmp_path / "gene.safetensors"
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    module, before = SWSDistillation(network, teacher(), CLASSES, save_to=str(path)), network[1].weight.clone()
    with pytest.raises(ValueError, match="no stack of Sequential shares blocks"):
        fit(module)
    assert torch.equal(network[1].weight, before)
    fit(model(save_to=str(path)), fast_dev_run=True)
    assert not path.exists()


def test_the_learngene_of_the_trained_student():
    module = model()
    fit(module)
    assert torch.equal(extract_learngene(module).stages[0]["norm1.bias"], module.student.blocks[0].norm1.bias)

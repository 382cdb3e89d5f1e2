"""When a Trainer quantizes, with which data, and what its checkpoints say."""

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_weights.callbacks import CompensationQuantization
from lightning_weights.callbacks._calibration_data import calibration_batches
from lightning_weights.functional.column_solver import CompensationConfig
from lightning_weights.modules import QuantizedLinear, quantize
from tests.helpers.battery import NOISE, SaveAt
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS

CONFIG = CompensationConfig(method="gptq", bits=4, group_size=8, mse_clip=False)
SAMPLES = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")]


class _Module:
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 2))
        self.weights: list[tuple[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.weights.append((self.trainer.state.fn.value, self.net[0].weight.detach().clone()))
        self.log("loss", self.net(batch[0]).square().mean())

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _Data:
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(SAMPLES), batch_size=16)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(SAMPLES[:8]), batch_size=4)

    test_dataloader = predict_dataloader = val_dataloader


def module(root: str = ROOTS[0], seed: int = 0, **overrides: Any) -> Any:
    return type("Module", (_Module, importlib.import_module(root).LightningModule), overrides)(seed)


def data(root: str = ROOTS[0], **overrides: Any) -> Any:
    return type("Data", (_Data, importlib.import_module(root).LightningDataModule), overrides)()


def callback(**options: Any) -> CompensationQuantization:
    return CompensationQuantization(**{"config": CONFIG, **options})


def run(fn: str, part: Any, given: Any = None, root: str = ROOTS[0], **options: Any) -> tuple[Any, Any]:
    """Run a Trainer's function and return trainer and module."""
    given = module(root) if given is None else given
    arguments = {name: options.pop(name) for name in ("ckpt_path", "datamodule", "dataloaders") if name in options}
    if not {"datamodule", "dataloaders"} & set(arguments):
        arguments["datamodule"] = data(root)
    trainer = make_trainer([part], root, max_epochs=2, **options)
    getattr(trainer, fn)(given, **arguments)
    return trainer, given


def expected(batches: Any, given: Any = None, **options: Any) -> nn.Module:
    """Return the network as `quantize` leaves it."""
    net = copy.deepcopy((module() if given is None else given).net)
    quantize(net, batches, CONFIG, progress=False, **options)
    return net


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_it_acts_before_the_first_batch_of_its_stage(root, stage):
    part = callback(when=f"{stage}_start")
    trainer, found = run(stage, part, root=root)
    assert equal(found.net, expected(SAMPLES.split(16)))
    assert all(torch.equal(weight, found.net[0].weight) for _, weight in found.weights)
    assert part.done
    assert [row.name for row in part.report.layers] == ["net.0", "net.3"]
    error = trainer.callback_metrics["weights/rescomp/relative_error"]
    assert float(error) == pytest.approx(part.report.mean_relative_error)
    assert float(trainer.callback_metrics["weights/rescomp/layers"]) == 2.0
    assert not found.net[0].weight.is_inference()


@pytest.mark.parametrize("root", ROOTS)
def test_at_the_end_of_a_fit_the_trained_weights_are_quantized(root):
    plain = run("fit", callback(when="predict_start"), root=root)[1]
    # training draws from the generator: the same dropout
    torch.manual_seed(0)
    part = callback(when="fit_end")
    torch.manual_seed(0)
    _, found = run("fit", part, root=root)
    torch.manual_seed(0)
    plain = run("fit", callback(when="predict_start"), root=root)[1]
    assert equal(found.net, expected(SAMPLES.split(16), plain))
    trained = [weight for fn, weight in found.weights if fn == "fit"]
    assert torch.equal(trained[-1], plain.net[0].weight)
    assert found.net.training == plain.net.training


@pytest.mark.parametrize("when", ["validate_start", "test_start", "predict_start"])
def test_validation_inside_a_fit_and_other_stages_are_left_alone(when):
    part = callback(when=when)
    torch.manual_seed(0)
    _, found = run("fit", part)
    assert not part.done
    assert part.state_dict() == {"done": False}
    other = {"validate_start": "test", "test_start": "validate", "predict_start": "test"}[when]
    run(other, part, found)
    assert not part.done


def test_it_acts_once_for_a_module_and_again_for_another():
    part = callback()
    _, found = run("test", part)
    before = copy.deepcopy(found.net)
    run("test", part, found)
    assert equal(found.net, before)
    _, other = run("test", part, module(seed=1))
    assert equal(other.net, expected(SAMPLES.split(16), module(seed=1)))
    with pytest.raises(ValueError, match=r"net\.0 was quantized already, by gptq"):
        run("test", callback(), found)


class TestData:
    def test_a_given_loader_comes_first(self):
        loader = DataLoader(TensorDataset(-SAMPLES), batch_size=8)
        own = data(calibration_dataloader=lambda self: DataLoader(TensorDataset(SAMPLES * 2), batch_size=12))
        _, found = run("test", callback(calibration_dataloader=loader), datamodule=own)
        assert equal(found.net, expected((-SAMPLES).split(8)))
        _, found = run("test", callback(), datamodule=own)
        assert equal(found.net, expected((SAMPLES * 2).split(12)))

    def test_the_module_may_have_it(self):
        own = {"calibration_dataloader": lambda self: DataLoader(TensorDataset(SAMPLES * 3), batch_size=12)}
        _, found = run("test", callback(), module(**own), dataloaders=data().val_dataloader())
        assert equal(found.net, expected((SAMPLES * 3).split(12)))

    def test_the_training_part_of_the_data_is_set_up(self):
        def setup(self: Any, stage: str) -> None:
            self.stages = [*getattr(self, "stages", []), stage]

        own = data(setup=setup)
        run("test", callback(), datamodule=own)
        assert own.stages == ["test", "fit"]

    def test_loaders_of_the_fit_and_of_the_module(self):
        torch.manual_seed(0)
        part, found = callback(when="fit_end"), module()
        make_trainer([part], max_epochs=1).fit(found, _Data().train_dataloader(), _Data().val_dataloader())
        assert part.report.layers[0].tokens == 48
        own = module(train_dataloader=_Data.train_dataloader)
        _, found = run("test", callback(), own, dataloaders=_Data().val_dataloader())
        assert equal(found.net, expected(SAMPLES.split(16)))

    def test_without_any_it_says_what_to_give(self):
        with pytest.raises(ValueError, match="there is no calibration data: give calibration_dataloader"):
            run("test", callback(), dataloaders=_Data().val_dataloader())

    def test_the_first_samples_are_taken(self):
        part = callback(num_samples=20)
        _, found = run("test", part)
        assert part.report.layers[0].tokens == 20
        assert equal(found.net, expected([SAMPLES[:16], SAMPLES[16:20]]))

    def test_a_module_may_say_how_a_batch_is_run(self):
        own = {"calibration_step": lambda self, batch: self.net(batch[0] * 5)}
        _, found = run("test", callback(), module(**own))
        assert equal(found.net, expected((SAMPLES * 5).split(16)))

    def test_shuffling_loaders_leave_the_generators_alone(self):
        own = {"train_dataloader": lambda self: DataLoader(TensorDataset(SAMPLES), batch_size=16, shuffle=True)}
        states = []
        for part in (callback(), callback(when="predict_start")):
            torch.manual_seed(3)
            run("test", part, datamodule=data(**own))
            states.append(torch.get_rng_state())
        assert torch.equal(*states)

    def test_batches_are_dealt_to_processes(self):
        class Rank:
            world_size = 2

            class strategy:
                broadcast = staticmethod(lambda value: value)

            def __init__(self, rank: int) -> None:
                self.global_rank = rank

        loader = DataLoader(torch.arange(20), batch_size=4)
        parts = [[b.tolist() for b in calibration_batches(Rank(r), loader, 14)] for r in range(2)]
        assert parts == [[[0, 1, 2, 3], [8, 9, 10, 11]], [[4, 5, 6, 7], [12, 13]]]
        split = DataLoader(range(20), batch_size=4, sampler=DistributedSampler(range(20), 2, 1, shuffle=False))
        assert [b.tolist() for b in calibration_batches(Rank(1), split, 12)] == [[1, 3, 5, 7], [9, 11]]


class TestCheckpoints:
    @pytest.mark.parametrize("export", ["fake", "packed"])
    @pytest.mark.parametrize("root", ROOTS)
    def test_a_quantized_checkpoint_is_tested_as_it_is(self, export, root, tmp_path):
        part = callback(export=export)
        trainer, found = run("test", part, root=root)
        trainer.save_checkpoint(tmp_path / "ckpt")
        outputs = found.eval()(SAMPLES)
        part, fresh = callback(export=export), module(root, seed=9)
        trainer, _ = run("test", part, fresh, root, ckpt_path=tmp_path / "ckpt")
        assert torch.equal(fresh.eval()(SAMPLES), outputs)
        assert part.done
        assert isinstance(fresh.net[0], QuantizedLinear if export == "packed" else nn.Linear)
        trainer.save_checkpoint(tmp_path / "again")
        states = [torch.load(tmp_path / name, weights_only=True)["callbacks"] for name in ("ckpt", "again")]
        assert states[0] == states[1]
        assert states[0][part.state_key]["report"]["layers"][0]["name"] == "net.0"

    def test_a_checkpoint_of_original_weights_is_quantized_again(self, tmp_path):
        torch.manual_seed(0)
        save = SaveAt("on_train_end", 1, tmp_path / "ckpt")
        original = module()
        make_trainer([callback(), save], max_epochs=1).fit(original, datamodule=data())
        part = callback()
        _, found = run("test", part)
        run("test", part, found, ckpt_path=tmp_path / "ckpt")
        assert equal(found.net, expected(SAMPLES.split(16), original))
        assert part.done

    def test_training_quantized_weights_to_quantize_them_again_is_refused(self, tmp_path):
        part = callback(when="fit_end")
        trainer, found = run("fit", part)
        trainer.save_checkpoint(tmp_path / "ckpt")
        with pytest.raises(ValueError, match=r"quantized already.*start from the original weights"):
            run("fit", part, found)
        with pytest.raises(ValueError, match="quantized already"):
            run("fit", callback(when="fit_end"), ckpt_path=tmp_path / "ckpt")

    def test_an_interrupted_run_goes_on(self, tmp_path):
        part = callback(folder=str(tmp_path / "layers"))
        run("test", part)
        assert len(list((tmp_path / "layers").glob("*.pt"))) == 2
        again = callback(folder=str(tmp_path / "layers"))
        _, found = run("test", again)
        assert equal(found.net, expected(SAMPLES.split(16)))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_statistics_and_solutions_are_in_full_precision(precision):
    part = callback()
    _, found = run("test", part, precision=precision)
    weight = found.net[0].weight.detach()
    assert weight[0, :8].unique().numel() <= 16
    assert 0 < part.report.mean_relative_error < 0.02


def test_loggers_get_the_numbers(tmp_path):
    run("test", callback(), logger=CSVLogger(tmp_path, name=None, version=""))
    assert "weights/rescomp/relative_error" in (tmp_path / "metrics.csv").read_text()


def test_copies_are_lean_and_start_afresh():
    part = callback(blocks="net", measure_blocks=True)
    run("test", part)
    for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert twin.config == CONFIG
        assert twin.report is None
        assert not twin.done


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 0),
        ("when", "train_start"),
        ("export", "int4"),
        ("on_missing", "warn"),
        ("ignore", "lm_head"),
        ("targets", "*.head"),
    ],
)
def test_wrong_arguments(name, value):
    with pytest.raises(ValueError, match=name):
        CompensationQuantization(**{name: value})

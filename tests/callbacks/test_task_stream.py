"""A stream of tasks: what is trained when, and what the matrix holds."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import Callback

from lightning_weights.callbacks import TaskStream
from lightning_weights.callbacks.task_stream import format_matrix
from tests.helpers.tasks import make_trainer, tiny_classifier, tiny_tasks

pytestmark = pytest.mark.filterwarnings("ignore")


def accuracy(model, dataset):
    inputs, labels = dataset.tensors
    with torch.no_grad():
        return (model.eval()(inputs).argmax(1) == labels).float().mean().item()


class EvaluateTaskEnds(Callback):
    """Measures the accuracies at the end of every second epoch without the callback's help."""

    def __init__(self, data):
        self.data, self.rows, self.logged = data, [], []

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch % 2 == 1:
            network = copy.deepcopy(pl_module.network)
            self.rows.append([accuracy(network, task) for task in self.data.sets])
            self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def test_matrix_holds_the_accuracies_after_every_task_and_their_summary_is_logged():
    data, stream = tiny_tasks(), TaskStream(epochs_per_task=2)
    witness = EvaluateTaskEnds(data)
    make_trainer([stream, witness], max_epochs=6).fit(tiny_classifier(lr=0.3), datamodule=data)
    expected = torch.tensor(witness.rows)
    torch.testing.assert_close(stream.matrix, expected)
    assert data.served == [0, 0, 1, 1, 2, 2]
    last = witness.logged[-1]
    assert last["weights/task_stream/average_accuracy"] == pytest.approx(expected[2].mean().item())
    drops = [max(expected[0, 0], expected[1, 0]) - expected[2, 0], expected[1, 1] - expected[2, 1]]
    assert last["weights/task_stream/forgetting"] == pytest.approx(sum(drops).item() / 2)
    gains = [expected[2, 0] - expected[0, 0], expected[2, 1] - expected[1, 1]]
    assert last["weights/task_stream/backward_transfer"] == pytest.approx(sum(gains).item() / 2)
    for task in range(3):
        assert last[f"weights/task_stream/accuracy_task{task}"] == pytest.approx(expected[2, task].item())


def test_tasks_may_take_different_numbers_of_epochs():
    data, stream = tiny_tasks(), TaskStream(epochs_per_task=[1, 3, 2])
    make_trainer([stream], max_epochs=6).fit(tiny_classifier(), datamodule=data)
    assert data.served == [0, 1, 1, 1, 2, 2]
    assert not stream.matrix.isnan().any()


def test_modules_that_return_only_a_loss_are_asked_for_predictions():
    data, stream, other = tiny_tasks(), TaskStream(), TaskStream()
    make_trainer([stream], max_epochs=3).fit(tiny_classifier(), datamodule=data)
    silent = tiny_classifier()
    step = silent.validation_step
    silent.validation_step = lambda batch, batch_idx, dataloader_idx=0: step(batch, batch_idx)["loss"]
    make_trainer([other], max_epochs=3).fit(silent, datamodule=tiny_tasks())
    assert torch.equal(stream.matrix, other.matrix)


def test_a_module_with_its_own_data_works_and_gets_its_loader_back():
    data, model = tiny_tasks(), tiny_classifier()
    model.num_tasks, model.task = 3, 0
    served = []

    def train_dataloader():
        served.append(model.task)
        data.task = model.task
        return data.train_dataloader()

    type(model).train_dataloader = lambda self: train_dataloader()
    type(model).val_dataloader = lambda self: data.val_dataloader()
    try:
        make_trainer([TaskStream()], max_epochs=3).fit(model)
    finally:
        del type(model).train_dataloader, type(model).val_dataloader
    assert served == [0, 1, 2]
    assert "train_dataloader" not in vars(model)


def test_a_loader_set_on_the_data_object_is_put_back():
    data = tiny_tasks()
    own = data.train_dataloader
    data.train_dataloader = own
    make_trainer([TaskStream()], max_epochs=3).fit(tiny_classifier(), datamodule=data)
    assert vars(data)["train_dataloader"] is own
    assert data.served == [0, 1, 2]


def test_a_fit_can_be_continued_with_the_next_task():
    data, stream = tiny_tasks(), TaskStream()
    trainer = make_trainer([stream], max_epochs=1)
    model = tiny_classifier()
    trainer.fit(model, datamodule=data)
    first_row = stream.matrix[0].clone()
    assert bool(stream.matrix[1:].isnan().all())
    trainer.fit_loop.max_epochs = trainer.fit_loop.max_epochs + 2
    trainer.fit(model, datamodule=data)
    assert torch.equal(stream.matrix[0], first_row)
    assert not stream.matrix.isnan().any()
    assert data.served == [0, 1, 2]


def test_stand_alone_validation_and_sanity_checks_do_not_touch_the_matrix():
    data, stream = tiny_tasks(), TaskStream()
    trainer = make_trainer([stream], max_epochs=3, num_sanity_val_steps=2)
    model = tiny_classifier()
    trainer.fit(model, datamodule=data)
    before = stream.matrix.clone()
    torch.nn.init.zeros_(model.network.head.weight)
    trainer.validate(model, datamodule=data)
    assert torch.equal(stream.matrix, before)


def test_matrix_survives_checkpoints_but_is_no_baggage_of_copies():
    data, stream = tiny_tasks(), TaskStream(2)
    make_trainer([stream], max_epochs=6).fit(tiny_classifier(), datamodule=data)
    other = TaskStream(2)
    other.load_state_dict(stream.state_dict())
    assert torch.equal(other.matrix, stream.matrix)
    for twin in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert twin.epochs_per_task == 2
        assert twin.matrix.numel() == 0


@pytest.mark.parametrize("value", [0, -1, 1.5, [1, 0], [], "3"])
def test_bad_numbers_of_epochs_are_refused(value):
    with pytest.raises(ValueError, match="epochs_per_task is"):
        TaskStream(value)


@pytest.mark.parametrize(
    ("epochs", "options", "message"),
    [
        (2, {"max_epochs": 7}, r"max_epochs is 7, .* end after 6 epochs; set Trainer\(max_epochs=6\)"),
        ([1, 2], {"max_epochs": 3}, "epochs_per_task has 2 entries, but the data has 3 tasks"),
        (3, {"max_epochs": 9, "check_val_every_n_epoch": 2}, "check_val_every_n_epoch is 2"),
        (1, {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 2}, "reload_dataloaders_every_n_epochs is 2"),
        (1, {"max_epochs": 3, "limit_val_batches": 0}, "limit_val_batches is 0"),
        (1, {"max_epochs": 3, "val_check_interval": 0.5}, r"val_check_interval 0\.5"),
    ],
)
def test_trainers_that_do_not_fit_the_stream_are_refused(epochs, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer([TaskStream(epochs)], **options).fit(tiny_classifier(), datamodule=tiny_tasks())


def test_the_number_of_validation_loaders_is_checked():
    data = tiny_tasks()
    data.val_dataloader = lambda: type(data).val_dataloader(data)[:2]
    with pytest.raises(ValueError, match=r"val_dataloader\(\) returned 2 loaders for 3 tasks"):
        make_trainer([TaskStream()], max_epochs=3).fit(tiny_classifier(), datamodule=data)


def test_a_new_trainer_begins_a_new_matrix():
    stream = TaskStream()
    for num_tasks in (3, 2):
        data = tiny_tasks(num_tasks=num_tasks)
        make_trainer([stream], max_epochs=1).fit(tiny_classifier(), datamodule=data)
        assert stream.matrix.shape == (num_tasks, num_tasks)
        assert stream.matrix[1:].isnan().all()


def test_data_without_tasks_is_refused():
    data = tiny_tasks()
    trainer = make_trainer([TaskStream()], max_epochs=3)
    with pytest.raises(ValueError, match="needs data with num_tasks"):
        trainer.fit(tiny_classifier(), train_dataloaders=data.train_dataloader())
    model = tiny_classifier()
    model.num_tasks, model.task = 3, 0
    with pytest.raises(ValueError, match=r"pass the data module instead"):
        make_trainer([TaskStream()], max_epochs=3).fit(
            model, train_dataloaders=data.train_dataloader(), val_dataloaders=data.val_dataloader()
        )


def test_format_matrix_shows_only_rows_that_were_measured():
    text = format_matrix(torch.tensor([[1.0, 0.25], [torch.nan, torch.nan]]))
    assert text.splitlines()[1].split() == ["after", "task", "0", "100.0", "25.0"]
    assert len(text.splitlines()) == 2

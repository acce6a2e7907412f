import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning import METHODS, density, masked, masked_layers
from pruning.integrations.lightning import PruningCallback

pytestmark = pytest.mark.slow


class Module(lightning.LightningModule):
    """Tell the sign of the first of eight numbers; the learning rate is warmed up, and again where a method rewinds."""

    def __init__(self, callback):
        super().__init__()
        torch.manual_seed(0)
        self.net = masked(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)))
        self.callback, self.rates = [callback], []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)

        def warmed(step):
            control = self.callback[0].control
            return min((step - (control.restarted if control else 0) + 1) / 8, 1)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmed)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def data(seed, count):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 32)


def fit(folder, method, epochs, more=(), **options):
    callback = PruningCallback(0.85, method=METHODS[method], budget=48)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=[callback, ModelCheckpoint(folder, filename=f"{epochs}", save_last=True), *more],
        **quiet,
    )
    module = Module(callback)
    trainer.fit(module, data(0, 256), data(1, 256), **options)
    return callback, module, trainer


@pytest.mark.parametrize("method", ["rigl", "raterewind"])
def test_lightning_prunes_stops_and_goes_on_from_a_checkpoint(tmp_path, method):
    callback, module, trainer = fit(tmp_path, method, 200)
    events = callback.control.events
    assert callback.control.finished and trainer.should_stop and trainer.current_epoch == len(events) <= 12
    assert [event.iteration for event in events] == [4 * number for number in range(1, len(events) + 1)]
    network = callback.delivered()
    assert isinstance(network, Module) and density(network) == callback.control.best["density"] < 1
    assert sum(int(layer.weight.count_nonzero()) for layer in masked_layers(network).values()) <= density(network) * 320
    with torch.no_grad():
        x, labels = data(1, 256).dataset.tensors
        assert (network(x).argmax(1) == labels).float().mean() == callback.control.best["accuracy"] >= 0.85
    if method == "raterewind":  # two mini-batches to a step; Lightning asks for the next rate before it validates
        first = next(event.iteration for event in events if event.action == "prune")
        expected = [0.02 * min(first + 1, 8) / 8, *(0.02 * step / 8 for step in (2, 3, 4))]
        assert module.rates[2 * first :: 2][:4] == pytest.approx(expected)

    fit(tmp_path / "half", method, 5)
    resumed, _, _ = fit(tmp_path / "half", method, 200, ckpt_path=tmp_path / "half" / "last.ckpt", weights_only=True)
    assert resumed.control.events == events
    for name, value in resumed.delivered().state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_what_cannot_be_is_said(tmp_path):
    callback = PruningCallback(0.85, "accuracy")
    with pytest.raises(RuntimeError, match=r"call delivered\(\) after trainer.fit\(\)"):
        callback.delivered()
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], logger=False)
    with pytest.raises(ValueError, match=r"the module logs no 'accuracy', but \['val_accuracy'\]"):
        trainer.fit(Module(callback), data(0, 64), data(1, 64))
    with pytest.raises(ValueError, match="WeightAveraging validates an average that is not pruned"):
        fit(tmp_path, "iterative", 1, [WeightAveraging()])

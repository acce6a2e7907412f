"""docs/networks.md: its code runs in order, and its table tells what test_known_networks.py tries."""

import itertools
import re
from pathlib import Path

import lightning
import pytest
import torch
import torch.nn.functional as F
from test_known_networks import METHODS_OF
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import NETWORKS, bert, gpt2

from pruning import METHODS, density, masked, masked_layers

PAGE = (Path(__file__).parents[2] / "docs/networks.md").read_text(encoding="utf-8")


def test_the_table_tells_what_was_tried():
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.count(" | ") == 5][1:]
    assert [row[0] for row in rows] == list(NETWORKS)
    for name, _, layers, share, methods, exports in rows:
        model = NETWORKS[name].masked()
        assert int(layers) == len(masked_layers(model))
        assert share == f"{NETWORKS[name].synapses:.1%}".replace("%", " %")
        assert methods == "all" and {*METHODS_OF[name]} <= {*METHODS}  # by `make test-networks`
        assert ("ONNX" in exports) == NETWORKS[name].onnx


class Module(lightning.LightningModule):
    """Tell the sign of the first of eight numbers."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def training_step(self, batch, index):
        return loss(self.network, batch)

    def validation_step(self, batch, index):
        self.log("val_accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def network():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def given(folder):
    """Name what the page takes for granted."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    labels = (x[:, 0] > 0).long()
    data = DataLoader(TensorDataset(x, labels), 32)
    words = torch.randint(50, (128, 6))
    model = masked(network())
    return {
        "torch": torch,
        "gpt2": gpt2(),
        "model": model,
        "optimizer": torch.optim.Adam(model[0].parameters(), lr=0.02),
        "head_optimizer": torch.optim.Adam(model[2].parameters(), lr=0.02),
        "device": "cpu",
        "loss": loss,
        "batches": itertools.cycle(data),
        "validation_accuracy": lambda model: float((model(x).argmax(1) == labels).float().mean()),
        "network_of_one_process": network,
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "module": Module(),
        "training_data": data,
        "validation_data": data,
        "options": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": folder},
        "bert": bert(),
        "folder": folder,
        "arguments": {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"},
        "sentences": [{"input_ids": each, "labels": int(each[0] < 25)} for each in words],
        "accuracy_of": lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_code_runs(tmp_path):
    names = given(tmp_path)
    pruned = []
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        alone = "DistributedDataParallel" in block
        if alone:
            distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
        exec(compile(block, "docs/networks.md", "exec"), names)
        if alone:
            distributed.destroy_process_group()
        if "delivered" in block:
            control = names["control"] if "control =" in block else names["callback"].control
            assert control.finished and control.reached
            pruned.append(density(names["network"]))
    assert len(pruned) == 3 and max(pruned) < 0.5
    assert {"0.kernel", "1"} == set(masked_layers(names["own"]))
    assert masked_layers(names["gpt2"])["transformer.h.0.attn.c_attn"].mask.shape == (32, 96)  # [in, out]

"""Networks that others wrote, at random weights; each small enough for a test, of the class that people use."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from pruning.masks import PRUNABLE, masked
from pruning.study.vision import models  # beside a CPU build of torch too


class UNet(nn.Module):
    """Two levels with a connection past the lower: images [N, 3, 16, 16] to the logits of each pixel [N, 4, 16, 16]."""

    def __init__(self):
        super().__init__()
        self.down, self.low = self.convolutions(3, 8), self.convolutions(8, 16)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Sequential(*self.convolutions(16, 8))
        self.head = nn.Conv2d(8, 4, 1)

    def convolutions(self, inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x):
        down = self.down(x)
        return self.head(self.out(torch.cat([down, self.up(self.low(F.max_pool2d(down, 2)))], 1)))


class Words(nn.Module):
    """An LSTM classifier: 50 words [N, length] to logits [N, 4]."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(50, 12), nn.LSTM(12, 16, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 4)

    def forward(self, x):
        return self.out(self.lstm(self.words(x))[0].mean(1))


def signal():
    """Make a 1-d convolution network: [N, 2, 32] to logits [N, 4]."""
    first = [nn.Conv1d(2, 8, 5), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv1d(8, 16, 3), nn.MaxPool1d(4), nn.Flatten(), nn.Linear(96, 4))


def mobilenet():
    """MobileNetV3 of three blocks, one with squeeze and excitation."""
    rows = [(16, 3, 16, 16, True, "RE", 2, 1), (16, 3, 32, 24, False, "HS", 2, 1), (24, 5, 48, 24, True, "HS", 1, 1)]
    return models.MobileNetV3(
        [models.mobilenetv3.InvertedResidualConfig(*row, width_mult=1.0) for row in rows], 64, num_classes=4
    )


def efficientnet():
    """EfficientNet of two stages."""
    rows = [(1, 3, 1, 16, 16, 1), (6, 3, 2, 16, 24, 2)]
    return models.EfficientNet(
        [models.efficientnet.MBConvConfig(*row) for row in rows], dropout=0.1, num_classes=4, last_channel=64
    )


def bert():
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=4
    )
    return BertForSequenceClassification(config)


def gpt2():
    """GPT-2, whose last layer is tied to its words: 50 words [N, length] to the logits of the next ones."""
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False))


@dataclass(frozen=True)
class Case:
    """A network, a batch of inputs and targets by size, and what ``masked`` is told.

    ``synapses`` is the share of the weights of two or more dimensions that get a mask, ``onnx`` whether PyTorch's ONNX
    exporter knows the network.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    synapses: float = 1.0
    options: dict = field(default_factory=dict)
    onnx: bool = True

    def masked(self) -> nn.Module:
        return masked(self.make(), **self.options)

    def step(self, model, optimizer, observe=lambda: None):
        """Train one mini-batch; ``observe`` is called with the gradients at hand."""
        x, target = self.batch(4)
        optimizer.zero_grad()
        F.cross_entropy(logits(model(x)), target).backward()
        observe()
        optimizer.step()


def logits(outputs):
    """Return the logits; those of each word as [N, words, length], which ``cross_entropy`` wants."""
    values = outputs if isinstance(outputs, Tensor) else outputs["logits"]
    return values.transpose(1, 2) if values.dim() == 3 else values


def classified(*shape):
    return lambda count: (torch.randn(count, *shape), torch.randint(4, (count,)))


def words(count):
    return torch.randint(50, (count, 12)), torch.randint(4, (count,))


def next_words(count):
    x = torch.randint(50, (count, 13))
    return x[:, :-1], x[:, 1:]


def pixels(count):
    return torch.randn(count, 3, 16, 16), torch.randint(4, (count, 16, 16))


def vit():
    return models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=4)


def swin():
    return models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=4)


def resnet():
    return models.resnet18(num_classes=4).to(memory_format=torch.channels_last)


IMAGES = classified(3, 32, 32)
NO_WORDS = {"exclude": [nn.Embedding]}
NETWORKS = {
    "ResNet-18": Case(resnet, IMAGES),
    "MobileNetV3": Case(mobilenet, IMAGES),
    "EfficientNet": Case(efficientnet, IMAGES),
    # Beside the layers, positions and biases of attention are weights without a mask.
    "ViT": Case(vit, IMAGES, 0.975, {"exclude": ["class_token", "*.pos_embedding"]}),
    "Swin-T": Case(swin, IMAGES, 0.992, {"exclude": ["*.relative_position_bias_table"]}),
    "U-Net": Case(UNet, pixels),
    "LSTM": Case(Words, words, 0.943, NO_WORDS),
    "1-d convolutions": Case(signal, classified(2, 32)),
    "BERT": Case(bert, words, 0.493, NO_WORDS),
    "GPT-2": Case(gpt2, next_words, 0.981, {"include": [*PRUNABLE, Conv1D]} | NO_WORDS, onnx=False),
}

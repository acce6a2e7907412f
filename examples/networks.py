"""Networks of one's own for studies: functions of an image's shape (channels, height, width) and the classes."""

from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with batch normalisation beside a shortcut; images [N, channels, H, W] to the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        return (images + self.body(images)).relu()


def small_resnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Make a residual network with dropout, for images of any size and number of channels."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(64, classes),
    )

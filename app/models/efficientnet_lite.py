"""EfficientNet-Lite2 without its classifier: an image encoder of ReLU6 and no squeeze-and-excite."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE: Final = 260  # pixels of the input's sides
CHANNELS: Final = 352  # of the grid
POOLED: Final = 1280
_STEM: Final = 32
_STAGES: Final = (  # repeats, kernel, stride, expansion, channels: Lite0's, 1.1 times as wide and 1.2 times as deep
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, CHANNELS),
)


class EfficientNetLite2(nn.Module):
    """Photographs (B, 3, 260, 260), (RGB - 127) / 128 -> grid (B, 352, 9, 9) and pooled vector (B, 1280).

    The network of Tan and Le 2019 (arXiv 1905.11946) in Google's form for phones, with TensorFlow's padding: at a
    stride of 2, that of an even size is one pixel more after it than before it. The grid is the last block's output,
    the pooled vector the classifier's input. Parameters are in the order of efficientnet-lite-pytorch 0.1.0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, _STEM, 3, 2, SIZE)
        blocks = list[nn.Module]()
        channels, side = _STEM, -(-SIZE // 2)
        for repeats, kernel, stride, expansion, width in _STAGES:
            for index in range(repeats):
                step = 1 if index else stride
                blocks.append(_Block(channels, width, kernel, step, expansion, side))
                channels, side = width, -(-side // step)
        self.blocks = nn.Sequential(*blocks)
        self.head = _Convolution(CHANNELS, POOLED, 1, 1, side)

    def forward(self, photographs: Tensor) -> tuple[Tensor, Tensor]:
        """Photographs (B, 3, 260, 260) -> grid (B, 352, 9, 9), pooled (B, 1280)."""
        grid = self.blocks(F.relu6(self.stem(photographs)))
        head = F.relu6(self.head(grid))
        return grid, torch.flatten(F.adaptive_avg_pool2d(head, 1), 1)


class _Convolution(nn.Sequential):
    """A convolution without bias and its batch norm, for an input of `side` pixels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, side: int, groups: int = 1) -> None:
        missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        before, after = missing // 2, missing - missing // 2
        super().__init__(
            nn.ZeroPad2d((before, after, before, after)) if before != after else nn.Identity(),
            nn.Conv2d(inputs, outputs, kernel, stride, before if before == after else 0, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3),
        )


class _Block(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, side: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = _Convolution(inputs, width, 1, 1, side) if expansion > 1 else None
        self.depthwise = _Convolution(width, width, kernel, stride, side, groups=width)
        self.project = _Convolution(width, outputs, 1, 1, side)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        wide = inputs if self.expand is None else F.relu6(self.expand(inputs))
        narrow: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return inputs + narrow if self.residual else narrow

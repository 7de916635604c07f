"""What networks are fastest with on CUDA devices. CPUs are left as they are: channels-last weights
are slower there, and numbers stay the same to the last bit.
"""

from __future__ import annotations

import torch
from torch import nn


def suit_device(network: nn.Module, device: torch.device, deterministic: bool) -> None:
    """Prepare a network, and this process, for a CUDA device; nothing for others.

    Convolutions compute channels last, as tensor cores do; products of float32 matrices use TF32;
    cuDNN tries its algorithms and takes the fastest, which may round differently in the next run,
    unless `deterministic`.
    """
    if device.type != "cuda":
        return
    nn.Module.to(network, memory_format=torch.channels_last)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = not deterministic

"""trainer=auto: the machine decides which file of configs/trainer is read.

Only CUDA counts (ROCm's builds of torch call it so too). Apple's GPUs do not: autocast and float64
are not on them what they are elsewhere, and no part of this project was tried there.
"""

from __future__ import annotations


def trainer_of_machine() -> str:
    """cpu without a CUDA device, gpu with one, ddp with several."""
    count = cuda_devices()
    if count > 1:
        return "ddp"
    return "gpu" if count else "cpu"


def what_there_is() -> str:
    """The choice and its reason, in a few words."""
    count = cuda_devices()
    if count > 1:
        return f"{count} GPUs, DDP"
    return "1 GPU" if count else "no CUDA device, CPU"


def cuda_devices() -> int:
    """How many CUDA devices torch finds."""
    import torch  # here: settings without trainer=auto load fast

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

"""Nothing in a training step, or in a step of sampling, waits for the device.

A device whose tensors have no numbers stands for one that is still computing them: torch's
"meta". To look at one of its tensors is an error there. So is here what a GPU refuses, or does by
waiting: tensors of two devices in one operator, and copies to it that block.

Left out are the codes of places, which the smallest presets alone have, and what sampling keeps
outside a mask, which diffusers' schedulers noise.
"""

import logging

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.sweeps import soon_and_later
from vton import registry
from vton.config import load
from vton.cost.meta import meta_batch, on_meta, set_everywhere
from vton.progress import quiet
from vton.report.attention import attention_maps
from vton.report.flow import garment_reads, warped_garments

SIZE = (64, 48)
TINY = ("preset=tiny", f"data.size={list(SIZE)}")


class Apart(TorchDispatchMode):
    """Refuses operators on tensors of both devices, and copies to the device that block."""

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        far = {tensor.is_meta for tensor in tensors if tensor.ndim}  # single numbers may be mixed
        if func in self.COPIES:
            sent = far == {False} and str(kwargs.get("device")) == "meta"
            assert not sent or kwargs.get("non_blocking"), f"{func} blocks"
        else:
            assert len(far) < 2, f"{func} of tensors on two devices"
        return func(*args, **kwargs)


class Sent(TorchFunctionMode):
    """Refuses numbers of Python's that are sent to the device, which blocks."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            assert str(kwargs.get("device")) != "meta", f"{func.__name__} on the device"
        if func is Tensor.new_tensor:
            assert not args[0].is_meta, "new_tensor on the device"
        return func(*args, **kwargs)


def module_and_batch(*overrides: str):
    config = load(*TINY, *overrides)
    set_everywhere(config, "positions", 0.0)
    with quiet(logging.getLogger("vton")):
        return on_meta(config), meta_batch(SIZE, 3)


TOKENS = "model.unet.context=48 model.clip.projection=48 model.text.width=48"  # of these pictures
OTHERS = (
    f"model=gardiff model.mode=release {TOKENS}",
    f"model=gardiff model.mode=legacy12 {TOKENS}",
    "model=gardiff model.mode=decoupled",
    "model=idm_vton model.null_features=zeros model.flow_loss.weight=1",
    "model=leffa model.flow_loss.weight=1 train.precision=bf16",
    "model=stableviton model.attention_loss.start_step=0",
    "model=tryondiffusion model.stage=sr256",
    "model=tryondiffusion model.stage=sr1024",
    "model=tryondiffusion model.warp_first=true",
)


@pytest.mark.parametrize("settings", [*(f"model={name}" for name in registry.names()), *OTHERS])
def test_a_training_step_waits_for_nothing(settings):
    module, batch = module_and_batch(*settings.split())
    if module.config.model.kind == "architecture":
        module.config.model.condition_dropout = 0.5
    module.train()
    with Apart(), Sent():
        module.training_step(batch, 0).backward()


@pytest.mark.parametrize("model", soon_and_later())
def test_a_step_of_sampling_waits_for_nothing(model):
    plain = []
    if model == "imagdressing":
        plain = [f"model.inpaint.{name}=false" for name in ("enabled", "trained", "in_training")]
    module, batch = module_and_batch(f"model={model}", "sampler.steps=2", *plain)
    module.eval()
    with Apart(), Sent(), torch.no_grad():
        module.generate(batch)


@pytest.mark.parametrize("model", ["leffa", "idm_vton"])
def test_a_look_at_held_out_pairs_computes_on_one_device(model):
    module, batch = module_and_batch(f"model={model}", "model.flow_loss.weight=1")
    module.eval()
    with Apart():
        assert attention_maps(module, batch, batch.person).sums
        reads = garment_reads(module, batch, batch.person)
        assert warped_garments(module, batch, reads)

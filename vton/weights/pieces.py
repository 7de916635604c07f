"""A checkpoint's tensors in pieces: a safetensors file for each process that had a part of them.

torch.distributed.checkpoint writes and reads them; where a piece belongs stands in its file. Names
begin with what a tensor is: a weight, its average, or one of its moments.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from vton.errors import UserError

PIECES = "pieces"  # in a checkpoint: names of the folder beside it and of the files there
WEIGHTS, AVERAGE = "weights/", "average/"
MOMENTS = "moments/"  # then the optimizer's number, the parameter's name and the moment's


def folder_of(checkpoint: dict, path: Path) -> Path:
    """Where the pieces of a checkpoint of `path` lie, beside it. Raises UserError unless all are
    there.
    """
    try:
        name, files = Path(checkpoint[PIECES]["folder"]).name, list(checkpoint[PIECES]["files"])
        missing = [file for file in files if Path(file).name != file]
        folder = path.parent / name
        missing += [file for file in files if not (folder / file).is_file()]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: does not say where its pieces are ({error!r}).") from None
    if missing or not files:
        names = ", ".join(missing) or "all"
        raise UserError(f"{folder}: pieces of the checkpoint are missing: {names}.")
    return folder


def read_pieces(folder: Path, tensors: dict[str, Tensor], alone: bool) -> None:
    """Fill the tensors from the pieces: this process's shards of sharded ones. Raises UserError.

    alone: without the other processes, which otherwise have to read too
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except (CheckpointException, SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not readable pieces of a checkpoint ({error}).") from None


def whole_tensors(folder: Path) -> dict[str, Tensor]:
    """All of the pieces' tensors, whole. Raises UserError."""
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not readable pieces of a checkpoint ({error}).") from None
    tensors = {}
    for name, tensor in stored.items():
        tensors[name] = torch.empty(tensor.size, dtype=tensor.properties.dtype)
    read_pieces(folder, tensors, alone=True)
    return tensors


def assembled(checkpoint: dict, path: Path) -> dict:
    """A checkpoint of `path` as one process writes it, with whole tensors. Raises UserError."""
    folder = folder_of(checkpoint, path)
    weights: dict[str, Tensor] = {}
    average: dict[str, Tensor] = {}
    moments: list[dict[str, dict[str, Tensor]]] = [{} for _ in checkpoint["optimizer_states"]]
    for name, tensor in whole_tensors(folder).items():
        kind, rest = name.split("/", 1)
        if kind == "weights":
            weights[rest] = tensor
        elif kind == "average":
            average[rest] = tensor
        else:
            number, parameter, moment = rest.split("/")
            moments[int(number)].setdefault(parameter, {})[moment] = tensor
    states = []
    for state, named in zip(checkpoint["optimizer_states"], moments, strict=True):
        states.append(numbered(state["param_groups"], named))
    callbacks = dict(checkpoint["callbacks"])
    if average:
        callbacks["EMA"] = callbacks["EMA"] | {"average": average}
    whole = {name: value for name, value in checkpoint.items() if name != PIECES}
    return whole | {"state_dict": weights, "callbacks": callbacks, "optimizer_states": states}


def numbered(groups: list[dict], moments: dict[str, dict[str, Tensor]]) -> dict:
    """An optimizer's state as it gives it itself, whose parameters are numbered, not named."""
    numbers: dict[str, int] = {}
    for group in groups:
        for name in group["params"]:
            numbers[name] = len(numbers)
    renamed = []
    for group in groups:
        renamed.append(group | {"params": [numbers[name] for name in group["params"]]})
    state = {number: moments[name] for name, number in numbers.items() if name in moments}
    return {"state": state, "param_groups": renamed}


def remove_unnamed(folder: Path) -> None:
    """Remove pieces below `folder` that none of its checkpoints names any more; none where a
    checkpoint is not readable.
    """
    pieces = list(folder.glob("*.pieces"))
    named = set()
    for path in folder.glob("*.ckpt") if pieces else ():
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            named.add(content.get(PIECES, {}).get("folder"))
        except Exception:  # a broken file can raise almost anything
            return
    for found in pieces:
        if found.name not in named:
            shutil.rmtree(found)

"""Networks of the hub by transformers: a folder, or a hub id as of one revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vton.errors import UserError, one_line
from vton.files import file_digest

SUFFIXES = (".safetensors", ".bin")


def load_network(task: str, cls: Any, where: str) -> tuple[Any, Path]:
    """A transformers network in evaluation mode, and the folder that its files lie in.

    where: a folder in the hub's layout, or `id@revision`. Raises UserError naming the command that
    fetches it.
    """
    folder = local_folder(task, where)
    try:
        network, report = cls.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:
        raise UserError(
            f"{task}: {folder} holds no network of the kind {cls.__name__}: {one_line(error)}."
        ) from None
    for problem in ("missing_keys", "mismatched_keys"):
        if report[problem]:
            first = sorted(map(str, report[problem]))[0]
            raise UserError(
                f"{task}: {folder} is no whole {cls.__name__}: {len(report[problem])} "
                f"{problem.replace('_', ' ')}, such as {first}."
            )
    return network.eval().requires_grad_(False), Path(folder)


def local_folder(task: str, where: str) -> Path:
    """A folder given, or the copy of a hub id in the local cache. Raises UserError."""
    from huggingface_hub import snapshot_download

    from vton.weights.pretrained import may_download

    path = Path(where).expanduser()
    if path.is_dir():
        return path
    name, _, revision = where.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=["*.json", "*.safetensors"],
                local_files_only=not may_download(),
            )
        )
    except Exception as error:
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"{task}: {where} is neither a folder nor in the local hub cache ({one_line(error)}). "
            f"Fetch it with `hf download {name}{at}`, or give a folder in the hub's layout."
        ) from None


def digest(folder: Path) -> str:
    """SHA-256 of a folder's weights."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    return file_digest(files[0]) if files else ""

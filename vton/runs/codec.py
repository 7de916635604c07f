"""The codec of a run: pretrained, or fitted on the run's own training pictures and kept in its
folder.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import torch
from filelock import FileLock
from torch import Tensor

from vton.config import ExperimentConfig
from vton.data.module import TryOnDataModule
from vton.files import sync, write_atomically
from vton.metrics.pixelwise import output_psnr
from vton.models.codecs import Codec, build_codec, fit_codec, is_fitted, run_codec
from vton.processes import own_device
from vton.runs.folder import RunFolder


def prepare_codec(run: RunFolder, config: ExperimentConfig, data: TryOnDataModule) -> Codec:
    """The run's codec: pretrained, loaded from the run folder, or fitted on training pictures and
    saved there.
    """
    if is_fitted(config.codec):
        with FileLock(run.path / ".codec.lock"):  # of several processes one fits, the others load
            if not (run.codec / "done").exists():
                device = own_device(config.trainer.accelerator)
                codec = fit_codec(
                    build_codec(config.codec), config.codec, fitting_batches(config, data), device
                )
                codec.save(run.codec)
                report_codec(run, codec, data)
                for file in run.codec.iterdir():
                    sync(file)
                write_atomically(run.codec / "done", "")
    return run_codec(config.codec, run.codec)


def fitting_batches(config: ExperimentConfig, data: TryOnDataModule):
    """Persons and garments of training pairs, (B, 3, H, W): all `fit_images` once for `linear`,
    endless for `kl`.
    """
    images = data.training_pictures(config.codec.fit_images)  # (N, 3, H, W)
    if config.codec.name == "linear":
        return images.split(64)
    generator = torch.Generator().manual_seed(config.seed)
    return (
        images[torch.randint(len(images), (16,), generator=generator)] for _ in itertools.count()
    )


def report_codec(run: RunFolder, codec: Codec, data: TryOnDataModule) -> None:
    """Print how well the codec keeps held-out pictures: no score can be better than this."""
    batch = data.val_batch("paired", 64)
    quality = {"psnr": reconstruction_psnr(codec, batch.person.split(16))}
    quality["psnr_garment"] = reconstruction_psnr(
        codec, batch.person.split(16), batch.truth_garment_mask.split(16)
    )
    whole, garment = (
        "no score" if value is None else f"{value:.1f} dB" for value in quality.values()
    )
    print(f"Codec: {whole} on {len(batch)} held-out pictures, {garment} in the garment region.")
    write_atomically(run.codec / "quality.json", json.dumps(quality | {"n": len(batch)}) + "\n")


@torch.no_grad()
def reconstruction_psnr(
    codec: Codec, images: Sequence[Tensor], masks: Sequence[Tensor] | None = None
) -> float | None:
    """Reconstruction PSNR in dB, per picture and averaged; inside the masks (B, 1, H, W) where
    given.

    None where every mask is empty.
    """
    masks = [None] * len(images) if masks is None else masks
    outputs = (codec.decode(codec.encode(image)).clamp(-1, 1) for image in images)
    values = torch.cat([output_psnr(*parts) for parts in zip(outputs, images, masks, strict=True)])
    return values.mean().item() if len(values) else None

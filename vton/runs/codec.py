"""The codec of a run: pretrained, or fitted on its training pictures and kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import torch
from filelock import FileLock
from torch import Tensor

from vton.config import ExperimentConfig
from vton.data.module import TryOnDataModule
from vton.files import sync, write_atomically
from vton.metrics.pixelwise import output_psnr
from vton.models.codecs import Codec, build_codec, fit_codec, is_fitted, run_codec
from vton.models.precision import DTYPES, codec_precision
from vton.processes import own_device
from vton.runs.folder import RunFolder


def prepare_codec(run: RunFolder, config: ExperimentConfig, data: TryOnDataModule) -> Codec:
    """The run's codec: pretrained, loaded from the run folder, or fitted and saved there."""
    if is_fitted(config.codec):
        with FileLock(run.path / ".codec.lock"):  # one process fits, the others load
            if not (run.codec / "done").exists():
                fit_run_codec(run, config, data)
    return run_codec(config.codec, run.codec, DTYPES[codec_precision(config)])


def fit_run_codec(run: RunFolder, config: ExperimentConfig, data: TryOnDataModule) -> None:
    """Fit the codec and write it to the run folder; the file `done` is written last."""
    device = own_device(config.trainer.accelerator)
    codec = build_codec(config.codec)
    codec = fit_codec(codec, config.codec, fitting_batches(config, data), device)
    codec.save(run.codec)
    report_codec(run, codec, data)
    finish_codec(run)


def keep_codec(run: RunFolder, codec: Codec) -> None:
    """Write a codec that a run did not fit, but brought along, as if it had."""
    codec.save(run.codec)
    finish_codec(run)


def finish_codec(run: RunFolder) -> None:
    """Mark the codec as whole, when all of its files are on the disk."""
    for file in run.codec.iterdir():
        sync(file)
    write_atomically(run.codec / "done", "")


def fitting_batches(config: ExperimentConfig, data: TryOnDataModule) -> Iterable[Tensor]:
    """Persons and garments of training pairs, (B, 3, H, W).

    `linear` sees all `fit_images` once; `kl` draws from them without end.
    """
    images = data.training_pictures(config.codec.fit_images)  # (N, 3, H, W)
    if config.codec.name == "linear":
        return images.split(64)
    return endless_batches(images, config.seed)


def endless_batches(images: Tensor, seed: int) -> Iterator[Tensor]:
    """Random batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield images[torch.randint(len(images), (16,), generator=generator)]


def report_codec(run: RunFolder, codec: Codec, data: TryOnDataModule) -> None:
    """Print how well the codec keeps held-out pictures: no score can be better than this."""
    batch = data.val_batch("paired", 64)
    persons, masks = batch.person.split(16), batch.truth_garment_mask.split(16)
    whole = reconstruction_psnr(codec, persons)
    garment = reconstruction_psnr(codec, persons, masks)
    print(
        f"Codec: {decibels(whole)} on {len(batch)} held-out pictures, "
        f"{decibels(garment)} in the garment region."
    )
    quality = {"psnr": whole, "psnr_garment": garment, "n": len(batch)}
    write_atomically(run.codec / "quality.json", json.dumps(quality) + "\n")


def decibels(psnr: float | None) -> str:
    return "no score" if psnr is None else f"{psnr:.1f} dB"


@torch.no_grad()
def reconstruction_psnr(
    codec: Codec, images: Sequence[Tensor], masks: Sequence[Tensor] | None = None
) -> float | None:
    """Reconstruction PSNR in dB, per picture and averaged; inside the masks (B, 1, H, W) if given.

    None where every mask is empty.
    """
    if masks is None:
        masks = [None] * len(images)
    values = []
    for image, mask in zip(images, masks, strict=True):
        output = codec.decode(codec.encode(image)).clamp(-1, 1)
        values.append(output_psnr(output, image, mask))
    psnr = torch.cat(values)
    return psnr.mean().item() if len(psnr) else None

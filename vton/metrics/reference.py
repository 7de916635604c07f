"""The garment-driven metrics' part of `vton verify`: tensors named `metric.*` recomputed."""

from __future__ import annotations

import torch
from torch import Tensor

from vton.metrics import garment_driven
from vton.models.reference import Kind, Reference

PREFIX = "metric."
EXACT = ("metric.keypoints_", "metric.mp_matched", "metric.reference_resized")


def kind(name: str) -> Kind:
    return Kind.EXACT if name.startswith(EXACT) else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """The parts of CAMI-U and CAMI-S, their sums, and MP-LPIPS' matched points."""
    inputs = {
        name.removeprefix("metric."): x.cpu()
        for name, x in reference.inputs.items()
        if name.startswith("metric.")
    }
    names = ("reference_rgb", "generated_rgb", "pose_target_rgb", "pose_generated_rgb")
    garment, generated, *poses = (inputs[name].numpy() for name in names)
    faces = inputs["face_embed_target"], inputs["face_embed_generated"]
    parts = garment_driven.cami_s(
        garment,
        generated,
        *poses,
        faces,
        (inputs["clip_text_features"], inputs["clip_image_features"]),
        wrap=True,
    )
    scores = {
        "ssim": parts["ssim"],
        "keypoint_distance": 1 - parts["keypoints"],
        "lbp_correlation": parts["texture"],
        "cami_u": parts["ssim"] + parts["keypoints"] + parts["texture"],
        "pose_overlap": parts["pose"],
        "face_similarity": parts["face"],
        "clip_similarity": parts["text"],
        "cami_s": parts["cami_s"],
    }
    found = {name: torch.tensor([value], dtype=torch.float64) for name, value in scores.items()}
    found |= {
        "keypoints_reference": torch.as_tensor(garment_driven.harris_corners(garment)),
        "keypoints_generated": torch.as_tensor(garment_driven.harris_corners(generated)),
        "reference_resized_rgb": torch.as_tensor(
            garment_driven.resize_bilinear(garment, generated.shape[:2])
        ),
        "mp_matched_points_xy": garment_driven.match_points(
            inputs["mp_source_features"],
            inputs["mp_target_features"],
            inputs["mp_source_points_xy"],
        ),
    }
    return {f"metric.{name}": tensor for name, tensor in found.items()}

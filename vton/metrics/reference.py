"""The garment-driven metrics' part of `vton verify`: tensors named `metric.*` recomputed."""

from __future__ import annotations

import torch
from torch import Tensor

from vton.metrics.garment_driven import cami_s, match_points
from vton.metrics.opencv import harris_corners, resize_bilinear
from vton.models.reference import Kind, Reference

PREFIX = "metric."
COMPARED_EXACTLY = ("metric.keypoints_", "metric.mp_matched", "metric.reference_resized")


def kind(name: str) -> Kind:
    return Kind.EXACT if name.startswith(COMPARED_EXACTLY) else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """The parts of CAMI-U and CAMI-S, their sums, and MP-LPIPS' matched points."""
    inputs = {}
    for name, tensor in reference.inputs.items():
        if name.startswith(PREFIX):
            inputs[name.removeprefix(PREFIX)] = tensor.cpu()
    garment = inputs["reference_rgb"].numpy()
    generated = inputs["generated_rgb"].numpy()

    parts = cami_s(
        garment,
        generated,
        inputs["pose_target_rgb"].numpy(),
        inputs["pose_generated_rgb"].numpy(),
        faces=(inputs["face_embed_target"], inputs["face_embed_generated"]),
        text=(inputs["clip_text_features"], inputs["clip_image_features"]),
    )
    scores = {
        "ssim": parts["ssim"],
        "keypoint_distance": 1 - parts["keypoints"],
        "lbp_correlation": parts["texture"],
        "cami_u": parts["cami_u"],
        "pose_overlap": parts["pose"],
        "face_similarity": parts["face"],
        "clip_similarity": parts["text"],
        "cami_s": parts["cami_s"],
    }
    tensors = {name: torch.tensor([score], dtype=torch.float64) for name, score in scores.items()}
    tensors |= {
        "keypoints_reference": torch.as_tensor(harris_corners(garment)),
        "keypoints_generated": torch.as_tensor(harris_corners(generated)),
        "reference_resized_rgb": torch.as_tensor(resize_bilinear(garment, generated.shape[:2])),
        "mp_matched_points_xy": match_points(
            inputs["mp_source_features"],
            inputs["mp_target_features"],
            inputs["mp_source_points_xy"],
        ),
    }
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}

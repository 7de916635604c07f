"""Random persons: body, pose, appearance, and how the camera frames them."""

from __future__ import annotations

import numpy as np

from vton.data.synthetic.body import ASPECT, SIDES, Appearance, Body, Camera, build_body


def sample_body(rng: np.random.Generator) -> Body:
    """A random person in a random near-frontal pose."""
    turn = float(np.clip(rng.normal(0, 0.22), -0.42, 0.42))
    lean = float(rng.normal(0, 0.035))
    arms = {side: _sample_arm_angles(rng) for side, _ in SIDES}
    # The supporting leg comes back under the body: both legs slant against the lean.
    legs = {}
    for side, sign in SIDES:
        thigh = rng.uniform(0.0, 0.10) - sign * lean * 0.6
        legs[side] = (float(thigh), float(thigh + rng.uniform(-0.10, 0.02)))
    width = rng.normal(1, 0.05)
    half = {
        "shoulder": 0.31 * np.clip(rng.normal(1, 0.04), 0.9, 1.1),
        "chest": 0.30 * width,
        "waist": 0.255 * width * rng.uniform(0.92, 1.08),
        "hip": 0.335 * width * rng.uniform(0.96, 1.06),
    }
    tilt = float(rng.normal(0, 0.03))
    return build_body(
        half=half,
        girth=float(np.clip(rng.normal(1, 0.07), 0.85, 1.18)),
        arm_angles=arms,
        leg_angles=legs,
        arm_lengths=(0.57 * rng.uniform(0.95, 1.06), 0.50 * rng.uniform(0.94, 1.06)),
        leg_lengths=(0.82 * rng.uniform(0.95, 1.05), 0.80 * rng.uniform(0.95, 1.05)),
        lean=lean,
        shoulder_tilt=tilt,
        hip_tilt=float(-tilt + rng.normal(0, 0.02)),
        turn=turn,
        head=(float(0.10 * np.sin(turn) + rng.normal(0, 0.02)), -0.44, float(rng.normal(0, 0.06))),
        head_turn=float(0.16 * np.sin(turn) + rng.normal(0, 0.008)),
        right_arm_first=bool(rng.random() < 0.5),
        appearance=_sample_appearance(rng),
    )


def sample_camera(rng: np.random.Generator, layout: str) -> Camera:
    """Framing of the layout's photographs.

    Head to mid-thigh (VITON-HD) or nose to feet (DressCode).
    """
    if layout == "viton_hd":
        scale = rng.uniform(0.365, 0.405)
        x = ASPECT / 2 + rng.uniform(-0.03, 0.03)
        return Camera(scale, x, rng.uniform(0.295, 0.325))
    scale = rng.uniform(0.287, 0.303)
    x = ASPECT / 2 + rng.uniform(-0.02, 0.02)
    return Camera(scale, x, scale * rng.uniform(0.375, 0.405))


# How often each pose of an arm occurs.
POSES = {"hanging": 0.50, "hip": 0.14, "across": 0.20, "out": 0.10, "raised": 0.06}


def _sample_arm_angles(rng: np.random.Generator) -> tuple[float, float]:
    """Absolute angles of upper arm and forearm."""
    pose = rng.choice(list(POSES), p=list(POSES.values()))
    if pose == "hanging":
        upper = rng.uniform(0.10, 0.34)
        return upper, upper + rng.uniform(-0.28, 0.05)
    if pose == "hip":  # hand on the hip
        return rng.uniform(0.55, 0.85), rng.uniform(-0.75, -0.45)
    if pose == "across":  # hand in front of the torso
        return rng.uniform(0.12, 0.42), rng.uniform(-1.9, -0.75)
    if pose == "out":
        upper = rng.uniform(0.4, 0.8)
        return upper, upper + rng.uniform(-0.35, 0.35)
    upper = rng.uniform(0.9, 1.5)
    return upper, rng.uniform(2.2, 2.9)


SKINS = np.array(
    [
        [0.95, 0.80, 0.71],
        [0.87, 0.68, 0.55],
        [0.74, 0.54, 0.40],
        [0.55, 0.37, 0.26],
        [0.36, 0.23, 0.17],
    ]
)
HAIRS = np.array(
    [
        [0.09, 0.07, 0.07],
        [0.22, 0.13, 0.08],
        [0.42, 0.27, 0.15],
        [0.76, 0.60, 0.36],
        [0.50, 0.20, 0.10],
    ]
)
LIP_RED = np.array([0.62, 0.18, 0.22])


def _sample_appearance(rng: np.random.Generator) -> Appearance:
    length = float(rng.choice([0.12, 0.34, 0.62]) + rng.uniform(-0.05, 0.06))
    shoes = _colour(rng.uniform(0.08, 0.85) * rng.uniform(0.8, 1.0, 3))
    skin = _sample_near(rng, SKINS)
    lips = _colour(0.55 * np.array(skin) + 0.45 * LIP_RED)
    iris = _colour(rng.uniform([0.12, 0.1, 0.06], [0.4, 0.45, 0.5]))
    return Appearance(
        skin=skin,
        hair=_sample_near(rng, HAIRS),
        iris=iris,
        lips=lips,
        shoes=shoes,
        hair_length=length,
        hair_in_front=length > 0.5 and rng.random() < 0.35,
        sunglasses=bool(rng.random() < 0.03),
    )


def _sample_near(rng: np.random.Generator, colours: np.ndarray) -> tuple[float, float, float]:
    """A mix of the given colours, mostly near one of them."""
    mix = rng.dirichlet(np.full(len(colours), 0.35))
    return _colour(np.clip(mix @ colours + rng.uniform(-0.02, 0.02, 3), 0.03, 0.97))


def _colour(values: np.ndarray) -> tuple[float, float, float]:
    return tuple(values.tolist())

"""The articulated 2-D body: joints, silhouettes and looks of one person, and the mannequin of
product pictures.

Body coordinates: origin at the neck joint, y down, unit = distance from neck to mid hip. A camera
places them on the picture (unit: picture height). "Left" is the person's, hence the right half of
the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from vton.data.synthetic.profile import Profile

SIDES = (("right", -1.0), ("left", 1.0))
ASPECT = 0.75  # width of the picture over its height
CROTCH = 1.13  # y of the crotch on a body of unit torso
KNEE, ANKLE = 1.82, 2.62  # y of the mannequin's knees and ankles
_NEUTRAL_HALF = {"shoulder": 0.31, "chest": 0.30, "waist": 0.255, "hip": 0.335}

# BODY_25 joint numbers
NOSE, NECK, MID_HIP = 0, 1, 8
R_SHOULDER, R_ELBOW, R_WRIST, L_SHOULDER, L_ELBOW, L_WRIST = 2, 3, 4, 5, 6, 7
R_HIP, R_KNEE, R_ANKLE, L_HIP, L_KNEE, L_ANKLE = 9, 10, 11, 12, 13, 14
R_EYE, L_EYE, R_EAR, L_EAR = 15, 16, 17, 18
L_TOE, L_SMALL_TOE, L_HEEL, R_TOE, R_SMALL_TOE, R_HEEL = 19, 20, 21, 22, 23, 24

# Limb radius along the limb: 0 shoulder or hip, 1 elbow or knee, 2 wrist or ankle.
ARM_RADIUS = (
    (-0.3, 0.088),
    (0.0, 0.088),
    (0.5, 0.084),
    (1.0, 0.066),
    (1.3, 0.067),
    (2.0, 0.046),
    (2.1, 0.052),
    (2.22, 0.060),
    (2.33, 0.045),
)
LEG_RADIUS = (
    (-0.3, 0.168),
    (0.0, 0.168),
    (0.3, 0.160),
    (1.0, 0.103),
    (1.3, 0.106),
    (2.0, 0.062),
    (2.2, 0.060),
)
HAND_END = 2.30  # along the arm, where the axis of the hand ends


@dataclass(frozen=True)
class Camera:
    """Picture position = scale * body position + (x, y); unit: picture height, so x runs to ASPECT."""

    scale: float
    x: float
    y: float

    def to_canvas(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """Body coordinates (..., 2) in pixels of a width x height canvas; pixel centres lie at
        half-integers.
        """
        px = (self.scale * points[..., 0] + self.x) / ASPECT * width
        py = (self.scale * points[..., 1] + self.y) * height
        return np.stack((px, py), axis=-1)


@dataclass(frozen=True)
class Looks:
    """What a person looks like apart from shape and clothes. Colours are sRGB in [0, 1]."""

    skin: tuple[float, float, float] = (0.85, 0.67, 0.56)
    hair: tuple[float, float, float] = (0.2, 0.13, 0.09)
    iris: tuple[float, float, float] = (0.25, 0.2, 0.15)
    lips: tuple[float, float, float] = (0.72, 0.35, 0.34)
    shoes: tuple[float, float, float] = (0.15, 0.15, 0.17)
    hair_length: float = 0.2  # how far the hair falls below the head's centre
    hair_in_front: bool = False  # locks fall over the chest
    sunglasses: bool = False


@dataclass(frozen=True)
class Body:
    """One posed body. Profiles are functions of the trunk coordinate v: 0 neck, 1 hips, KNEE,
    ANKLE.
    """

    joints: np.ndarray  # (25, 2) body coordinates, BODY_25 order
    yaw: float  # sideways shift of the front, as a share of the half-width; 0 = frontal
    half: Profile  # half-width of the silhouette over v
    centre: Profile  # x of the trunk's centre line over y
    tilt: Profile  # slope of the trunk's rows over y
    trunk: Profile  # v over y
    arm_radius: Profile
    leg_radius: Profile
    neck_radius: float = 0.112
    head: tuple[float, float, float] = (0.0, -0.44, 0.0)  # centre x, y and roll (radians)
    head_size: tuple[float, float] = (0.160, 0.225)  # half-axes
    head_turn: float = 0.0  # sideways shift of nose and eyes
    right_arm_first: bool = True  # drawn before, hence behind, the left one
    looks: Looks = field(default_factory=Looks)

    def limb(self, kind: str, side: str) -> np.ndarray:
        """The three joints (3, 2) of an arm or a leg."""
        first = {
            "arm": {"right": R_SHOULDER, "left": L_SHOULDER},
            "leg": {"right": R_HIP, "left": L_HIP},
        }[kind][side]
        return self.joints[first : first + 3]

    def hand_end(self, side: str) -> np.ndarray:
        """Where the axis of the hand ends (2,)."""
        _, elbow, wrist = self.limb("arm", side)
        return wrist + (HAND_END - 2.0) * (wrist - elbow)


def build(
    *,
    half: dict[str, float] = _NEUTRAL_HALF,
    girth: float = 1.0,
    arm_angles: dict[str, tuple[float, float]],
    leg_angles: dict[str, tuple[float, float]],
    arm_lengths: tuple[float, float] = (0.57, 0.50),
    leg_lengths: tuple[float, float] = (KNEE - 1.0, ANKLE - KNEE),
    lean: float = 0.0,
    shoulder_tilt: float = 0.0,
    hip_tilt: float = 0.0,
    turn: float = 0.0,
    **rest,
) -> Body:
    """A body from its parameters. Limb angles: absolute, radians from straight down, positive
    outwards; `turn` is the yaw angle; `half` the half-widths of the trunk; `girth` scales the
    limbs' radii.
    """
    yaw, squeeze = 0.45 * np.sin(turn), np.cos(turn)
    half = {name: width * squeeze for name, width in half.items()}
    joints = np.zeros((25, 2))
    joints[MID_HIP] = lean, 1.0
    for side, sign in SIDES:
        shoulder, hip = (R_SHOULDER, R_HIP) if side == "right" else (L_SHOULDER, L_HIP)
        reach = sign * half["shoulder"]
        joints[shoulder] = reach, 0.02 + shoulder_tilt * reach
        reach = sign * (
            half["hip"] - LEG_RADIUS[0][1] * girth
        )  # the thigh's outer edge continues the hip
        joints[hip] = lean + reach, 1.0 + hip_tilt * reach
        for first, angles, lengths in (
            (shoulder, arm_angles[side], arm_lengths),
            (hip, leg_angles[side], leg_lengths),
        ):
            for step, (angle, length) in enumerate(zip(angles, lengths, strict=True)):
                direction = np.array([sign * np.sin(angle), np.cos(angle)])
                joints[first + step + 1] = joints[first + step] + length * direction
        _place_foot(joints, side, sign)
    radius = {
        "arm_radius": Profile.through([(t, r * girth) for t, r in ARM_RADIUS]),
        "leg_radius": Profile.through([(t, r * girth) for t, r in LEG_RADIUS]),
    }
    body = Body(
        joints=joints,
        yaw=yaw,
        **radius,
        **_trunk(joints, half, radius["leg_radius"], shoulder_tilt, hip_tilt),
        **rest,
    )
    _place_head(joints, body)
    return body


@lru_cache(maxsize=8)
def mannequin(arm_angle: float, leg_angle: float = 0.06) -> Body:
    """The neutral body of product pictures: limbs straight, spread by the given angles."""
    return build(
        arm_angles={side: (arm_angle, arm_angle) for side, _ in SIDES},
        leg_angles={side: (leg_angle, leg_angle) for side, _ in SIDES},
    )


def sample(rng: np.random.Generator) -> Body:
    """A random person in a random near-frontal pose."""
    turn = float(np.clip(rng.normal(0, 0.22), -0.42, 0.42))
    lean = float(rng.normal(0, 0.035))
    arms = {side: _arm_angles(rng) for side, _ in SIDES}
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
    return build(
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
        looks=_sample_looks(rng),
    )


def _arm_angles(rng: np.random.Generator) -> tuple[float, float]:
    """Absolute angles of upper arm and forearm: hanging, hand on the hip, across the torso, or
    raised.
    """
    kind = rng.choice(
        ["hanging", "hip", "across", "out", "raised"], p=[0.50, 0.14, 0.20, 0.10, 0.06]
    )
    if kind == "hanging":
        upper = rng.uniform(0.10, 0.34)
        return upper, upper + rng.uniform(-0.28, 0.05)
    if kind == "hip":
        return rng.uniform(0.55, 0.85), rng.uniform(-0.75, -0.45)
    if kind == "across":
        return rng.uniform(0.12, 0.42), rng.uniform(-1.9, -0.75)
    if kind == "out":
        upper = rng.uniform(0.4, 0.8)
        return upper, upper + rng.uniform(-0.35, 0.35)
    upper = rng.uniform(0.9, 1.5)
    return upper, rng.uniform(2.2, 2.9)


_SKINS = np.array(
    [
        [0.95, 0.80, 0.71],
        [0.87, 0.68, 0.55],
        [0.74, 0.54, 0.40],
        [0.55, 0.37, 0.26],
        [0.36, 0.23, 0.17],
    ]
)
_HAIRS = np.array(
    [
        [0.09, 0.07, 0.07],
        [0.22, 0.13, 0.08],
        [0.42, 0.27, 0.15],
        [0.76, 0.60, 0.36],
        [0.50, 0.20, 0.10],
    ]
)


def _sample_looks(rng: np.random.Generator) -> Looks:
    def near(colours: np.ndarray) -> tuple[float, float, float]:
        mix = rng.dirichlet(np.full(len(colours), 0.35))
        return tuple(
            float(c) for c in np.clip(mix @ colours + rng.uniform(-0.02, 0.02, 3), 0.03, 0.97)
        )

    length = float(rng.choice([0.12, 0.34, 0.62]) + rng.uniform(-0.05, 0.06))
    shoes = tuple(float(c) for c in rng.uniform(0.08, 0.85) * rng.uniform(0.8, 1.0, 3))
    skin = near(_SKINS)
    lips = tuple(float(c) for c in 0.55 * np.array(skin) + 0.45 * np.array([0.62, 0.18, 0.22]))
    iris = tuple(float(c) for c in rng.uniform([0.12, 0.1, 0.06], [0.4, 0.45, 0.5]))
    return Looks(
        skin,
        near(_HAIRS),
        iris,
        lips,
        shoes,
        length,
        length > 0.5 and rng.random() < 0.35,
        bool(rng.random() < 0.03),
    )


def _place_foot(joints: np.ndarray, side: str, sign: float) -> None:
    ankle = joints[R_ANKLE if side == "right" else L_ANKLE]
    toe = R_TOE if side == "right" else L_TOE
    # big toe, small toe, heel
    joints[toe : toe + 3] = ankle + np.array(
        [[sign * 0.07, 0.17], [sign * 0.11, 0.14], [-sign * 0.01, 0.05]]
    )


def _place_head(joints: np.ndarray, body: Body) -> None:
    x, y, roll = body.head
    for joint, (hx, hy) in {
        NOSE: (body.head_turn, 0.035),
        R_EYE: (-0.065 + 0.8 * body.head_turn, -0.04),
        L_EYE: (0.065 + 0.8 * body.head_turn, -0.04),
        R_EAR: (-0.150 + 0.2 * body.head_turn, -0.01),
        L_EAR: (0.150 + 0.2 * body.head_turn, -0.01),
    }.items():
        joints[joint] = (
            x + hx * np.cos(roll) - hy * np.sin(roll),
            y + hx * np.sin(roll) + hy * np.cos(roll),
        )


def _trunk(joints, half, leg_radius, shoulder_tilt, hip_tilt) -> dict[str, Profile]:
    """Centre line, row slope, trunk coordinate and silhouette, from the neck down to the ankles."""
    hip_x = joints[MID_HIP, 0]
    knee, ankle = joints[[R_KNEE, L_KNEE]].mean(0), joints[[R_ANKLE, L_ANKLE]].mean(0)
    centre = Profile.through(
        [(-1.0, 0.0), (0.0, 0.0), (1.0, hip_x), (knee[1], knee[0]), (ankle[1], ankle[0])]
    )
    tilt = Profile.through(
        [(-0.3, shoulder_tilt), (0.1, shoulder_tilt), (1.0, hip_tilt), (1.6, 0.0), (3.0, 0.0)]
    )
    trunk = Profile.of(
        lambda y: np.interp(
            y, [-1, 0, 1, knee[1], ankle[1], ankle[1] + 1], [-1, 0, 1, KNEE, ANKLE, ANKLE + 1]
        ),
        -1.0,
        ankle[1] + 1,
    )
    upper = (
        PROFILE_V[:-1],
        [
            half["shoulder"] - 0.005,
            half["shoulder"] - 0.005,
            half["shoulder"] - 0.02,
            half["chest"],
            half["waist"],
            half["hip"] * 0.985,
        ],
    )
    # Below the hips the silhouette is that of the two legs.
    t = np.linspace(0.0, 2.0, 24)
    sides = []
    for side, sign in SIDES:
        hip = R_HIP if side == "right" else L_HIP
        x = np.interp(t, [0, 1, 2], joints[hip : hip + 3, 0])
        y = np.interp(t, [0, 1, 2], joints[hip : hip + 3, 1])
        sides.append((sign * (x - centre(y.astype(np.float32)))) + leg_radius(t.astype(np.float32)))
    legs = np.maximum(sides[0], sides[1])
    v = np.interp(t, [0, 1, 2], [1.0, KNEE, ANKLE])
    points = [*zip(*upper, strict=True), (1.05, max(half["hip"], float(legs[0])))]
    points += [(float(a), float(b)) for a, b in zip(v, legs, strict=True) if a > 1.1]
    return {"centre": centre, "tilt": tilt, "trunk": trunk, "half": Profile.through(points)}


PROFILE_V = (
    -0.30,
    -0.02,
    0.13,
    0.32,
    0.68,
    0.95,
    1.05,
)  # trunk coordinates of the upper silhouette's supports


def camera(rng: np.random.Generator, layout: str) -> Camera:
    """Framing of the layout's photographs: head to mid-thigh (VITON-HD) or nose to feet
    (DressCode).
    """
    if layout == "viton_hd":
        return Camera(
            rng.uniform(0.365, 0.405),
            ASPECT / 2 + rng.uniform(-0.03, 0.03),
            rng.uniform(0.295, 0.325),
        )
    scale = rng.uniform(0.287, 0.303)
    return Camera(scale, ASPECT / 2 + rng.uniform(-0.02, 0.02), scale * rng.uniform(0.375, 0.405))

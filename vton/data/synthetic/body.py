"""The articulated 2-D body: joints, silhouettes and appearance of one person, and the mannequin.

Body coordinates: origin at the neck joint, y down, unit = distance from neck to mid hip. A camera
places them on the picture (unit: picture height). "Left" is the person's, hence the right half of
the picture. The mannequin is what product pictures are drawn on.
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
# First of the three joints of each limb.
LIMB_ROOTS = {
    ("arm", "right"): R_SHOULDER,
    ("arm", "left"): L_SHOULDER,
    ("leg", "right"): R_HIP,
    ("leg", "left"): L_HIP,
}

# (position along the limb, radius); 0 shoulder or hip, 1 elbow or knee, 2 wrist or ankle.
ARM_RADIUS = (
    *((-0.3, 0.088), (0.0, 0.088), (0.5, 0.084), (1.0, 0.066), (1.3, 0.067), (2.0, 0.046)),
    *((2.1, 0.052), (2.22, 0.060), (2.33, 0.045)),  # hand
)
LEG_RADIUS = (
    *((-0.3, 0.168), (0.0, 0.168), (0.3, 0.160), (1.0, 0.103), (1.3, 0.106), (2.0, 0.062)),
    (2.2, 0.060),
)
HAND_END = 2.30  # along the arm, where the axis of the hand ends
TRUNK_TOP, CHEST = -0.30, 0.32  # trunk coordinates


@dataclass(frozen=True)
class Camera:
    """Picture position = scale * body position + (x, y).

    The unit is the picture's height, so x runs to ASPECT.
    """

    scale: float
    x: float
    y: float

    def to_canvas(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """Body coordinates (..., 2) in pixels of a width x height canvas.

        Pixel centres lie at half-integers.
        """
        px = (self.scale * points[..., 0] + self.x) / ASPECT * width
        py = (self.scale * points[..., 1] + self.y) * height
        return np.stack((px, py), axis=-1)


@dataclass(frozen=True)
class Appearance:
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
    """One posed body.

    Profiles are functions of the trunk coordinate v: 0 neck, 1 hips, KNEE, ANKLE.
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
    right_arm_first: bool = True  # the right arm is drawn before, hence behind, the left one
    appearance: Appearance = field(default_factory=Appearance)

    def limb(self, kind: str, side: str) -> np.ndarray:
        """The three joints (3, 2) of an arm or a leg."""
        first = LIMB_ROOTS[kind, side]
        return self.joints[first : first + 3]

    @property
    def arm_order(self) -> tuple[str, str]:
        """The sides of the arms, the one behind first."""
        return ("right", "left") if self.right_arm_first else ("left", "right")

    def hand_end(self, side: str) -> np.ndarray:
        """Where the axis of the hand ends (2,)."""
        _, elbow, wrist = self.limb("arm", side)
        return wrist + (HAND_END - 2.0) * (wrist - elbow)


def build_body(
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
    """A body from its parameters.

    half:       half-widths of the trunk
    girth:      scales the limbs' radii
    arm_angles, leg_angles: of both bones of each side, absolute, radians from straight down,
                positive outwards
    turn:       the yaw angle
    rest:       other fields of Body
    """
    yaw = 0.45 * np.sin(turn)
    half = {name: width * np.cos(turn) for name, width in half.items()}
    joints = np.zeros((25, 2))
    joints[MID_HIP] = lean, 1.0
    for side, sign in SIDES:
        shoulder = LIMB_ROOTS["arm", side]
        hip = LIMB_ROOTS["leg", side]
        reach = sign * half["shoulder"]
        joints[shoulder] = reach, 0.02 + shoulder_tilt * reach
        # The thigh's outer edge continues the hip.
        reach = sign * (half["hip"] - LEG_RADIUS[0][1] * girth)
        joints[hip] = lean + reach, 1.0 + hip_tilt * reach
        _place_limb(joints, shoulder, sign, arm_angles[side], arm_lengths)
        _place_limb(joints, hip, sign, leg_angles[side], leg_lengths)
        _place_foot(joints, side, sign)
    arm_radius = Profile.through([(t, radius * girth) for t, radius in ARM_RADIUS])
    leg_radius = Profile.through([(t, radius * girth) for t, radius in LEG_RADIUS])
    body = Body(
        joints=joints,
        yaw=yaw,
        arm_radius=arm_radius,
        leg_radius=leg_radius,
        **_trunk(joints, half, leg_radius, shoulder_tilt, hip_tilt),
        **rest,
    )
    _place_head(joints, body)
    return body


@lru_cache(maxsize=8)
def mannequin(arm_angle: float, leg_angle: float = 0.06) -> Body:
    """The neutral body of product pictures: limbs straight, spread by the given angles."""
    arm = (arm_angle, arm_angle)
    leg = (leg_angle, leg_angle)
    return build_body(
        arm_angles={"right": arm, "left": arm}, leg_angles={"right": leg, "left": leg}
    )


def _place_limb(
    joints: np.ndarray,
    root: int,
    sign: float,
    angles: tuple[float, float],
    lengths: tuple[float, float],
) -> None:
    """Set the two joints after `root` of a limb."""
    for joint, angle, length in zip((root, root + 1), angles, lengths, strict=True):
        direction = np.array([sign * np.sin(angle), np.cos(angle)])
        joints[joint + 1] = joints[joint] + length * direction


def _place_foot(joints: np.ndarray, side: str, sign: float) -> None:
    ankle = joints[R_ANKLE if side == "right" else L_ANKLE]
    toe = R_TOE if side == "right" else L_TOE
    joints[toe] = ankle + np.array([sign * 0.07, 0.17])
    joints[toe + 1] = ankle + np.array([sign * 0.11, 0.14])  # small toe
    joints[toe + 2] = ankle + np.array([-sign * 0.01, 0.05])  # heel


def _place_head(joints: np.ndarray, body: Body) -> None:
    x, y, roll = body.head
    turn = body.head_turn
    places = {
        NOSE: (turn, 0.035),
        R_EYE: (-0.065 + 0.8 * turn, -0.04),
        L_EYE: (0.065 + 0.8 * turn, -0.04),
        R_EAR: (-0.150 + 0.2 * turn, -0.01),
        L_EAR: (0.150 + 0.2 * turn, -0.01),
    }
    for joint, (across, down) in places.items():
        joints[joint, 0] = x + across * np.cos(roll) - down * np.sin(roll)
        joints[joint, 1] = y + across * np.sin(roll) + down * np.cos(roll)


def _trunk(
    joints: np.ndarray,
    half: dict[str, float],
    leg_radius: Profile,
    shoulder_tilt: float,
    hip_tilt: float,
) -> dict[str, Profile]:
    """Centre line, row slope, trunk coordinate and silhouette, from the neck down to the ankles."""
    hip_x = joints[MID_HIP, 0]
    knee_x, knee_y = joints[[R_KNEE, L_KNEE]].mean(0)
    ankle_x, ankle_y = joints[[R_ANKLE, L_ANKLE]].mean(0)
    centre = Profile.through(
        [(-1.0, 0.0), (0.0, 0.0), (1.0, hip_x), (knee_y, knee_x), (ankle_y, ankle_x)]
    )
    tilt = Profile.through(
        [(-0.3, shoulder_tilt), (0.1, shoulder_tilt), (1.0, hip_tilt), (1.6, 0.0), (3.0, 0.0)]
    )
    heights = [-1, 0, 1, knee_y, ankle_y, ankle_y + 1]
    coordinates = [-1, 0, 1, KNEE, ANKLE, ANKLE + 1]
    trunk = Profile.of(lambda y: np.interp(y, heights, coordinates), -1.0, ankle_y + 1)
    return {
        "centre": centre,
        "tilt": tilt,
        "trunk": trunk,
        "half": _outline(joints, half, leg_radius, centre),
    }


def _outline(
    joints: np.ndarray, half: dict[str, float], leg_radius: Profile, centre: Profile
) -> Profile:
    """Half-width of the silhouette over the trunk coordinate."""
    # Below the hips the silhouette is that of the two legs.
    along = np.linspace(0.0, 2.0, 24)
    edges = []
    for side, sign in SIDES:
        first = LIMB_ROOTS["leg", side]
        x = np.interp(along, [0, 1, 2], joints[first : first + 3, 0])
        y = np.interp(along, [0, 1, 2], joints[first : first + 3, 1])
        bone = sign * (x - centre(y.astype(np.float32)))
        edges.append(bone + leg_radius(along.astype(np.float32)))
    legs = np.maximum(edges[0], edges[1])
    points = [
        (TRUNK_TOP, half["shoulder"] - 0.005),
        (-0.02, half["shoulder"] - 0.005),
        (0.13, half["shoulder"] - 0.02),
        (CHEST, half["chest"]),
        (0.68, half["waist"]),
        (0.95, half["hip"] * 0.985),
        (1.05, max(half["hip"], float(legs[0]))),
    ]
    for v, width in zip(np.interp(along, [0, 1, 2], [1.0, KNEE, ANKLE]), legs, strict=True):
        if v > 1.1:
            points.append((float(v), float(width)))
    return Profile.through(points)

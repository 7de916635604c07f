"""Agnostic masks on label maps drawn here: what each rule hides, keeps and, as published, leaks."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from vton.config import MaskRule
from vton.data import labels
from vton.data.boxes import bounding_box
from vton.data.derived.agnostic import agnostic_image, agnostic_mask
from vton.data.derived.published_masks import agnostic_parse
from vton.data.labels import COAT, DRESS, FACE, HAIR, NECK, PANTS, SKIRT, UPPER
from vton.data.pose import ARMS, LEGS
from vton.data.sample import CATEGORIES, DataError

RULES = get_args(MaskRule)
OURS = ("safe", "hull", "box")
SMALL, FULL = (128, 96), (1024, 768)
# COCO-18 of a full figure in thousandths of the height; x from the middle of the picture.
JOINTS = np.array(
    [
        *((0, 110), (0, 190)),  # nose, neck
        *((-65, 195), (-95, 300), (-110, 395)),  # right arm
        *((65, 195), (95, 300), (110, 395)),  # left arm
        *((-38, 430), (-42, 620), (-45, 800)),  # right leg
        *((38, 430), (42, 620), (45, 800)),  # left leg
        *((-12, 100), (12, 100), (-25, 105), (25, 105)),  # eyes, ears
    ]
)
TARGETS = {"upper_body": (UPPER,), "lower_body": (PANTS,), "dresses": (UPPER, PANTS)}
ARM_LABELS = (labels.RIGHT_ARM, labels.LEFT_ARM)
LEG_LABELS = (labels.RIGHT_LEG, labels.LEFT_LEG)
FEET = (labels.RIGHT_SHOE, labels.LEFT_SHOE)
# Outfits: label of the top, how far its sleeves reach (0 none, 1 elbow, 2 wrist), label below, how
# far it reaches (0 mid-thigh, 1 knee, 2 ankle).
OUTFITS = {
    "tee and trousers": (UPPER, 1, PANTS, 2),
    "vest and skirt": (UPPER, 0, SKIRT, 1),
    "coat and shorts": (COAT, 2, PANTS, 0),
    "dress": (DRESS, 1, DRESS, 1),
    "dress read as two pieces": (UPPER, 2, SKIRT, 1),
    "skirt read as dress": (UPPER, 1, DRESS, 1),
}
WORN = {  # category -> outfit -> labels of the garment to replace
    "upper_body": {
        "tee and trousers": (UPPER,),
        "vest and skirt": (UPPER,),
        "coat and shorts": (COAT,),
        "dress": (DRESS,),
    },
    "lower_body": {
        "tee and trousers": (PANTS,),
        "vest and skirt": (SKIRT,),
        "coat and shorts": (PANTS,),
        "skirt read as dress": (DRESS,),
    },
    "dresses": {"dress": (DRESS,), "dress read as two pieces": (UPPER, SKIRT)},
}
CASES = [(category, outfit) for category, outfits in WORN.items() for outfit in outfits]
LEAKS = {  # (rule, category, outfit): the papers' own omissions
    ("dresscode_ref", "upper_body", "dress"),
    ("viton_hd", "upper_body", "dress"),
    ("hr_viton", "upper_body", "dress"),
    ("cat_dm", "upper_body", "dress"),
    ("dresscode_ref", "lower_body", "vest and skirt"),
    ("ladi", "lower_body", "vest and skirt"),
    ("dresscode_ref", "lower_body", "skirt read as dress"),
    ("ladi", "lower_body", "skirt read as dress"),
    ("ootd", "lower_body", "skirt read as dress"),
    ("dresscode_ref", "dresses", "dress read as two pieces"),
    ("ladi", "dresses", "dress read as two pieces"),
    ("leffa_dc", "upper_body", "dress"),
    ("leffa_dc", "lower_body", "vest and skirt"),
    ("leffa_dc", "lower_body", "skirt read as dress"),
    ("leffa_hd", "lower_body", "skirt read as dress"),
    ("leffa_dc", "dresses", "dress read as two pieces"),
}


def joints(size=SMALL, missing=()):
    points = JOINTS / 1000 * size[0] + np.array([size[1] / 2, 0])
    table = np.column_stack([points, np.ones(18)])
    table[list(missing)] = 0
    return table


def person(outfit="tee and trousers", size=SMALL, neck=True):
    """(H, W) uint8 parse map: skin and clothes as capsules along the limbs, drawn back to front."""
    top, sleeves, bottom, legs = OUTFITS[outfit]
    image = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(image)
    points = [tuple(point) for point in joints(size)[:, :2]]
    unit = size[0] / 1000

    def limb(start, end, width, label):
        draw.line([start, end], fill=label, width=max(1, round(width * unit)))
        for x, y in (start, end):
            r = width * unit / 2
            draw.ellipse([x - r, y - r, x + r, y + r], fill=label)

    for side, (hip, knee, ankle) in enumerate(LEGS):
        x, y = points[ankle]
        draw.rectangle([x - 25 * unit, y, x + 25 * unit, y + 40 * unit], fill=FEET[side])
        limb(points[hip], points[knee], 60, LEG_LABELS[side])
        limb(points[knee], points[ankle], 45, LEG_LABELS[side])
        middle = tuple((np.array(points[hip]) + points[knee]) / 2)
        limb(points[hip], (middle, points[knee], points[knee])[legs], 75, bottom)
        if legs == 2:
            limb(points[knee], points[ankle], 60, bottom)
    if bottom in (SKIRT, DRESS):
        draw.polygon([points[8], points[11], points[12], points[9]], fill=bottom)
    draw.polygon([points[2], points[5], points[11], points[8]], fill=top)
    for side, (shoulder, elbow, wrist) in enumerate(ARMS):
        reach = tuple(np.array(points[wrist]) + 0.3 * (np.array(points[wrist]) - points[elbow]))
        limb(points[shoulder], points[elbow], 38, ARM_LABELS[side])
        limb(points[elbow], reach, 34, ARM_LABELS[side])
        if sleeves > 0:
            limb(points[shoulder], points[elbow], 48, top)
        if sleeves == 2:
            limb(points[elbow], points[wrist], 44, top)
    x, y = points[1]
    throat = [x - 22 * unit, y - 40 * unit, x + 22 * unit, y + 8 * unit]
    draw.rectangle(throat, fill=NECK if neck else FACE)
    x, y = points[0]
    draw.ellipse([x - 50 * unit, y - 60 * unit, x + 50 * unit, y + 50 * unit], fill=HAIR)
    draw.ellipse([x - 38 * unit, y - 40 * unit, x + 38 * unit, y + 50 * unit], fill=FACE)
    return np.array(image)


def visible(parse, mask, which):
    region = np.isin(parse, which)
    assert region.any(), "the test draws nothing of this label"
    return float((region & ~mask).sum() / region.sum())


@pytest.mark.parametrize("size", [SMALL, (512, 384)])
@pytest.mark.parametrize("rule", OURS)
@pytest.mark.parametrize(("category", "outfit"), CASES)
def test_nothing_of_the_garment_stays_under_our_rules(rule, category, outfit, size):
    parse = person(outfit, size)
    mask = agnostic_mask(parse, joints(size), category, rule)
    assert mask.dtype == bool and mask.shape == size
    assert visible(parse, mask, WORN[category][outfit]) == 0
    assert mask[np.isin(parse, labels.GARMENT_LABELS[category])].all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in OURS])
@pytest.mark.parametrize(("category", "outfit"), CASES)
def test_published_rules_leak_where_their_papers_do_and_nowhere_else(rule, category, outfit):
    parse = person(outfit, (512, 384))
    mask = agnostic_mask(parse, joints((512, 384)), category, rule)
    share = visible(parse, mask, WORN[category][outfit])
    if (rule, category, outfit) in LEAKS:
        assert share > 0.1
    else:
        assert share < 0.02


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("category", "outfit"), CASES)
def test_without_any_joint_the_parse_map_alone_hides_the_garment(rule, category, outfit):
    parse = person(outfit)
    mask = agnostic_mask(parse, joints(missing=range(18)), category, rule)
    if rule in (*OURS, "viton_hd", "hr_viton", "cat_dm"):
        assert visible(parse, mask, WORN[category][outfit]) == 0
    elif (rule, category, outfit) not in LEAKS:
        assert visible(parse, mask, WORN[category][outfit]) < 0.02


def beyond_wrists(parse, size):
    """Arm-label pixels clearly beyond the wrists, and those clearly before them."""
    rows = np.arange(size[0])[:, None]
    arms = np.isin(parse, ARM_LABELS)
    wrist, forearm = JOINTS[4][1] / 1000 * size[0], 0.095 * size[0]
    return arms & (rows > wrist + 0.25 * forearm), arms & (rows < wrist - 0.1 * forearm)


@pytest.mark.parametrize("category", ["upper_body", "dresses"])
@pytest.mark.parametrize("outfit", ["vest and skirt", "tee and trousers"])
def test_safe_leaves_room_for_long_sleeves_but_keeps_the_hands(category, outfit):
    parse = person(outfit, (512, 384))
    mask = agnostic_mask(parse, joints((512, 384)), category)
    hands, arms = beyond_wrists(parse, (512, 384))
    assert hands.sum() > 100 and arms.sum() > 1000
    assert mask[arms].all()
    assert not mask[hands].any()


def test_safe_leaves_room_for_trousers_and_skirts():
    parse = person("coat and shorts", (512, 384))
    mask = agnostic_mask(parse, joints((512, 384)), "lower_body")
    assert mask[np.isin(parse, LEG_LABELS)].all()
    between_knees = (int(0.62 * 512), 192)
    assert parse[between_knees] == 0 and mask[between_knees]


@pytest.mark.parametrize("rule", ["safe", "hull"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_head_shoes_and_other_garments_are_kept(rule, category):
    parse = person("tee and trousers", (512, 384))
    mask = agnostic_mask(parse, joints((512, 384)), category, rule)
    assert not mask[parse == FACE].any()
    # A rim of 2 px of 512 around the garment is repainted: there resampled pixels still show it.
    rim = ndimage.binary_dilation(np.isin(parse, TARGETS[category]), np.ones((5, 5)))
    others = {"upper_body": (PANTS,), "lower_body": (UPPER,), "dresses": ()}
    kept = (*FEET, *others[category])
    assert not mask[np.isin(parse, kept) & ~rim].any()
    if category == "lower_body":
        assert not mask[beyond_wrists(parse, (512, 384))[0] & ~rim].any()


@pytest.mark.parametrize("size", [SMALL, (512, 384)])
def test_safe_repaints_the_rim_where_resampling_mixes_in_the_garment(size):
    """Next to the top also hands and trousers, at least one pixel wide; never the face."""
    parse = person("dress read as two pieces", size)
    mask = agnostic_mask(parse, joints(size), "upper_body")
    rim = ndimage.binary_dilation(parse == UPPER, np.ones((3, 3))) & (parse != UPPER)
    assert np.isin(parse[rim], ARM_LABELS).any() and (parse[rim] == SKIRT).any()
    assert mask[rim & (parse != FACE)].all()


@pytest.mark.parametrize("category", CATEGORIES)
def test_without_joints_safe_still_repaints_the_skin_that_a_new_garment_covers(category):
    parse = person("coat and shorts" if category == "lower_body" else "vest and skirt")
    mask = agnostic_mask(parse, joints(missing=range(18)), category)
    if category != "upper_body":
        assert mask[np.isin(parse, LEG_LABELS)].all()
    if category != "lower_body":
        assert mask[np.isin(parse, (*ARM_LABELS, NECK))].all()


def test_a_head_label_that_includes_the_neck_is_cut_at_the_shoulder_line():
    size = (512, 384)
    parse = person(size=size, neck=False)
    line = JOINTS[2][1] / 1000 * size[0] - 20
    rows = np.arange(size[0])[:, None]
    for rule in ("safe", "dresscode_ref", "ootd", "hr_viton"):
        mask = agnostic_mask(parse, joints(size), "upper_body", rule)
        head = parse == FACE
        assert mask[head & (rows > line + 2)].mean() > 0.9, rule
        assert not mask[head & (rows < line - 2)].any(), rule
    assert not agnostic_mask(parse, joints(size), "lower_body")[parse == FACE].any()


def test_hair_on_the_chest_is_repainted_and_on_the_head_kept():
    parse = person(size=(512, 384))
    parse[130:200, 150:175] = HAIR  # a strand over the shoulder
    mask = agnostic_mask(parse, joints((512, 384)), "upper_body")
    assert mask[130:200, 150:175].all()
    assert not mask[(parse == HAIR) & (np.arange(512)[:, None] < 70)].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("category", CATEGORIES)
def test_masks_scale_with_the_picture(rule, category):
    outfit = "dress" if category == "dresses" else "tee and trousers"
    large = agnostic_mask(person(outfit, FULL), joints(FULL), category, rule)
    small = agnostic_mask(person(outfit, SMALL), joints(SMALL), category, rule)
    reduced = large.reshape(128, 8, 96, 8).mean(axis=(1, 3)) > 0.5
    assert (small & reduced).sum() / (small | reduced).sum() > 0.87  # a leg is 10 px wide at 128
    assert 0.03 < large.mean() < 0.6


def test_viton_hd_erases_hands_and_hr_viton_brings_them_back():
    size = (512, 384)
    parse = person("vest and skirt", size)
    hands = beyond_wrists(parse, size)[0]
    kept = {}
    for rule in ("viton_hd", "hr_viton", "cat_dm"):
        mask = agnostic_mask(parse, joints(size), "upper_body", rule)
        kept[rule] = 1 - mask[hands].mean()
    assert kept["hr_viton"] > kept["cat_dm"] >= kept["viton_hd"]
    assert kept["viton_hd"] < 0.1


def test_hr_viton_follows_the_person_and_viton_hd_does_not():
    """Half the person, half the arm line, where r depends on the shoulders.

    The fixed r stays 20 px of 1024.
    """
    nothing = np.zeros(FULL, np.uint8)
    whole = joints(FULL)
    half = joints(FULL)
    half[:, :2] = (half[:, :2] - [384, 200]) * 0.5 + [384, 200]

    def shrinks(rule):
        large = agnostic_mask(nothing, whole, "upper_body", rule)
        return large.sum() / agnostic_mask(nothing, half, "upper_body", rule).sum()

    assert shrinks("hr_viton") > 3
    assert shrinks("viton_hd") < 3


def test_hull_tells_less_of_the_sleeve_than_ootd():
    short = person("vest and skirt")
    long = person("dress read as two pieces")

    def changed(rule):
        covered = agnostic_mask(short, joints(), "upper_body", rule)
        return (covered ^ agnostic_mask(long, joints(), "upper_body", rule)).sum()

    assert changed("hull") < 0.5 * changed("ootd")


def test_a_missing_wrist_shortens_the_arm_line_of_dresscode_and_takes_the_whole_arm_in_ootd():
    parse = person("vest and skirt", (512, 384))
    right = parse == labels.RIGHT_ARM
    whole = joints((512, 384))
    without = joints((512, 384), missing=(4,))
    long = agnostic_mask(parse, whole, "upper_body", "dresscode_ref")
    short = agnostic_mask(parse, without, "upper_body", "dresscode_ref")
    assert short[right].sum() < long[right].sum()
    assert agnostic_mask(parse, without, "upper_body", "ootd")[right].all()
    assert agnostic_mask(parse, without, "upper_body", "safe")[right].all()


def test_ootd_keeps_one_region_and_fills_its_holes():
    parse = person(size=(512, 384))
    parse[400:420, 20:40] = UPPER  # a speck of label noise far away
    parse[140:150, 188:196] = labels.BAG  # something kept inside the torso
    mask = agnostic_mask(parse, joints((512, 384)), "upper_body", "ootd")
    assert not mask[400:420, 20:40].any()
    assert mask[140:150, 188:196].all()


def test_box_is_a_box_around_garment_and_arms():
    parse = person("vest and skirt")
    mask = agnostic_mask(parse, joints(), "upper_body", "box")
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    assert mask.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert mask[np.isin(parse, (UPPER, *ARM_LABELS))].all()


def test_agnostic_image_paints_gray_and_leaves_its_input_alone():
    photo = np.random.default_rng(0).integers(0, 256, (*SMALL, 3), dtype=np.uint8)
    mask = agnostic_mask(person(), joints(), "upper_body")
    before = photo.copy()
    painted = agnostic_image(photo, mask)
    assert (painted[mask] == 128).all() and (painted[~mask] == photo[~mask]).all()
    assert (photo == before).all()
    assert (agnostic_image(photo, mask, fill=0)[mask] == 0).all()


def test_agnostic_parse_drops_garment_neck_and_drawn_arms_only():
    """A person as large as VITON-HD's: the wrist's disc has a radius of 40 px.

    What lies beyond it stays.
    """
    parse = np.zeros(FULL, np.uint8)
    table = np.zeros((18, 3))
    table[[2, 5, 6, 7]] = (260, 300, 1), (500, 300, 1), (530, 550, 1), (530, 780, 1)
    parse[280:700, 260:500] = UPPER
    parse[240:300, 350:420] = NECK
    parse[700:1000, 250:510] = PANTS
    parse[300:880, 510:550] = labels.LEFT_ARM
    parse[300:880, 210:250] = labels.RIGHT_ARM  # its elbow and wrist were not found
    before = parse.copy()
    agnostic = agnostic_parse(parse, table)
    assert agnostic.dtype == np.uint8 and (parse == before).all()
    assert not np.isin(agnostic, (UPPER, NECK)).any()
    assert (agnostic == PANTS).sum() == (parse == PANTS).sum()
    assert not agnostic[305:815, 510:550].any()
    assert (agnostic[825:880, 510:550] == labels.LEFT_ARM).all()
    assert (agnostic[500:880, 210:250] == labels.RIGHT_ARM).all()


def test_agnostic_parse_without_joints_keeps_the_arms():
    parse = person("vest and skirt")
    agnostic = agnostic_parse(parse, joints(missing=range(18)))
    assert (np.isin(agnostic, ARM_LABELS) == np.isin(parse, ARM_LABELS)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parse": np.zeros((4, 4, 3), np.uint8)}, "parse map"),
        ({"parse": np.zeros((4, 4), np.int64)}, "int64"),
        ({"parse": np.full((4, 4), 40, np.uint8)}, "label 40"),
        ({"joints": np.zeros((25, 3))}, r"\(25, 3\)"),
        ({"joints": np.full((18, 3), np.nan)}, "finite"),
        ({"category": "hats"}, "hats"),
        ({"rule": "magic"}, "magic.*hr_viton"),
    ],
)
def test_bad_input_says_what_is_wrong(change, message):
    arguments = {"parse": person(), "joints": joints(), "category": "upper_body", "rule": "safe"}
    arguments |= change
    with pytest.raises(DataError, match=message):
        agnostic_mask(**arguments)


@pytest.mark.parametrize(("category", "outfit"), CASES)
def test_tryondiffusion_blanks_the_persons_box_and_pastes_head_hands_and_the_rest_back(
    category, outfit
):
    size = (512, 384)
    parse = person(outfit, size)
    mask = agnostic_mask(parse, joints(size), category, "tryondiffusion")
    box = np.zeros(size, bool)
    box[bounding_box(parse > 0).slices] = True
    assert mask[box & (parse == 0)].all() and not mask[~box].any()  # the wall beside the person too
    assert visible(parse, mask, WORN[category][outfit]) == 0
    assert visible(parse, mask, (FACE, HAIR)) == 1
    assert not mask[np.isin(parse, FEET)].any()
    hands, forearms = beyond_wrists(parse, size)
    if category == "lower_body":
        assert not mask[np.isin(parse, ARM_LABELS)].any()
    else:
        assert hands.any() and not mask[hands].any()
        # Hands are cut along the forearm, not along the rows.
        assert (forearms & ~mask).sum() <= 0.03 * forearms.sum()
        below = set(OUTFITS[outfit][2:3]) - set(WORN[category][outfit]) - {DRESS}
        assert all(not mask[parse == label].any() for label in below)

"""The geometric warp on garments and bodies drawn here: parts must land on their bones."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from vton.data.derived import warp
from vton.data.derived.geometric import fit_box
from vton.data.derived.silhouette import read_bottom, read_top
from vton.data.derived.warp import register_warp, warp_source
from vton.data.sample import CATEGORIES, DataError

SIZE = (256, 192)
# Colours of trunk, picture-left limb and picture-right limb.
BODY, LEFT, RIGHT = (0, 160, 0), (200, 0, 0), (0, 0, 200)
# COCO-18 in pixels of SIZE; person's right is picture-left. Shoulders are 48 px apart.
JOINTS = np.array(
    [
        *((96, 30), (96, 52)),  # nose, neck
        *((72, 54), (66, 100), (62, 142)),  # right arm
        *((120, 54), (126, 100), (130, 142)),  # left arm
        *((81, 127), (80, 186), (79, 243)),  # right leg
        *((111, 127), (112, 186), (113, 243)),  # left leg
        *((92, 27), (100, 27), (88, 29), (104, 29)),  # eyes, ears
    ]
)
EVERYWHERE = np.ones(SIZE, bool)
PERSON = np.zeros((*SIZE, 3), np.uint8)  # which only a learned warp looks at


def joints(missing=(), **moved):
    table = np.column_stack([JOINTS.astype(float), np.ones(18)])
    for name, place in moved.items():
        table[int(name[1:]), :2] = place
    table[list(missing)] = 0
    return table


def draw(polygons, size=SIZE):
    image = Image.new("RGB", (size[1] * 4, size[0] * 4), (255, 255, 255))
    for colour, points in polygons:
        ImageDraw.Draw(image).polygon([(4 * x, 4 * y) for x, y in points], fill=colour)
    picture = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX))
    full = (np.asarray(image) < 255).any(axis=2)
    return picture, full.reshape(size[0], 4, size[1], 4).mean(axis=(1, 3)) > 0.5


def mirror(points):
    return [(192 - x, y) for x, y in points]


def top(sleeve=0.5, hem=200.0, spread=40.0):
    """A top with shoulder tips 90 px apart.

    sleeve: length in px over 100; spread: how far its end lies from the torso, px.
    """
    trunk = [(78, 22), (114, 22), (142, 34), (141, 84), (138, hem), (54, hem), (51, 84), (50, 34)]
    length = 100 * sleeve
    end = (50 - spread * sleeve, 40 + length)
    arm = [(52, 32), (36, 46), (end[0] - 16, end[1] - 4), (end[0] + 16, end[1] + 4), (52, 84)]
    parts = [(LEFT, arm), (RIGHT, mirror(arm)), (BODY, trunk)] if sleeve else [(BODY, trunk)]
    return draw(parts)


def trousers(length=200.0):
    leg = [(58, 90), (96, 96), (86, 30 + length), (56, 30 + length)]
    hips = [(62, 30), (130, 30), (134, 96), (96, 98), (58, 96)]
    return draw([(LEFT, leg), (RIGHT, mirror(leg)), (BODY, hips)])


def skirt():
    return draw([(BODY, [(66, 40), (126, 40), (160, 180), (32, 180)])])


GARMENTS = {"upper_body": top, "lower_body": trousers, "dresses": lambda: top(sleeve=0.4, hem=245)}


def put_on(garment, table=None, mask=EVERYWHERE, category="upper_body"):
    """Warp (picture, silhouette) onto joints; the usual ones without a table."""
    table = joints() if table is None else table
    return warp_source("geometric")(*garment, table, PERSON, mask, category)


def where(picture, mask, colour):
    """(N, 2) x, y of the warped pixels that show this part."""
    near = (np.abs(picture.astype(int) - colour).sum(axis=2) < 120) & mask
    return np.argwhere(near)[:, ::-1]


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize(
    "missing", [(), (4, 7), (3, 4, 6, 7), (8, 11), (9, 10, 12, 13), (2, 5), range(18)]
)
def test_the_warp_stays_inside_the_agnostic_mask_and_is_white_outside(category, missing):
    region = np.zeros(SIZE, bool)
    region[40:230, 50:125] = True
    picture, mask = put_on(GARMENTS[category](), joints(missing), region, category)
    assert picture.shape == (*SIZE, 3) and picture.dtype == np.uint8 and mask.dtype == bool
    assert mask.sum() > 1000 and not (mask & ~region).any()
    assert (picture[~mask] == 255).all()


def test_sizes_of_garment_and_person_may_differ():
    garment, silhouette = top()
    _, mask = put_on((garment, silhouette))
    small = tuple(array[::2, ::2] for array in (garment, silhouette))
    table = joints() * np.array([2, 2, 1])
    large_picture, large_mask = put_on(small, table, np.ones((512, 384), bool))
    reduced = large_mask.reshape(256, 2, 192, 2).mean(axis=(1, 3)) > 0.5
    assert large_picture.shape == (512, 384, 3)
    assert (mask & reduced).sum() / (mask | reduced).sum() > 0.9


def test_each_sleeve_follows_its_own_arm():
    """Picture-left arm raised sideways, picture-right arm across the belly."""
    table = joints(j3=(40, 40), j4=(12, 20), j6=(132, 96), j7=(96, 112))
    picture, mask = put_on(top(sleeve=1.6, spread=25), table)
    for colour, line in ((LEFT, table[[2, 3, 4], :2]), (RIGHT, table[[5, 6, 7], :2])):
        sleeve = where(picture, mask, colour)
        for share in (0.5, 0.8):
            for start, end in pairwise(line):
                point = start + share * (end - start)
                assert np.abs(sleeve - point).sum(axis=1).min() < 6
        off = min_distance(sleeve, line)
        assert np.percentile(off, 95) < 16  # a sleeve is about 20 px wide here
    # Nothing of the trunk is drawn along with the raised arm.
    assert where(picture, mask, BODY)[:, 0].min() > 50


def min_distance(points, line):
    """Distance of each point from a polyline."""
    dense = np.concatenate([np.linspace(a, b, 40) for a, b in pairwise(line)])
    return np.linalg.norm(points[:, None] - dense[None], axis=2).min(axis=1)


def test_a_sleeve_in_front_hides_the_trunk():
    table = joints(j6=(132, 96), j7=(90, 104))
    picture, mask = put_on(top(sleeve=1.6, spread=25), table)
    y, x = 102, 108  # on the forearm, in front of the belly
    assert mask[y, x] and np.abs(picture[y, x].astype(int) - RIGHT).sum() < 120


def test_a_bare_forearm_is_in_front_of_the_trunk():
    table = joints(j6=(132, 96), j7=(90, 104))
    _, mask = put_on(top(sleeve=0.3), table)
    assert not mask[102, 104] and mask[85, 96]
    no_wrist = joints(missing=(7,), j6=(132, 96))  # it is behind the back
    _, mask = put_on(top(sleeve=0.3), no_wrist)
    assert mask[102, 104]


def reach(sleeve, **moved):
    """How much of the picture-left arm a sleeve of this length covers, 0 to 1 (or above)."""
    table = joints(**moved)
    picture, mask = put_on(top(sleeve=sleeve, spread=25), table)
    points = where(picture, mask, LEFT)
    shoulder, elbow, wrist = table[[2, 3, 4], :2]
    dense = np.concatenate([np.linspace(shoulder, elbow, 50), np.linspace(elbow, wrist, 50)])
    nearest = np.linalg.norm(points[:, None] - dense[None], axis=2).argmin(axis=1)
    return np.percentile(nearest, 98) / 99


def test_sleeves_keep_their_proportion():
    """The garment's scale is 1.06 * 48 / 90.

    40 px below the shoulder tips then lie 22 px along an arm of 90.
    """
    short, half, long = (reach(length) for length in (0.4, 0.8, 1.6))
    assert short == pytest.approx(0.25, abs=0.08) and half == pytest.approx(0.5, abs=0.08)
    assert long > 0.95


def test_a_shortened_arm_shortens_its_sleeve():
    """Pointing at the camera the arm measures 35 px instead of 90.

    That is less than the 44 px of this sleeve.
    """
    assert reach(0.8) < reach(0.8, j3=(62, 70), j4=(60, 86)) < 0.75


def test_a_cropped_top_stays_cropped():
    hems = {}
    for hem in (120.0, 160.0, 220.0):
        picture, mask = put_on(top(sleeve=0, hem=hem))
        hems[hem] = where(picture, mask, BODY)[:, 1].max()
    assert hems[120.0] < 110 and hems[220.0] > 140
    lengths = {hem: bottom - 45 for hem, bottom in hems.items()}  # shoulder tips lie at about 45
    assert lengths[220.0] / lengths[120.0] == pytest.approx((220 - 34) / (120 - 34), rel=0.12)
    assert lengths[160.0] / lengths[120.0] == pytest.approx((160 - 34) / (120 - 34), rel=0.12)


def test_a_person_turned_aside_is_narrower_but_not_shorter():
    without_arms = (3, 4, 6, 7)
    _, front = put_on(top(sleeve=0), joints(without_arms))
    _, turned = put_on(top(sleeve=0), joints(without_arms, j2=(83, 54), j5=(109, 54)))
    assert turned[90].sum() / front[90].sum() == pytest.approx(26 / 48, abs=0.08)
    assert turned.any(axis=1).sum() / front.any(axis=1).sum() > 0.7


def test_missing_hips_elbows_and_knees_are_completed_from_proportions():
    """Shoulders alone place a top nearly as all joints do, hips alone a skirt."""
    for garment, category, missing in (
        (top(sleeve=0.5), "upper_body", range(6, 18)),
        (skirt(), "lower_body", [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13]),
    ):
        _, known = put_on(garment, joints((4, 7)), category=category)
        _, guessed = put_on(garment, joints(missing), category=category)
        assert (known & guessed).sum() / (known | guessed).sum() > 0.75


def test_shorts_end_above_the_knees_and_trousers_at_the_ankles():
    ends = {}
    for length in (90.0, 215.0):
        _, mask = put_on(trousers(length), category="lower_body")
        ends[length] = np.flatnonzero(mask.any(axis=1)).max()
    assert 140 < ends[90.0] < 186
    assert abs(ends[215.0] - 243) < 12


def test_trouser_legs_follow_the_legs_and_skirts_do_not_part():
    table = joints(j9=(60, 180), j10=(40, 235), j12=(130, 182), j13=(150, 238))
    picture, mask = put_on(trousers(), table, category="lower_body")
    for colour, ids in ((LEFT, [8, 9, 10]), (RIGHT, [11, 12, 13])):
        off = min_distance(where(picture, mask, colour), table[ids, :2])
        assert np.percentile(off, 95) < 19  # a leg is 26 px wide
    assert not mask[200, 96]
    _, mask = put_on(skirt(), table, category="lower_body")
    assert mask[160, 70:122].all()
    assert 100 < np.flatnonzero(mask.any(axis=1)).min() < 120  # the waist, above the hips at 127


def test_the_garment_is_not_mirrored_even_for_a_person_seen_from_behind():
    right, left = [2, 3, 4, 8, 9, 10], [5, 6, 7, 11, 12, 13]
    behind = joints()
    behind[right + left] = behind[left + right]
    for table in (joints(), behind):
        picture, mask = put_on(top(sleeve=1.0), table)
        assert where(picture, mask, LEFT)[:, 0].max() < 96 < where(picture, mask, RIGHT)[:, 0].min()


def test_a_print_on_the_chest_lands_on_the_chest():
    garment, silhouette = top()
    garment = garment.copy()
    garment[80:100, 86:106] = (250, 240, 0)
    picture, mask = put_on((garment, silhouette))
    spot = where(picture, mask, (250, 240, 0))
    # The garment's scale is 1.06 * 48 / 92 = 0.55 px; the print begins 56 px below the shoulder
    # tips, at y = 45.
    assert np.abs(spot.mean(axis=0) - (96, 45 + 0.55 * 56)).max() < 4
    assert np.ptp(spot, axis=0) == pytest.approx(0.55 * 20, abs=3)


def test_no_background_shows_inside_the_garment():
    """The picture is blurred, so that its edge mixes with white.

    The garment's own colours have a channel at 0.
    """
    worn = (("upper_body", top(sleeve=1.0)), ("lower_body", trousers()))
    for category, (garment, silhouette) in worn:
        blurred = ndimage.gaussian_filter(garment, (1.5, 1.5, 0))
        picture, mask = put_on((blurred, silhouette), category=category)
        assert (picture[mask].min(axis=1) < 50).mean() > 0.99


def test_torso_and_sleeves_leave_no_cracks():
    for table in (joints(), joints(j3=(40, 40), j4=(12, 20))):
        _, mask = put_on(top(sleeve=1.0), table)
        closed = ndimage.binary_closing(np.pad(mask, 4), np.ones((3, 3)), iterations=1)[4:-4, 4:-4]
        assert (closed & ~mask).sum() < 0.01 * mask.sum()


@pytest.mark.parametrize("angle", [-10, 7])
def test_a_garment_photographed_askew_is_straightened(angle):
    garment, silhouette = top()
    garment = np.pad(garment, [(20, 20), (20, 20), (0, 0)], mode="edge")
    silhouette = np.pad(silhouette, 20, mode="edge")
    turned = ndimage.rotate(garment, angle, reshape=False, order=1, cval=255)
    turned_mask = ndimage.rotate(silhouette.astype(np.float32), angle, reshape=False, order=1) > 0.5
    _, straight = put_on((garment, silhouette))
    _, askew = put_on((turned, turned_mask))
    assert (straight & askew).sum() / (straight | askew).sum() > 0.9


def test_unreadable_bodies_and_garments_fall_back_to_the_box():
    region = np.zeros(SIZE, bool)
    region[40:140, 60:130] = True
    garment, silhouette = top()
    expected = fit_box(garment, silhouette, region)
    one_point = joints()
    one_point[:, :2] = 96
    one_line = joints()
    one_line[:, 0] = 96
    for table in (joints(missing=range(18)), joints(missing=(2, 8)), one_point, one_line):
        picture, mask = put_on((garment, silhouette), table, region)
        assert (picture == expected[0]).all() and (mask == expected[1]).all()
    rows, columns = (np.flatnonzero(expected[1].any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (40, 139, 60, 129)
    for unreadable in (np.zeros(SIZE, bool), np.pad(np.ones((3, 3), bool), [(0, 253), (0, 189)])):
        picture, mask = put_on((garment, unreadable), mask=region)
        assert not (mask & ~region).any() and (picture[~mask] == 255).all()


def test_any_mask_and_any_joints_give_a_result():
    rng = np.random.default_rng(0)
    for trial in range(60):
        shape = tuple(rng.integers(16, 100, 2))
        noise = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.5, 6))
        garment = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        table = np.column_stack(
            [rng.uniform(-80, 160, (18, 2)), rng.random(18) > rng.choice([0, 0.3, 0.9])]
        )
        region = ndimage.gaussian_filter(rng.standard_normal((64, 48)), 3) > 0
        picture, mask = put_on((garment, noise > 0), table, region, CATEGORIES[trial % 3])
        assert not (mask & ~region).any() and (picture[~mask] == 255).all()


def test_landmarks_of_a_top():
    garment = read_top(top(sleeve=0.6)[1])
    assert garment.origin == pytest.approx((95.5, 34), abs=3)
    assert garment.width == pytest.approx(90, abs=5)
    assert garment.extent[1] == pytest.approx(200 - 34, abs=4)
    roots = (((50, 34), (51, 84)), ((142, 34), (141, 84)))
    for limb, (tip, armpit) in zip(garment.limbs, roots, strict=True):
        assert limb.root[0] == pytest.approx(tip, abs=5)
        assert limb.root[1] == pytest.approx(armpit, abs=7)
    assert read_top(top(sleeve=0)[1]).limbs == (None, None)


def closed_gap(silhouette, first, last, sides):
    """The silhouette with sleeves that lie against the torso in these rows."""
    closed = silhouette.copy()
    for row in range(first, last):
        left, right = np.flatnonzero(silhouette[row])[[0, -1]]
        closed[row, 96 if sides == "right" else left : right + 1] = True
    return closed


def test_a_sleeve_hidden_on_one_side_is_read_from_the_other():
    """The picture-right sleeve lies against the torso down to below the hem: no gap shows."""
    _, silhouette = top(sleeve=1.7, spread=20)
    both, one = read_top(silhouette), read_top(closed_gap(silhouette, 60, 206, "right"))
    assert one.limbs[1] is not None
    assert one.width == pytest.approx(both.width, rel=0.08)
    assert one.limbs[1].line.points[-1] == pytest.approx(both.limbs[1].line.points[-1], abs=12)


def test_an_armpit_hidden_by_a_hanging_sleeve_is_put_at_its_usual_height():
    _, silhouette = top(sleeve=1.4, spread=20)
    garment = read_top(closed_gap(silhouette, 60, 140, "both"))
    assert garment.width == pytest.approx(90, abs=7)
    for limb in garment.limbs:
        assert limb.root[1][1] == pytest.approx(34 + 0.62 * 90, abs=6)


def test_landmarks_of_trousers_and_skirts():
    garment = read_bottom(trousers()[1])
    assert garment.width == pytest.approx(68, abs=4)
    assert garment.extent[1] == pytest.approx(97 - 30, abs=8)
    assert all(limb.root[1] == pytest.approx((95.5, 97), abs=8) for limb in garment.limbs)
    garment = read_bottom(skirt()[1])
    assert garment.limbs == (None, None) and garment.extent[1] == pytest.approx(140, abs=3)


def test_none_is_white_and_asks_for_the_whole_mask():
    region = np.zeros(SIZE, bool)
    region[10:20] = True
    picture, mask = warp_source("none")(*top(), joints(), PERSON, region, "upper_body")
    assert (picture == 255).all() and (mask == region).all() and mask is not region


def test_sources_are_registered_by_name_once(monkeypatch):
    monkeypatch.setattr(warp, "_SOURCES", dict(warp._SOURCES))

    @register_warp("mine")
    class Mine:
        def __call__(self, garment, garment_mask, joints, agnostic, agnostic_mask, category):
            return garment, agnostic_mask

    assert isinstance(warp_source("mine"), Mine)
    with pytest.raises(ValueError, match="'mine' is already registered"):
        register_warp("mine")(Mine)
    with pytest.raises(DataError, match=r"'min'.*geometric, mine, none"):
        warp_source("min")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"garment": np.zeros((4, 4, 3))}, "garment is float64"),
        ({"garment_mask": np.zeros((4, 4), bool)}, "garment mask"),
        ({"joints": np.zeros((25, 3))}, r"\(25, 3\)"),
        ({"joints": np.full((18, 3), np.nan)}, "finite"),
        ({"agnostic_mask": np.zeros(SIZE)}, "agnostic mask is float64"),
        ({"category": "hats"}, "hats"),
    ],
)
def test_bad_input_says_what_is_wrong(change, message):
    garment, silhouette = top()
    arguments = {
        "garment": garment,
        "garment_mask": silhouette,
        "joints": joints(),
        "agnostic": PERSON,
        "agnostic_mask": EVERYWHERE,
        "category": "upper_body",
    } | change
    with pytest.raises(DataError, match=message):
        warp_source("geometric")(**arguments)

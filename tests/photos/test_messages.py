"""What is wrong with a photograph is said in one line that helps, beside the right picture."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.photos import people
from vton.data import pose
from vton.photos.backends import Networks
from vton.photos.errors import PhotoError
from vton.photos.garment import prepare_garment
from vton.photos.person import prepare_person, require_mask
from vton.photos.reading import in_rgb

NETWORKS = Networks.named()
FAR = (0.2, 0.5, 0.3)  # scale, x and y of a camera that shows the whole body


def refused(photo, category="upper_body", **options):
    with pytest.raises(PhotoError) as error:
        prepare_person(photo, category, NETWORKS, size=(256, 192), **options)
    assert error.value.picture == "person" and "\n" not in error.value.message
    return error.value.message


class Given:
    """A pose backend that finds the people it was given."""

    facts = NETWORKS.pose.facts

    def __init__(self, *people):
        self.given = list(people)

    def people(self, photo):
        return self.given


def joints(without=()):
    """A person in the layout's frame, some joints left out."""
    found = np.zeros((18, 3), np.float32)
    places = [
        (0.5, 0.17), (0.5, 0.31), (0.38, 0.31), (0.3, 0.45), (0.28, 0.6), (0.62, 0.31), (0.7, 0.45),
        (0.72, 0.6), (0.44, 0.69), (0.44, 0.9), (0.44, 0.99), (0.56, 0.69), (0.56, 0.9),
        (0.56, 0.99), (0.47, 0.15), (0.53, 0.15), (0.44, 0.16), (0.56, 0.16),
    ]  # fmt: skip
    for joint, place in enumerate(places):
        found[joint] = *place, 0.0 if joint in without else 0.9
    return found


def prepared(found, category="upper_body", photo=None, **options):
    networks = replace(NETWORKS, pose=Given(found))
    return prepare_person(photo or people.photo(0), category, networks, size=(256, 192), **options)


def error_of(*arguments, **options):
    with pytest.raises(PhotoError) as error:
        prepared(*arguments, **options)
    return error.value.message


def test_nobody():
    for photo in (people.garment(0)[0], Image.new("RGB", (300, 400), (200, 210, 220))):
        assert refused(photo).startswith("no person was found in the photo")


def test_several_people_are_counted_and_the_largest_can_be_chosen():
    near, far = people.photo(1, (0.26, 0.5, 0.3)), people.photo(3, (0.2, 0.5, 0.32))
    photo = people.beside(far, near)
    message = refused(photo)
    assert message.startswith("2 persons are in the photo") and "--person largest" in message
    chosen = prepare_person(photo, "upper_body", NETWORKS, size=(256, 192), choice="largest")
    assert chosen.frame.left + chosen.frame.width / 2 > photo.width / 2


def test_head_shoulders_and_hips_must_be_seen():
    head = (pose.NOSE, 14, 15, 16, 17)
    assert "the head is not visible" in error_of(joints(head))
    assert prepared(joints(head), "dresses", layout="dresscode").mask.any()  # its photos have none
    shoulders, hips = (pose.RIGHT_SHOULDER, pose.LEFT_SHOULDER), (pose.RIGHT_HIP, pose.LEFT_HIP)
    assert "the shoulders are not visible" in error_of(joints(shoulders))
    assert "one shoulder is not visible" in error_of(joints(shoulders[:1]))
    for category, what in (("upper_body", "a top"), ("lower_body", "trousers or a skirt")):
        message = error_of(joints(hips), category, layout="viton_hd")
        assert "the hips are not visible" in message and what in message
    assert prepared(joints(shoulders), "lower_body").mask.any()


def test_wrists_and_knees_that_are_cut_off_are_warnings():
    wrists, knees = (pose.RIGHT_WRIST, pose.LEFT_WRIST), (pose.RIGHT_KNEE, pose.LEFT_KNEE)
    assert prepared(joints()).warnings == []
    (warning,) = prepared(joints(wrists)).warnings
    assert warning.startswith("both wrists are not visible")
    (warning,) = prepared(joints(wrists[:1])).warnings
    assert warning.startswith("one wrist is not visible")
    assert prepared(joints(knees)).warnings == []  # a top does not need them
    warnings = prepared(joints(knees), "lower_body").warnings
    assert any(warning.startswith("both knees are not visible") for warning in warnings)


def test_a_size_that_nothing_tells():
    """Hips alone, as of a photo from the waist to above the knees."""
    apart = (*range(8), 9, 10, 13, *range(14, 18))  # a knee without its hip's does not help
    assert "so the person's size is unknown" in error_of(joints((*apart, 11)), "lower_body")
    assert prepared(joints(apart), "lower_body").mask.any()


def test_from_behind():
    behind = joints()
    behind[:, 0] = 1 - behind[:, 0]
    (warning,) = prepared(behind).warnings
    assert "seen from behind" in warning
    sideways = joints()
    sideways[[2, 5], 0] = 0.52, 0.48
    assert prepared(sideways).warnings == []


def test_lying_and_upside_down():
    photo = people.photo(1, FAR)
    lying = photo.rotate(90, expand=True)
    message = refused(lying)
    assert "lies on its side" in message and "clockwise" in message
    way = Image.Transpose.ROTATE_90 if "anticlockwise" in message else Image.Transpose.ROTATE_270
    assert prepare_person(lying.transpose(way), "upper_body", NETWORKS, size=(256, 192))
    assert "upside down" in refused(photo.rotate(180))


def test_too_small():
    assert "is 40x60" in refused(Image.new("RGB", (40, 60)))
    tiny = people.photo(1).resize((60, 80))
    canvas = Image.new("RGB", (120, 160), (205, 205, 205))
    canvas.paste(tiny, (30, 40))
    found = joints()
    found[:, 0], found[:, 1] = (found[:, 0] * 60 + 30) / 120, (found[:, 1] * 80 + 40) / 160
    assert "the person is too small" in error_of(found, photo=canvas)
    small = people.photo(1).resize((90, 120))
    warnings = prepare_person(
        small, "upper_body", replace(NETWORKS, pose=Given(joints())), size=(1024, 768)
    ).warnings
    assert any("enlarged to 1024" in warning for warning in warnings)


def test_a_garments_photo_must_show_a_garment_alone():
    with pytest.raises(PhotoError, match="a person is in the garment's photo") as error:
        prepare_garment(people.photo(1), NETWORKS, size=(256, 192))
    assert error.value.picture == "garment"
    clutter = np.random.default_rng(0).uniform(0, 255, (16, 12, 3)).repeat(32, 0).repeat(32, 1)
    with pytest.raises(PhotoError, match="does not lie on a plain ground"):
        prepare_garment(Image.fromarray(clutter.astype(np.uint8)), NETWORKS, size=(256, 192))
    with pytest.raises(PhotoError, match="is 30x30"):
        prepare_garment(Image.new("RGB", (30, 30)), NETWORKS)


def white_cut_out():
    """A white garment whose transparency outlines it, as shops and phones cut them out."""
    silhouette = people.garment(1)[1]
    pixels = np.full((*silhouette.shape, 4), 255, np.uint8)
    pixels[..., 3] = 255 * silhouette
    pixels[200:210, 150:200, :3] = 120  # a print, which alone differs from white
    return Image.fromarray(pixels), silhouette


def test_transparency_outlines_a_garment_that_its_colour_does_not():
    photo, silhouette = white_cut_out()
    prepared = prepare_garment(in_rgb(photo, "garment"), NETWORKS, size=silhouette.shape)
    assert (prepared.mask == silhouette).all() and prepared.picture.mode == "RGB"


def test_transparency_around_a_whole_picture_outlines_no_garment():
    picture, silhouette = people.garment(1)
    framed = Image.new("RGBA", (picture.width + 40, picture.height + 40))
    framed.paste(picture, (20, 20))
    prepared = prepare_garment(in_rgb(framed, "garment"), NETWORKS, size=(552, 424))
    found = prepared.mask[20:-20, 20:-20]
    assert (found & silhouette).sum() > 0.95 * (found | silhouette).sum()


def test_garments_are_no_people():
    for place in range(6):
        photo, _ = people.garment(place)
        assert prepare_garment(photo, NETWORKS, size=(256, 192)).mask.any()


def test_masks_that_are_empty_or_full():
    with pytest.raises(PhotoError, match="the mask is empty") as error:
        require_mask(np.zeros((40, 30), bool))
    assert error.value.picture == "mask"
    with pytest.raises(PhotoError, match="the mask covers 100%"):
        require_mask(np.ones((40, 30), bool))

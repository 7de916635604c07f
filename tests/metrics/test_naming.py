import pytest

from vton.metrics.naming import Named, Names, garment_in, other_garment, read_name

VITON_HD = dict.fromkeys(["00006_00", "08015_00", "00017_00"])
DRESSCODE = dict.fromkeys(["upper_body/048392_0", "dresses/052393_0"])


@pytest.mark.parametrize(
    ("name", "targets", "expected"),
    [
        ("00006_00", VITON_HD, ("00006_00", "")),
        ("00006_00_00006_00", VITON_HD, ("00006_00", "00006_00")),
        # The garment's id is a person's, too: the person stands first.
        ("00006_00_08015_00", VITON_HD, ("00006_00", "08015_00")),
        ("00006_00__08015_00", VITON_HD, ("00006_00", "08015_00")),
        ("upper___00006_00___08015_00", VITON_HD, ("00006_00", "upper_08015_00")),
        ("00006_00_08015_00_catdm", VITON_HD, ("00006_00", "08015_00_catdm")),
        ("00006_00_result", VITON_HD, ("00006_00", "result")),
        ("048392_0_049114_1", DRESSCODE, ("upper_body/048392_0", "049114_1")),
        ("upper_body/048392_0_049114_1", DRESSCODE, ("upper_body/048392_0", "049114_1")),
        ("upper_body/048392_0", DRESSCODE, ("upper_body/048392_0", "")),
        ("dresses/048392_0", DRESSCODE, ("", "")),  # no such dress
        ("048392", {"048392": None, "0483": None}, ("048392", "")),
        ("048392_0_049114_1", {"048392": None}, ("048392", "0_049114_1")),
        ("a_b_c", {"a": None, "a_b": None}, ("a_b", "c")),
        ("mine", VITON_HD, ("", "")),
    ],
)
def test_person_and_garment_of_a_name(name, targets, expected):
    assert read_name(name, targets, Names(targets)) == Named(*expected)


def test_a_bare_name_in_two_categories_means_neither():
    targets = dict.fromkeys(["upper_body/000001_0", "dresses/000001_0"])
    names = Names(targets)
    assert read_name("000001_0_000002_1", targets, names) == ("", "")
    assert read_name("dresses/000001_0_000002_1", targets, names).person == "dresses/000001_0"
    assert set(names.ambiguous) == {"000001_0"}


def test_garments_are_found_in_what_is_left():
    garments = Names(["upper_body/049114_1", "dresses/053542_1", "upper_body/1"])
    assert garment_in("049114_1_catdm", garments) == "upper_body/049114_1"
    assert garment_in("0_049114_1", garments) == "upper_body/049114_1"
    assert garment_in("053542_1", garments, "upper_body") == "upper_body/1"
    assert garment_in("catdm", garments) == ""


@pytest.mark.parametrize(
    ("person", "words", "expected"),
    [
        ("00006_00", "08015_00", "08015_00"),
        ("00006_00", "00006_00", ""),
        ("00006_00", "08015_00_catdm", "08015_00"),
        ("upper_body/048392_0", "048392_1", ""),
        ("upper_body/048392_0", "049114_1", "049114_1"),
        ("00006_00", "result", ""),
        ("00006_00", "", ""),
        ("person", "garment", ""),
    ],
)
def test_another_garment_than_the_worn_one_is_noticed(person, words, expected):
    assert other_garment(person, words) == expected

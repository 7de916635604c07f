"""Readers of lists, keypoints, captions and settings on content that is nearly right: a valid
value, or one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.folders import body_25, coco_18
from vton.config import ExperimentConfig, flatten, load, load_file, to_yaml
from vton.data import captions, pose
from vton.data.images import Origin
from vton.data.pairs import read_pair_list
from vton.data.sample import JOINTS
from vton.errors import UserError

ORIGIN = Origin("viton_hd", "test", "00891_00")
DEFAULTS = load()


def fuzzed(examples: int):
    """Always the same examples, however slow the machine."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def valid_or_one_line(read: Callable, named: str):
    """What `read` returns; None where it refuses, in one line with the name of the thing."""
    try:
        return read()
    except UserError as error:
        assert named in str(error) and len(str(error).splitlines()) == 1, str(error)
        return None


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(0, 9), max_size=2),
)


@st.composite
def nearly(draw, content):
    """A JSON-like tree with one or two of its parts left out, doubled or exchanged for something
    else.
    """
    tree = deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        node = tree
        while node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            change = draw(st.sampled_from(("exchange", "exchange", "leave out", "double")))
            if change == "leave out":
                del node[key]
            elif change == "double" and isinstance(node, list):
                node.append(node[key])
            else:
                node[key] = draw(JUNK)
            break
    return tree


@st.composite
def nearly_text(draw, text: str) -> bytes:
    """Text with a few characters changed, or that breaks off, perhaps in another encoding."""
    characters = st.sampled_from("{}[]\":,.#&*!|>%@`'- \t\r\n\0\x0b\u2028\ufeffé0e")
    encodings = st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 3))
        text = text[:start] + draw(st.text(characters, max_size=3)) + text[end:]
    if not draw(st.integers(0, 5)):
        text = text[: draw(st.integers(0, len(text)))]
    return text.encode(draw(encodings), "replace")


names = st.sampled_from(
    (
        "00001_00.jpg",
        "00002_00.png",
        "000003_0.jpg",
        "000003_1.jpg",
        "é.JPEG",
        "a",
        "0",
        "2",
        "..",
        ".jpg",
        "../x.jpg",
        "C:\\x.jpg",
        "a\0",
        "a\u3000b",
    )
)
gaps = st.sampled_from((" ", " ", "\t", "\t", "  \t", ",", "\u00a0"))
ends = st.sampled_from(("\n", "\n", "\r\n", "\n\n", " \r\n", "\r", "\f"))
lines = st.lists(
    st.tuples(names, gaps, names, st.sampled_from(("", "", " 0", "\t2", " a b")), ends), max_size=5
)


@fuzzed(150)
@given(rows=lines, start=st.sampled_from(("", "", "\ufeff", "\n \n")), data=st.data())
def test_pair_lists(rows, start, data, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_bytes(data.draw(nearly_text(start + "".join("".join(row) for row in rows))))
    found = valid_or_one_line(lambda: read_pair_list(path, "viton_hd"), str(path))
    if found is not None:
        assert found and all(len(row) in (2, 3) for row in found)
        assert all(
            name and not set(name) & set("/\\\0:\t\r\n") and name not in (".", "..")
            for a, b, *_ in found
            for name in (a, b)
        )


KEYPOINTS = {
    "viton_hd": (pose.read_body_25, body_25()),
    "dresscode": (pose.read_coco_18, coco_18()),
}


@pytest.mark.parametrize("dataset", KEYPOINTS)
@fuzzed(120)
@given(data=st.data())
def test_keypoints(dataset, data, tmp_path):
    read, content = KEYPOINTS[dataset]
    path = tmp_path / "keypoints.json"
    if data.draw(st.integers(0, 2)):
        path.write_text(json.dumps(data.draw(nearly(content))), encoding="utf-8")
    else:
        path.write_bytes(data.draw(nearly_text(json.dumps(content))))
    joints = valid_or_one_line(lambda: read(path, ORIGIN), str(path))
    if joints is not None:
        assert joints.shape == (JOINTS, 3) and joints.dtype == np.float32
        assert joints.min() >= 0 and joints.max() <= 1 and set(joints[:, 2]) <= {0, 1}


TAGS = {
    "data": [
        {
            "file_name": f"0000{i}_00.jpg",
            "category_name": "TOPS",
            "tag_info": [
                {"tag_name": "item", "tag_category": "T-shirt"},
                {"tag_name": "neckLine", "tag_category": None},
            ],
        }
        for i in range(3)
    ]
}
LINES = "000004_1.jpg long red dress\r\n\r\n000005_1.jpg shirts\n"


@fuzzed(150)
@given(data=st.data())
def test_captions(data, tmp_path):
    path = tmp_path / "captions"
    kind = data.draw(st.sampled_from(("tags", "tags", "text of tags", "lines")))
    if kind == "tags":
        path.write_text(json.dumps(data.draw(nearly(TAGS))), encoding="utf-8")
    else:
        path.write_bytes(data.draw(nearly_text(LINES if kind == "lines" else json.dumps(TAGS))))
    read = captions.read_lines if kind == "lines" else captions.read_tags
    found = valid_or_one_line(lambda: read(path), str(path))
    if found is not None:
        assert all(isinstance(text, str) and text for item in found.items() for text in item)


KEYS = sorted(flatten(asdict(DEFAULTS)))
VALUES = st.one_of(
    st.sampled_from(
        (
            "",
            "null",
            "???",
            "nan",
            "-.inf",
            "1e400",
            "-1",
            "0",
            "0.5",
            "true",
            "~",
            "[]",
            "{}",
            "[1]",
            "[1,2]",
            "[a,b]",
            "{a: 1}",
            "'7'",
            "'",
            "[",
            "${seed}",
            "${oc.env:HOME}",
            "${",
            "&a 1",
            "*a",
            "!!int x",
            "@",
            "\t",
            "a: b",
            "- a",
            "2024-13-45",
            "0x10",
            "\0",
            "\u2028",
            "../..",
        )
    ),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=5),
)


@fuzzed(60)
@given(
    key=st.sampled_from(KEYS),
    cut=st.integers(0, 12).map(lambda n: max(0, n - 8)),
    tail=st.sampled_from(("", "", "", ".x", ".", "[0]", "[", " ", "é")),
    value=VALUES,
)
def test_overrides(key, cut, tail, value):
    key = key[: len(key) - cut] + tail
    found = valid_or_one_line(
        lambda: load(f"{key}={value}"), key.split(".")[0].split("[")[0].strip()
    )
    assert found is None or isinstance(found, ExperimentConfig)


@fuzzed(50)
@given(data=st.data())
def test_run_configurations(data, tmp_path):
    path = tmp_path / "config.yaml"
    if data.draw(st.integers(0, 2)):
        path.write_text(
            json.dumps(data.draw(nearly(json.loads(json.dumps(asdict(DEFAULTS)))))),
            encoding="utf-8",
        )
    else:
        path.write_bytes(data.draw(nearly_text(to_yaml(DEFAULTS))))
    found = valid_or_one_line(lambda: load_file(Path(path)), str(path))
    assert found is None or isinstance(found, ExperimentConfig)

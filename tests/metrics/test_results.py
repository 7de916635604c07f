import json
from dataclasses import asdict, replace

import pytest

from vton.errors import UserError
from vton.metrics.results import Row, digest_of_ids, provenance, read_results, write_results

ROW = Row(
    "gardiff",
    "synthetic",
    "test",
    "paired",
    "garment",
    "all",
    "exact",
    4,
    {"ssim": 0.9},
    {"seed": 0},
)


def test_rows_come_back_as_written_with_exactly_the_documented_keys(tmp_path):
    path = tmp_path / "run" / "results.json"
    write_results(path, [ROW, replace(ROW, order="unpaired")])
    assert read_results(path) == [ROW, replace(ROW, order="unpaired")]
    assert list(json.loads(path.read_text())[0]) == [
        "model",
        "data",
        "split",
        "order",
        "region",
        "category",
        "protocol",
        "n",
        "metrics",
        "provenance",
    ]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [ROW])
    with pytest.raises(ValueError, match="Out of range float"):
        write_results(path, [replace(ROW, metrics={"ssim": float("nan")})])
    assert read_results(path) == [ROW]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "{}", '[{"model": "gardiff"}]', "[3]", "[" * 100_000, "[" + "9" * 5000 + "]"),
        *(
            json.dumps([asdict(ROW) | other])
            for other in (
                {"mode": 1},
                {"model": None},
                {"order": "sideways"},
                {"n": "4"},
                {"n": -1},
                {"metrics": []},
                {"metrics": {"ssim": "0.9"}},
                {"metrics": {"ssim": float("nan")}},
                {"provenance": None},
                {"provenance": {"comparison": [1]}},
                {"provenance": {"pairs_sha256": 7}},
            )
        ),
    ],
)
def test_unreadable_results_name_the_file(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"results.json"):
        read_results(path)
    with pytest.raises(UserError, match=r"absent.json"):
        read_results(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"metrics": {"ssim": float("nan")}},
            "row 0 has metrics.ssim=nan, which is not a finite number",
        ),
        ({"metrics": {"ssim": None}}, "row 0 has metrics.ssim=None, which is not a finite number"),
        ({"metrics": [0.9]}, "row 0 has metrics=[0.9], where values by name are expected"),
        ({"provenance": None}, "row 0 has provenance=None, where values by name are expected"),
        ({"n": "4"}, "row 0 has n='4', which is not a number of pairs"),
    ],
)
def test_values_that_no_table_can_hold_are_named(tmp_path, changes, problem):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([asdict(ROW) | changes]))
    with pytest.raises(UserError) as refused:
        read_results(path)
    assert f"{path}: {problem}" in str(refused.value)


def test_the_digest_depends_on_the_set_of_pairs_only():
    assert digest_of_ids(["b", "a"]) == digest_of_ids(["a", "b"]) != digest_of_ids(["a"])
    assert digest_of_ids(["ab", "c"]) != digest_of_ids(["a", "bc"])


def test_provenance_joins_what_is_known_with_versions():
    record = provenance(commit="abc", seed=3)
    assert record["commit"] == "abc"
    assert {"python", "torch", "torchmetrics"} <= set(record["versions"])

"""The benchmark of `vton metrics` runs the command and reports what it took."""

import json

import pytest

from tests.benchmarks.metrics_folders import main


@pytest.mark.slow  # imports everything in a process of its own
def test_reports_what_the_command_took(capsys):
    main(["--pairs", "3", "--size", "64", "48"])
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["size"]) == (3, [64, 48]) and "fid_random" in found["metrics"]
    assert found["cpu_seconds"] > 0 and 0.1 < found["peak_memory_gb"] < 3

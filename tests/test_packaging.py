"""What setup.cfg asks for and what `make setup` installs."""

import configparser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def required(extra: str = "") -> list[Requirement]:
    """Of the package itself, or of one of its extras and those that it names."""
    config = configparser.ConfigParser(inline_comment_prefixes=("#",))
    config.read(ROOT / "setup.cfg")
    lines = (
        config["options.extras_require"][extra] if extra else config["options"]["install_requires"]
    )
    found = []
    for requirement in map(Requirement, lines.split("\n")[1:]):
        own = requirement.name == config["metadata"]["name"]
        found += (
            [inner for name in requirement.extras for inner in required(name)]
            if own
            else [requirement]
        )
    return found


@pytest.mark.parametrize("extra", ["", "dev"])
def test_constraints_pin_all_that_setup_installs_within_its_ranges(extra):
    """`make setup` installs `.[dev]`. deepspeed is for machines with GPUs, whose CUDA decides on
    its version.
    """
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, equals, version = line.partition("#")[0].strip().partition("==")
        assert bool(name) == bool(equals), f"constraints.txt: {line} is not name==version"
        if name:
            pinned[canonicalize_name(name)] = version
    asked = required(extra)
    assert len(asked) > 5
    for requirement in asked:
        assert canonicalize_name(requirement.name) in pinned, (
            f"constraints.txt does not pin {requirement.name}"
        )
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement

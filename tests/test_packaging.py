"""What setup.cfg asks for and what `make setup` installs."""

import configparser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def required(extra: str = "") -> list[Requirement]:
    """Of the package itself, or of one of its extras and those that it names."""
    config = configparser.ConfigParser(inline_comment_prefixes=("#",))
    config.read(ROOT / "setup.cfg")
    if extra:
        lines = config["options.extras_require"][extra]
    else:
        lines = config["options"]["install_requires"]
    requirements = []
    for line in lines.split("\n")[1:]:
        requirement = Requirement(line)
        if requirement.name == config["metadata"]["name"]:
            for name in requirement.extras:
                requirements += required(name)
        else:
            requirements.append(requirement)
    return requirements


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


def test_pre_commit_runs_what_setup_installs():
    """So that constraints.txt pins its versions, too."""
    installed = {requirement.name for requirement in required("dev")}
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local" and len(local["hooks"]) == 3
    for hook in local["hooks"]:
        program, *_ = hook["entry"].split()
        assert hook["language"] == "system" and program.startswith(".venv/bin/"), hook
        assert program.removeprefix(".venv/bin/") in installed


def test_files_that_are_no_code_are_packed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packed = set()
    for package, patterns in config["options.package_data"].items():
        for pattern in patterns.split("\n"):
            packed |= set((ROOT / package.replace(".", "/")).glob(pattern))
    others = set()
    for path in (ROOT / "vton").rglob("*"):
        if path.suffix not in (".py", ".pyc", ".md") and path.is_file():
            others.add(path)
    assert others == packed

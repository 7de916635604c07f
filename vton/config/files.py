"""The files of configs/, and settings as they say them: nested, or flat by dotted key."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vton.config.errors import ConfigError, first_line, nearest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Groups of files in CONFIGS, with the file that is read where none is chosen.
GROUPS = {"model": "gardiff", "preset": "tiny", "data": "synthetic", "trainer": "auto"}


def choices(group: str) -> list[str]:
    """Names of the YAML files of a group: model, preset, data, trainer or ablation."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def file_of(group: str, name: str) -> Path:
    """Raises ConfigError naming the nearest choice if there is no such file."""
    known = choices(group)
    if name not in known:
        raise ConfigError(f"{group}={name}: no such {group}. {nearest(name, known)}")
    return CONFIGS / group / f"{name}.yaml"


def default_settings() -> dict:
    """What every experiment shares."""
    return read_settings(CONFIGS / "default.yaml")


def read_settings(path: Path) -> dict:
    """The settings in a YAML file. Raises ConfigError naming it."""
    try:
        content = deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}.")
    require_no_gaps(content, f"{path}: ")
    return content


@cache
def _parsed(text: str) -> Any:
    """The content of a YAML file. Of the time that `load` takes, parsing the same few again and
    again is half.
    """
    return OmegaConf.to_container(OmegaConf.load(StringIO(text)))


def require_no_gaps(settings: dict, where: str = "") -> None:
    """Raise ConfigError for ???, which OmegaConf takes for a value still to come."""
    for key, value in flatten(settings).items():
        if value == "???":
            raise ConfigError(f"{where}{key}=???: give it a value, or leave the key out.")


def as_override(key: str, value: Any) -> str:
    """`key=value` as the command line takes it; JSON is YAML."""
    return f"{key}={json.dumps(value)}"


def as_text(value: str) -> str:
    """The value of a setting that is text, from the command line: as it is written.

    Quotes around all of it come off, as YAML takes them off.
    """
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        try:
            unquoted = yaml.safe_load(value)
        except YAMLError:
            return value
        if isinstance(unquoted, str):
            return unquoted
    return value


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}. Lists become tuples, so that they compare equal to tuples."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return flat


@dataclass(frozen=True)
class AblationTable:
    """The rows of one published table, configs/ablation/<model>.yaml."""

    source: str  # paper and table
    # name of a row -> overrides in which it differs from the model's own settings, [] for none
    rows: dict[str, list[str]]


def ablation(name: str) -> AblationTable:
    """The table of that name. Raises ConfigError naming file and row."""
    path = file_of("ablation", name)
    content = read_settings(path)
    source, rows = content.get("source"), content.get("rows")
    if (
        set(content) != {"source", "rows"}
        or not isinstance(source, str)
        or not rows
        or not isinstance(rows, dict)
    ):
        raise ConfigError(
            f"{path}: expected `source`, a line on where the table stands, and `rows`, "
            "name: settings."
        )
    overrides = {}
    for row, settings in rows.items():
        if not re.fullmatch(r"[\w+.-]+", str(row)):
            raise ConfigError(
                f"{path}: row '{row}' becomes a folder; use letters, digits and _ + . - only."
            )
        if not isinstance(settings, dict):
            raise ConfigError(
                f"{path}: row '{row}' must hold settings, {{}} for none, not {settings!r}."
            )
        overrides[str(row)] = [as_override(*item) for item in flatten(settings).items()]
    return AblationTable(source, overrides)

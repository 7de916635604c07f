"""From names and overrides to a checked configuration.

`load("model=gardiff", "preset=tiny", "train.lr=1e-4")` joins, in this order,

    configs/default.yaml <- model/<name>.yaml <- preset/<name>.yaml <- the model file's own
    `presets.<preset>` <- data/<name>.yaml <- trainer/<name>.yaml <- row of ablation/<name>.yaml <-
    overrides

and checks the result against `ExperimentConfig`. Two kinds of model files say more: one with
`modes`, chosen by `model.mode=<mode>`, whose `modes.<mode>` comes after the file and the mode's own
`presets.<preset>` after the file's; and a cascade's with `stages.<model.stage>`, which acts just
before `presets.<preset>`: what all presets of a stage share, such as its size; the stage's own
`presets.<preset>` comes after the file's.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from vton.config.models import config_class
from vton.config.schema import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrainedConfig,
    nearest,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GROUPS = {
    "model": "gardiff",
    "preset": "tiny",
    "data": "synthetic",
    "trainer": "cpu",
}  # group -> default choice


def choices(group: str) -> list[str]:
    """Names of the YAML files of a group: model, preset, data, trainer or ablation."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def load(*overrides: str) -> ExperimentConfig:
    """The experiment that the overrides describe.

    `model=`, `preset=`, `data=`, `trainer=` and `ablation=` choose files; every other override is a
    dotted key. Raises ConfigError with one line that names the key and its nearest neighbour.
    """
    chosen, dotted = _split(overrides)
    if chosen["ablation"]:
        dotted = [*_ablation_row(chosen["ablation"]), *dotted]
    layers = [_read(CONFIGS / "default.yaml")]
    model = _read(_file("model", chosen["model"]))
    presets, modes, stages = (model.pop(part, {}) for part in ("presets", "modes", "stages"))
    given = _dotted(dotted)
    mode = modes.get(_name(given, "model.mode"), {})
    mode_presets = mode.pop("presets", {})
    layers += [model, mode, _read(_file("preset", chosen["preset"]))]
    own_presets = len(layers)
    layers += [of.get(chosen["preset"], {}) for of in (presets, mode_presets)]
    past_presets = len(layers)
    layers += [_read(_file(group, chosen[group])) for group in ("data", "trainer")]
    layers.append(given)
    layers.append({"preset": chosen["preset"], "ablation": chosen["ablation"]})
    layers.append({"model": {"name": chosen["model"]}, "trainer": {"name": chosen["trainer"]}})
    model_class = config_class(chosen["model"])
    if stages:
        asked = [_name(OmegaConf.create(layer), "model.stage") for layer in layers]
        stage = next((stage for stage in reversed(asked) if stage), model_class().stage)
        settings = stages.get(stage, {})
        stage_presets = settings.pop("presets", {})
        layers.insert(past_presets, stage_presets.get(chosen["preset"], {}))
        layers.insert(own_presets, settings)
    config = _checked(model_class, layers)
    if not config.name:
        row = f"-{chosen['ablation'].replace('/', '-')}" if chosen["ablation"] else ""
        config.name = f"{config.model.name}-{config.data.name}-{config.preset}{row}"
    return config


def upper_stages(*overrides: str) -> list[ExperimentConfig]:
    """The other stages of the cascade that the overrides load the first of; none where dotted keys
    or an ablation do.

    A size, a width or a row of an ablation is one stage's own, which `model.stage` chooses.
    """
    chosen, dotted = _split(overrides)
    if dotted or chosen["ablation"]:
        return []
    first = load(*overrides).model
    return [
        load(*overrides, f"model.stage={stage}") for stage in first.CASCADE if stage != first.stage
    ]


def load_shared(*overrides: str) -> ExperimentConfig:
    """What experiments of all architectures start from: `load` without anything that is the model's
    own.

    Its `model` and `name` are empty; overrides below `model.` are left out. Raises ConfigError as
    `load` does.
    """
    chosen, dotted = _split(overrides)
    layers = [_read(CONFIGS / "default.yaml")]
    layers += [_read(_file(group, chosen[group])) for group in ("preset", "data", "trainer")]
    layers.append(_dotted([override for override in dotted if not override.startswith("model.")]))
    layers.append({"preset": chosen["preset"], "trainer": {"name": chosen["trainer"]}})
    return _checked(ModelConfig, layers)


@dataclass(frozen=True)
class Ablation:
    """The rows of one published table, configs/ablation/<model>.yaml:

    source: paper and table
    rows: name of the row -> settings in which it differs from the model's own, {} for none
    """

    source: str
    rows: dict[str, list[str]]  # name -> overrides


def ablation(name: str) -> Ablation:
    """The table of that name. Raises ConfigError naming file and row."""
    path = _file("ablation", name)
    content = OmegaConf.to_container(_read(path))
    if (
        set(content) != {"source", "rows"}
        or not isinstance(content["source"], str)
        or not content["rows"]
    ):
        raise ConfigError(
            f"{path}: expected `source`, a line on where the table stands, and `rows`, name: settings."
        )
    for row, settings in content["rows"].items():
        if not re.fullmatch(r"[\w+.-]+", str(row)):
            raise ConfigError(
                f"{path}: row '{row}' becomes a folder; use letters, digits and _ + . - only."
            )
        if not isinstance(settings, dict):
            raise ConfigError(
                f"{path}: row '{row}' must hold settings, {{}} for none, not {settings!r}."
            )
    rows = {
        str(row): [as_override(*item) for item in flatten(settings).items()]
        for row, settings in content["rows"].items()
    }
    return Ablation(content["source"], rows)


def as_override(key: str, value: Any) -> str:
    """`key=value` as the command line takes it; JSON is YAML."""
    return f"{key}={json.dumps(value)}"


def flatten(tree: dict, prefix: str = "") -> dict:
    """{'a': {'b': 1}} -> {'a.b': 1}; sequences become tuples so that YAML's lists compare equal to
    tuples.
    """
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def load_file(path: Path, *overrides: str) -> ExperimentConfig:
    """A resolved config.yaml of a run folder, with dotted overrides on top. Raises ConfigError."""
    if not Path(path).is_file():
        raise ConfigError(f"No run configuration at {path}.")
    stored = _read(Path(path))
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"'{override}' is not of the form key=value.")
    given = _dotted(overrides)
    try:
        name = _name(stored, "model.name")
        if not name:
            raise ConfigError("no model.name: not a run's config.yaml.")
        return _checked(config_class(name), [stored, given])
    except ConfigError as error:
        if any(str(error).startswith(override.partition("=")[0]) for override in overrides):
            raise
        raise ConfigError(f"{path}: {error}") from None


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved configuration as YAML; `load_file` reads it back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def data_root(data: DataConfig) -> str:
    """The data set's folder or URL: data.root, else $VTON_DATA/<name>, else data/<name>."""
    if data.root:
        return os.path.expanduser(data.root).rstrip("/")
    return f"{os.environ.get('VTON_DATA', 'data').rstrip('/')}/{data.name}"


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    chosen, dotted = {**GROUPS, "ablation": ""}, []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{override}' is not of the form key=value.")
        if key in chosen:
            chosen[key] = value
        else:
            dotted.append(override)
    return chosen, dotted


def _file(group: str, name: str) -> Path:
    known = choices(group)
    if name not in known:
        raise ConfigError(f"{group}={name}: no such {group}. {nearest(name, known)}")
    return CONFIGS / group / f"{name}.yaml"


def _dotted(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        key = override.partition("=")[0]
        if key in ("model.name", "trainer.name"):
            raise ConfigError(
                f"{override}: a file of configs/ is chosen by {key.partition('.')[0]}=."
            )
    try:
        content = OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"Cannot read the overrides {' '.join(overrides)[:200]}: {_first_line(error)}"
        ) from None
    return _without_gaps(content)


def _without_gaps(content: DictConfig, where: str = "") -> DictConfig:
    """The same. Raises ConfigError for OmegaConf's ???, which it would pass over as if the key were
    not there.
    """
    for key, value in flatten(OmegaConf.to_container(content)).items():
        if value == "???":
            raise ConfigError(f"{where}{key}=???: give it a value, or leave the key out.")
    return content


def _name(content: DictConfig, key: str) -> str:
    """The value of a key that decides which settings are read; "" where it is not given. Raises
    ConfigError.
    """
    try:
        value = OmegaConf.select(content, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {_first_line(error)}") from None
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{key}={value} is not a name.")
    return value or ""


def _ablation_row(choice: str) -> list[str]:
    name, _, row = choice.partition("/")
    rows = ablation(name).rows
    if row not in rows:
        raise ConfigError(f"ablation={choice}: no row '{row}'. {nearest(row, list(rows))}")
    return rows[row]


def _read(path: Path) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_first_line(error)}") from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}.")
    return _without_gaps(content, f"{path}: ")


@functools.cache  # half of the time of a load; merging copies it
def _schema(model_class: type[TrainedConfig]) -> DictConfig:
    schema = OmegaConf.structured(ExperimentConfig)
    schema.model = OmegaConf.structured(model_class)
    return schema


def _checked(model_class: type[TrainedConfig], layers: Sequence[Any]) -> ExperimentConfig:
    try:
        return OmegaConf.to_object(OmegaConf.merge(_schema(model_class), *layers))
    except ConfigKeyError as error:
        known = (
            [field.name for field in fields(error.object_type)]
            if is_dataclass(error.object_type)
            else []
        )
        *_, group, key = ["", *str(error.full_key).split(".")]
        where = f" in '{group}'" if group else ""
        raise ConfigError(
            f"{error.full_key}: no key '{key}'{where}. {nearest(key, known)}"
        ) from None
    # TypeError: its word for keys below a list; OverflowError: an integer that no float can be.
    except (OmegaConfBaseException, TypeError, OverflowError) as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(
            f"{key}: {_first_line(error)}" if key else _refused(model_class, layers, error)
        ) from None
    except RecursionError:
        raise ConfigError("The settings refer to each other without end.") from None


def _refused(model_class: type[TrainedConfig], layers: Sequence[Any], error: Exception) -> str:
    """What to say for an error that OmegaConf raises without a key: the first setting that does not
    fit by itself.
    """

    def misfit(content: Any) -> Exception | None:
        try:
            OmegaConf.merge(_schema(model_class), content)
        except (OmegaConfBaseException, TypeError, OverflowError) as error:
            return error

    for layer in filter(misfit, layers):
        for key, value in flatten(OmegaConf.to_container(OmegaConf.create(layer))).items():
            alone = OmegaConf.create()
            OmegaConf.update(alone, key, value)
            if found := misfit(alone):
                reason = (
                    _first_line(found)
                    .replace("$VALUE_TYPE", type(value).__name__)
                    .replace("$VALUE", str(value))
                )
                return f"{key}: {reason}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

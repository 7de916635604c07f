"""From names and overrides to a checked configuration.

`load("model=gardiff", "preset=tiny", "train.lr=1e-4")` joins the files that the names choose, in
the order that stands in `load`, and checks the result against `ExperimentConfig`.

A model's file can hold more than its settings:

    presets.<preset>   what the model changes in a preset
    modes.<mode>       settings of `model.mode=<mode>`, with `presets` of their own
    stages.<stage>     settings of `model.stage=<stage>` of a cascade, which all presets share, such
                       as its size, with `presets` of their own
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from omegaconf import BooleanNode, DictConfig, LiteralNode, Node, OmegaConf, StringNode
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from vton.config.bounds import check_bounds
from vton.config.errors import ConfigError, first_line, nearest
from vton.config.files import (
    GROUPS,
    ablation,
    as_text,
    default_settings,
    file_of,
    flatten,
    read_settings,
    require_no_gaps,
)
from vton.config.machine import trainer_of_machine
from vton.config.models import config_class
from vton.config.schema import DataConfig, ExperimentConfig, ModelConfig, TrainedConfig


def load(*overrides: str) -> ExperimentConfig:
    """The experiment that the overrides describe.

    `model=`, `preset=`, `data=`, `trainer=` and `ablation=` choose files; every other override is a
    dotted key. Raises ConfigError with one line that names the key and its nearest neighbour.
    """
    chosen, dotted = _split(overrides)
    preset = chosen["preset"]
    model_class = config_class(chosen["model"])
    row = _ablation_row(chosen["ablation"]) if chosen["ablation"] else []
    given = _parse([*row, *dotted], model_class)

    model = _read_chosen("model", chosen)
    presets = model.pop("presets", {})
    modes = model.pop("modes", {})
    stages = model.pop("stages", {})
    mode = modes.get(_name(given, "model.mode"), {})
    mode_presets = mode.pop("presets", {})
    stage = {}
    if stages:
        stage = stages.get(_name(given, "model.stage") or model_class().stage, {})
    stage_presets = stage.pop("presets", {})

    layers = [  # later ones win
        default_settings(),
        model,
        mode,
        _read_chosen("preset", chosen),
        stage,
        presets.get(preset, {}),
        mode_presets.get(preset, {}),
        stage_presets.get(preset, {}),
        _read_chosen("data", chosen),
        _trainer_settings(chosen["trainer"]),
        given,
        {
            "model.name": chosen["model"],
            "preset": preset,
            "ablation": chosen["ablation"],
        },
    ]
    config = _checked(model_class, layers)
    if not config.name:
        config.name = f"{config.model.name}-{config.data.name}-{config.preset}"
        if config.ablation:
            config.name += f"-{config.ablation.replace('/', '-')}"
    return config


def upper_stages(*overrides: str) -> list[ExperimentConfig]:
    """The other stages of the cascade whose first stage the overrides load.

    None where dotted keys or an ablation are given: a size, a width or a row of an ablation belongs
    to one stage, which `model.stage` chooses.
    """
    chosen, dotted = _split(overrides)
    if dotted or chosen["ablation"]:
        return []
    first = load(*overrides).model
    upper = [stage for stage in first.CASCADE if stage != first.stage]
    return [load(*overrides, f"model.stage={stage}") for stage in upper]


def load_shared(*overrides: str) -> ExperimentConfig:
    """What experiments of all architectures start from: `load` without the model's own settings.

    Its `model` and `name` are empty; overrides below `model.` are left out. Raises ConfigError as
    `load` does.
    """
    chosen, dotted = _split(overrides)
    layers = [  # later ones win
        default_settings(),
        _read_chosen("preset", chosen),
        _read_chosen("data", chosen),
        _trainer_settings(chosen["trainer"]),
        _parse([word for word in dotted if not word.startswith("model.")], ModelConfig),
        {"preset": chosen["preset"]},
    ]
    return _checked(ModelConfig, layers)


def load_file(path: Path, *overrides: str) -> ExperimentConfig:
    """A resolved config.yaml of a run folder, with overrides on top.

    `data=NAME` replaces the run's own settings by those of that file, and `trainer=NAME` those
    below `trainer`, both before any dotted key, wherever they stand. Precision stays the run's,
    except that one of a GPU draws in float32 on a CPU. What an import's file leaves out the trainer
    decides, by default auto. Raises ConfigError, also for other groups: a trained run has its
    model.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. Give the config.yaml of a run folder.")
    stored = read_settings(path)
    own = flatten(stored)
    given: dict[str, Any] = {}
    try:
        name = _name(own, "model.name")
        if not name:
            raise ConfigError("no model.name: not a run's config.yaml.")
        model_class = config_class(name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    trainer = GROUPS["trainer"]
    groups = [override for override in overrides if override.startswith(("data=", "trainer="))]
    dotted = [override for override in overrides if override not in groups]
    for override in (*groups, *dotted):
        given |= _parse_for_run(override, model_class)
        if override.startswith("trainer="):
            trainer = override.removeprefix("trainer=")
    try:
        settings = [_trainer_settings(trainer), own, _moved_to_cpu(own, given), given]
        return _checked(model_class, settings)
    except ConfigError as error:
        if any(str(error).startswith(key) for key in given):
            raise
        raise ConfigError(f"{path}: {error}") from None


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved configuration as YAML; `load_file` reads it back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_yaml_of_no_machine(config: ExperimentConfig, given: Collection[str]) -> str:
    """The same without what trainer=auto decides on each machine anew, save keys in `given`."""
    settings = OmegaConf.create(to_yaml(config))
    for key in flatten(OmegaConf.to_container(settings)):
        decided = key.startswith("trainer.") or key in ("train.precision", "data.workers")
        if decided and key not in given:
            section, _, name = key.rpartition(".")
            del settings[section][name]
    return OmegaConf.to_yaml(settings)


def _as_list(value: Any) -> Any:
    """A value from `flatten` as it was written."""
    return list(value) if isinstance(value, tuple) else value


def data_root(data: DataConfig) -> str:
    """The data set's folder or URL: data.root, else $VTON_DATA/<name>, else data/<name>."""
    if data.root:
        return os.path.expanduser(data.root).rstrip("/") or "/"
    home = os.path.expanduser(os.environ.get("VTON_DATA") or "data")
    return f"{home.rstrip('/')}/{data.name}"


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The chosen file of each group, "" for no ablation, and the overrides with dotted keys."""
    chosen = {**GROUPS, "ablation": ""}
    dotted = []
    for override in overrides:
        key, value = _key_and_value(override)
        if key in chosen:
            chosen[key] = value
        else:
            dotted.append(override)
    return chosen, dotted


def _key_and_value(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is not of the form key=value.")
    return key, value


def _parse(overrides: Sequence[str], model_class: type[TrainedConfig]) -> dict[str, Any]:
    """Overrides with dotted keys as settings, in their order. Raises ConfigError.

    Values are YAML, except those of settings that are text: 2024_01_01 and /data/set #2 stay as
    they are written, unless they are written in quotes.
    """
    settings: dict[str, Any] = {}
    for override in overrides:
        key, value = _key_and_value(override)
        if key in ("model.name", "trainer.name"):
            group = key.removesuffix(".name")
            raise ConfigError(f"{override}: a file of configs/ is chosen by {group}=.")
        if _is_text(key, model_class):
            text = {key: as_text(value)}
            require_no_gaps(text)
            settings |= text
        else:
            settings |= _parse_yaml([override])
    return settings


def _is_text(key: str, model_class: type[TrainedConfig]) -> bool:
    """Whether the schema has text at this dotted key, free or one of several words."""
    node = _declared(key, model_class)
    if isinstance(node, StringNode):
        return not node._metadata.optional
    words = get_args(node._metadata.ref_type) if isinstance(node, LiteralNode) else ()
    return bool(words) and all(isinstance(word, str) for word in words)


def _declared(key: str, model_class: type[TrainedConfig]) -> Node | None:
    """The schema's node at a dotted key, None where there is none."""
    node: Any = _schema(model_class)
    for name in key.split("."):
        if not isinstance(node, DictConfig) or name not in node:
            return None
        node = node._get_node(name)
    return node


def _parse_yaml(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"Cannot read the overrides {' '.join(overrides)[:200]}: {first_line(error)}"
        ) from None
    require_no_gaps(content)
    return flatten(content)


def _parse_for_run(override: str, model_class: type[TrainedConfig]) -> dict[str, Any]:
    """One override of a trained run as settings. Raises ConfigError."""
    group, name = _key_and_value(override)
    if group in ("model", "preset", "ablation"):
        raise ConfigError(f"{override}: a trained run has its {group} already; leave it out.")
    if group not in ("data", "trainer"):
        return _parse([override], model_class)
    if group == "trainer":
        settings = _trainer_settings(name)
        return {key: settings[key] for key in settings if key.startswith("trainer.")}
    settings = flatten(read_settings(file_of(group, name)))
    return {"data.root": "", **settings}  # the run's own folder holds another data set


def _ablation_row(choice: str) -> list[str]:
    """The overrides of `<table>/<row>`."""
    name, _, row = choice.partition("/")
    rows = ablation(name).rows
    if row not in rows:
        raise ConfigError(f"ablation={choice}: no row '{row}'. {nearest(row, list(rows))}")
    return rows[row]


def _name(settings: dict[str, Any], key: str) -> str:
    """The value of a key that decides which settings are read, "" where it is not given."""
    value = settings.get(key)
    if value is not None and (not isinstance(value, str) or "${" in value):
        raise ConfigError(f"{key}={_as_list(value)} is not a name.")
    return value or ""


def _trainer_settings(name: str) -> dict[str, Any]:
    """The settings of a file of configs/trainer, and its name; auto: of this machine's."""
    if name == "auto":
        name = trainer_of_machine()
    return {**flatten(read_settings(file_of("trainer", name))), "trainer.name": name}


def _moved_to_cpu(own: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What changes for a run of a GPU that is read for a CPU: half precision is slow there, and a
    compiler need not be there.
    """
    if own.get("trainer.accelerator") != "gpu" or given.get("trainer.accelerator") != "cpu":
        return {}
    return {"trainer.compile": False, "eval.precision": own.get("eval.precision") or "fp32"}


def _read_chosen(group: str, chosen: dict[str, str]) -> dict:
    return read_settings(file_of(group, chosen[group]))


@functools.cache
def _schema(model_class: type[TrainedConfig]) -> DictConfig:
    schema = OmegaConf.structured(ExperimentConfig)
    schema.model = OmegaConf.structured(model_class)
    return schema


def _checked(model_class: type[TrainedConfig], layers: Sequence[dict]) -> ExperimentConfig:
    """The layers joined, later ones on top, as an ExperimentConfig. Raises ConfigError.

    Settings are assigned one by one, since OmegaConf does not name the key in every error.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        settings |= flatten(layer)
    config = _schema(model_class).copy()
    for key, value in settings.items():
        _assign(config, key, _as_list(value))
    try:
        check_bounds(config)  # first: sections divide by these numbers where they check themselves
        return _made(config)
    except OmegaConfBaseException as error:  # of references, which are resolved here
        raise ConfigError(f"{error.full_key}: {first_line(error)}") from None
    except RecursionError:
        raise ConfigError("The settings refer to each other without end.") from None


def _made(config: DictConfig) -> ExperimentConfig:
    """The dataclasses. Raises ConfigError naming the section that refuses its own settings."""
    try:
        return OmegaConf.to_object(config)
    except ConfigError as error:
        section = _refused_section(config)
        if not section or f"{section}." in str(error):
            raise
        raise ConfigError(f"{section}: {error}") from None


def _refused_section(config: DictConfig) -> str:
    """The dotted key of the innermost section that refuses its own settings, "" for the whole.

    A section is checked as its dataclass is made, which does not know where it stands.
    """
    for name in config:
        part = config._get_node(name)
        if not isinstance(part, DictConfig):
            continue
        try:
            OmegaConf.to_object(part)
        except ConfigError:
            inner = _refused_section(part)
            return f"{name}.{inner}" if inner else str(name)
    return ""


def _assign(config: DictConfig, key: str, value: Any) -> None:
    """Set one dotted key. Raises ConfigError if the schema lacks it or refuses the value."""
    model_class = OmegaConf.get_type(config.model)
    try:
        # OmegaConf would make text of a number, after YAML has dropped zeros and underscores.
        if isinstance(value, bool | int | float):
            node = OmegaConf.select(config, key, throw_on_missing=False)
            if isinstance(node, str) and _is_text(key, model_class):
                raise ConfigError(f"{key}={value} is text, but YAML reads a number: use quotes.")
            # It would make true of any number but 0.
            if isinstance(_declared(key, model_class), BooleanNode) and value not in (0, 1):
                raise ConfigError(f"{key}={value} must be true or false.")
        OmegaConf.update(config, key, value)
    except (ConfigKeyError, ConfigAttributeError) as error:
        known = []
        if is_dataclass(error.object_type):
            known = [field.name for field in fields(error.object_type)]
        section, _, name = str(error.full_key).rpartition(".")
        where = f" in '{section}'" if section else ""
        raise ConfigError(
            f"{error.full_key}: no key '{name}'{where}. {nearest(name, known)}"
        ) from None
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{key}: {first_line(error)}") from None

"""The configuration: dataclasses are the schema, YAML files pick values, dotted overrides come
last.

Nothing here imports torch or lightning: `vton list` and `vton --help` stay fast.
"""

from vton.config.loading import (
    CONFIGS,
    GROUPS,
    ablation,
    as_override,
    choices,
    data_root,
    flatten,
    load,
    load_file,
    load_shared,
    to_yaml,
    upper_stages,
)
from vton.config.schema import (
    AugmentConfig,
    CodecConfig,
    ConfigError,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    MaskRule,
    Metric,
    ModelConfig,
    ModelKind,
    ObjectiveConfig,
    SamplerConfig,
    SyntheticConfig,
    TrainedConfig,
    TrainerConfig,
    nearest,
)

__all__ = [
    "CONFIGS",
    "GROUPS",
    "AugmentConfig",
    "CodecConfig",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "ExperimentConfig",
    "MaskRule",
    "Metric",
    "ModelConfig",
    "ModelKind",
    "ObjectiveConfig",
    "SamplerConfig",
    "SyntheticConfig",
    "TrainedConfig",
    "TrainerConfig",
    "ablation",
    "as_override",
    "choices",
    "data_root",
    "flatten",
    "load",
    "load_file",
    "load_shared",
    "nearest",
    "to_yaml",
    "upper_stages",
]

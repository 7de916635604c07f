"""The configuration: dataclasses are the schema, YAML files pick values, overrides come last.

Nothing here imports torch or lightning: `vton list` and `vton --help` stay fast.
"""

from vton.config.bounds import (
    Bounds,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveInts,
    Seed,
)
from vton.config.errors import ConfigError, nearest
from vton.config.files import CONFIGS, GROUPS, ablation, as_override, as_text, choices, flatten
from vton.config.loading import (
    data_root,
    load,
    load_file,
    load_shared,
    to_yaml,
    to_yaml_of_no_machine,
    upper_stages,
)
from vton.config.machine import what_there_is
from vton.config.schema import (
    AugmentConfig,
    CodecConfig,
    DataConfig,
    DensePosePicture,
    EvalConfig,
    ExperimentConfig,
    FlowLossConfig,
    LoraSettings,
    MaskRule,
    Metric,
    ModelConfig,
    ModelKind,
    ObjectiveConfig,
    SamplerConfig,
    SyntheticConfig,
    TrainConfig,
    TrainedConfig,
    TrainerConfig,
)

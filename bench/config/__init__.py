"""What bench.yaml may say, as frozen models."""

from bench.config.file import Config, DatasetConfig, Protocol
from bench.config.matrix import (
    ATTACK_TAG,
    VICTIM_TAG,
    AttackEntry,
    DefenseEntry,
    Matrix,
    VictimEntry,
    component_name,
)
from bench.config.profile import (
    CLIPConfig,
    Downstream,
    EncoderConfig,
    Family,
    ProbeConfig,
    Profile,
    SplitCounts,
    StageResources,
    pretraining_seed,
)

__all__ = [
    "ATTACK_TAG",
    "VICTIM_TAG",
    "AttackEntry",
    "CLIPConfig",
    "Config",
    "DatasetConfig",
    "DefenseEntry",
    "Downstream",
    "EncoderConfig",
    "Family",
    "Matrix",
    "ProbeConfig",
    "Profile",
    "Protocol",
    "SplitCounts",
    "StageResources",
    "VictimEntry",
    "component_name",
    "pretraining_seed",
]

"""A scale of the matrix: data, encoders, sizes, what a stage takes of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bench.config.matrix import Matrix, Positive
from bench.graph import STAGE_VERSIONS
from bench.limits import MOST_SEED
from bench.models import Model

Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]


def pretraining_seed(shared: int | Mapping[int, int] | None, seed: int) -> int:
    """What a profile's ``pretraining_seed`` says of a cell's ``seed``."""
    if isinstance(shared, Mapping):
        return shared.get(seed, seed)
    return seed if shared is None else shared


class SplitCounts(Model):
    """Images per role (docs/protocol.md, "Splits")."""

    calibration: int = Field(2500, ge=20)
    validation: int = Field(2500, ge=20)
    references: int = Field(200, ge=1)
    shadow: int = Field(10000, ge=1)
    auxiliary: int = Field(12000, ge=20)
    base: int = Field(1000, ge=0)
    suspicious: int = Field(10000, ge=0)


class EncoderConfig(Model):
    """The clean encoder: pretrained by the harness, or imported when ``checkpoint`` is given.

    ``mean`` and ``std`` are the normalisation of an imported encoder (its architecture's by
    default); images reach every encoder in [0, 1].
    """

    architecture: str
    settings: dict[str, Any] = {}
    checkpoint: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None

    @model_validator(mode="after")
    def _statistics_of_an_import(self) -> EncoderConfig:
        if self.checkpoint is None and (self.mean, self.std) != (None, None):
            raise ValueError("mean and std describe an imported encoder; name its checkpoint")
        return self


class Downstream(Model):
    """A labelled set that the victim's user cares for, and the attacker's target class in it."""

    dataset: str
    target: int = Field(ge=0)


class ProbeConfig(Model):
    """The MLP probe (512-256, dropout 0.5) and the kNN on frozen L2-normalised features."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    neighbours: int = Field(200, ge=1)
    temperature: float = Field(0.5, gt=0)
    max_train_images: int | None = Field(None, ge=10)


class CLIPConfig(Model):
    """The CLIP model that attacks on image-text training start from, and the data around it.

    Data sets are the profile's unless given. ``pretraining`` is a
    :class:`bench.encoders.contrastive.ClipRecipe`. ``overrides``, of defenses, lie over the
    profile's for rows on these encoders: a defense may have another setting at another resolution,
    never for another attack.
    """

    encoder: EncoderConfig
    pretraining: dict[str, Any] = {}
    dataset: str | None = None
    out_of_distribution: str | None = None
    downstreams: tuple[Downstream, ...] | None = Field(None, min_length=1)
    overrides: dict[str, dict[str, Any]] = {}


class StageResources(Model):
    """What a stage of one kind takes of a machine, for ``--executor ray``; never part of a key.

    Attributes
    ----------
    cpus
        Processors; None: as many as the profile has ``threads``.
    gpus
        Accelerators, fractions of one allowed, in steps of 0.0001 (Ray's own); None: one where the
        run's device is one.
    memory_gb
        Memory that the scheduler sets aside; the process of a stage that holds more is ended.
    minutes
        Time limit.
    """

    cpus: int | None = Field(None, ge=1, strict=True)
    gpus: float | None = Field(None, ge=0)
    memory_gb: Positive | None = None
    minutes: Positive | None = None

    @field_validator("gpus")
    @classmethod
    def _a_share_or_whole_ones(cls, gpus: float | None) -> float | None:
        if gpus is not None and (gpus != round(gpus, 4) or (gpus > 1 and gpus != int(gpus))):
            raise ValueError("a share of one GPU in steps of 0.0001, or a whole number of them")
        return gpus


StageKind = Literal[tuple(STAGE_VERSIONS)]


class Profile(Model):
    """A scale: the same matrix on a laptop, on a real data set, on a GPU.

    ``matrix`` takes the place of the common one, for a question of its own.
    """

    description: str = ""
    matrix: Matrix | None = None
    dataset: str
    out_of_distribution: str
    encoder: EncoderConfig
    pretraining: dict[str, Any] = {}
    clip: CLIPConfig | None = None
    downstreams: tuple[Downstream, ...] = Field(min_length=1)
    splits: SplitCounts = SplitCounts()
    probe: ProbeConfig = ProbeConfig()
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    pretraining_seed: Seed | dict[Seed, Seed] | None = None
    """Seed of every training from scratch, clean or poisoned, and of the poison that it meets,
    whatever the seed of the cell, or for the cell's seeds that are named; else the cell's own.
    Seeds then share these encoders and differ in what is made of them (implants, fine-tunings) and
    in the defense. The leaderboard says so."""
    test_images: int | None = Field(None, ge=20)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1, le=1024)
    score_batch: int = Field(512, ge=1)
    overrides: dict[str, dict[str, Any]] = {}
    resources: dict[StageKind, StageResources] = {}
    """Stage kind -> what such a stage takes of a machine."""
    settings_tried: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Attack -> how many settings of it were tried at this scale before the overrides that stand
    there; 1 where nothing is said. Stored with every row."""

    @field_validator("pretraining_seed", mode="before")
    @classmethod
    def _seeds_of_pretrainings(cls, value: Any) -> Any:
        numbers = [*value, *value.values()] if isinstance(value, Mapping) else [value]
        if value is not None and any(
            type(n) is not int or not 0 <= n <= MOST_SEED for n in numbers
        ):
            raise ValueError(
                "a seed for all (0 or more), or which seeds have the pretraining of which: "
                f"{{1: 0}}; got {value!r}"
            )
        return value

    @field_validator("seeds", "downstreams")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(value in values[:position] for position, value in enumerate(values)):
            raise ValueError("the same value stands twice")
        return values

    @model_validator(mode="after")
    def _out_of_distribution_is_another_set(self) -> Profile:
        for family in self.families().values():
            taken = {family.dataset, *(downstream.dataset for downstream in family.downstreams)}
            if family.out_of_distribution in taken:
                raise ValueError(
                    f"out_of_distribution is {family.out_of_distribution!r}, which is also the "
                    "dataset or a downstream set: its images have other roles"
                )
        return self

    def pretrained_with(self, seed: int) -> int:
        """The seed with which the encoders of a cell's ``seed`` are trained from scratch."""
        return pretraining_seed(self.pretraining_seed, seed)

    def families(self) -> dict[str, Family]:
        """The encoders of this profile by family: ``ssl``, and ``clip`` where configured."""
        own = Family(
            "ssl",
            self.encoder,
            self.pretraining,
            self.dataset,
            self.out_of_distribution,
            self.downstreams,
        )
        if self.clip is None:
            return {"ssl": own}
        clip = Family(
            "clip",
            self.clip.encoder,
            self.clip.pretraining,
            self.clip.dataset or self.dataset,
            self.clip.out_of_distribution or self.out_of_distribution,
            self.clip.downstreams or self.downstreams,
            self.clip.overrides,
        )
        return {"ssl": own, "clip": clip}


@dataclass(frozen=True)
class Family:
    """One kind of encoder in a profile, with the data it lives on."""

    name: str
    encoder: EncoderConfig
    pretraining: Mapping[str, Any]
    dataset: str
    out_of_distribution: str
    downstreams: tuple[Downstream, ...]
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Defense -> parameters over the profile's own overrides."""

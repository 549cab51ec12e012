"""CTRL (Li et al., ICCV 2023): clean-label poisoning of SSL pretraining with a spectral trigger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from attacks.triggers import SpectralTrigger
from bench.api import (
    DataPoisoning,
    Field,
    ImageSet,
    PoisonedSet,
    PoisonerWorld,
    SSLRecipe,
    Transport,
    Trigger,
    stamped_files,
)


class CTRLRecipe(SSLRecipe):
    """How CTRL's code trains: input without normalisation, SupCon's factor on the loss, SGD, and
    a warm-up of ten epochs before the cosine.

    With ``ssl: byol`` the projector gives 256 features and the loss has no factor, unless they are
    set; its code also draws the target network apart (``target_initialisation: random``). Its
    networks start from PyTorch's defaults, ours from torchvision's rule for ResNets, with weights
    of 3 x 3 convolutions 2.4 times as large.
    """

    epochs: int = Field(default=800, ge=1)
    batch_size: int = Field(default=512, ge=2)
    optimizer: Literal["adam", "sgd"] = "sgd"
    learning_rate: float = Field(default=0.06, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["constant", "cosine", "epoch-cosine"] = "epoch-cosine"
    warmup_epochs: int = Field(default=10, ge=0)
    projector_batch_norm: bool = False
    crop_scale: float = Field(default=0.2, gt=0, le=1)
    loss_scale: float = Field(default=0.5 / 0.07, gt=0)
    joint_batch_norm: bool = True
    normalise_input: bool = False

    @model_validator(mode="before")
    @classmethod
    def _byol(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("ssl") == "byol":
            return {"projector_out": 256, "loss_scale": 1.0, **value}
        return value


class CTRL(DataPoisoning):
    """CTRL, sections 3.2-3.3: the trigger goes on a share of the training images, all of the
    target class, and no label is touched; augmentations leave its frequencies alone, so that the
    victim learns them as a feature of that class.

    The attacker stamps the first of his images of the class, as the published code does.
    """

    poisons: ClassVar[Literal["target-class", "other-classes"]] = "target-class"
    recipe: CTRLRecipe = CTRLRecipe()
    magnitude: float = Field(100.0, gt=0, le=1e5)
    """Added to each chosen coefficient of the orthonormal DCT, on the 0-255 scale."""
    positions: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))
    channels: tuple[int, ...] = (1, 2)
    """Channels of YUV."""
    window: int = Field(32, ge=4)
    transport: Transport = "8bit"

    def check(self, image_size: int) -> None:
        self.trigger(image_size)

    def trigger(self, image_size: int) -> Trigger:
        return SpectralTrigger(
            magnitude=self.magnitude,
            positions=self.positions,
            channels=self.channels,
            window=self.window,
            image_size=image_size,
            transport=self.transport,
        )

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        trigger, rows = self.trigger(train.image_size), self.rows(train, world)
        return PoisonedSet(rows, stamped_files(train, rows, trigger), trigger)

"""The contract of an attack, tried on tiny data: its trigger, and what it makes with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bench import registry
from bench.api import Attack, Control, DataPoisoning, ModelPoisoning, Trigger
from bench.contract import describing
from bench.contract.findings import AbsentError, ContractError, DoubtError, Finding, look
from bench.contract.watching import (
    NEEDS_CUDA,
    CPUOnly,
    other_global_randomness,
    wants_cuda,
)
from bench.contract.world import LEAST_STEPS, MOST_STEPS, PATIENCE_SECONDS, Made, World
from bench.errors import InputError
from bench.recipes import recipe_type
from bench.workspace import restore_trigger, trigger_record

LARGE = 224
"""The second image side at which triggers are tried, where they fit."""
LEAST_DECOYS = 3
TRANSPORTS = ("8bit", "float", "jpeg-75")
SLOW_SECONDS = 20.0


class AttackSuite:
    """All checks of one attack, in order.

    Parameters
    ----------
    make
        Gives a new instance.
    """

    def __init__(self, make: Callable[[], Attack], world: World) -> None:
        self._make, self._world = make, world
        self._attack = make()
        self._component = type(self._attack)
        self._size = world.image_size
        self._trigger: Trigger
        self._images: Tensor
        self._made: Made
        self._seconds, self._steps = 0.0, LEAST_STEPS

    def findings(self) -> Iterator[Finding]:
        """One finding per check; what needs an earlier check that failed is left out."""
        yield from describing.findings(self._component)
        found = look(f"has a trigger at {self._size} pixels", self._find_trigger)
        yield found
        if found.status == "FAIL":
            yield Finding("skip", "all other checks", "there is no trigger")
            return
        yield look("trigger keeps shape, type and range", self._shape)
        yield look("trigger is deterministic, image by image", self._deterministic_trigger)
        yield look("trigger leaves the images it is given", self._images_given)
        yield look("support is exact", lambda: self._support(self._trigger, self._images))
        yield look(f"support is exact at {LARGE} pixels", self._support_when_large)
        yield look(f"at least {LEAST_DECOYS} decoys of the same size", self._decoys)
        yield look("trigger survives its record", self._record)
        yield from self._work()

    def _work(self) -> Iterator[Finding]:
        """The checks of what the attack makes."""
        if isinstance(self._attack, Control):
            yield Finding("skip", "what it makes", "a control leaves encoder and data alone")
            return
        implants = isinstance(self._attack, ModelPoisoning)
        made = look("implants" if implants else "poisons", self._make_once)
        yield made
        if made.status in ("FAIL", "skip"):
            return
        yield look("deterministic under a seed", self._deterministic)
        yield look("leaves what it is given as it is", self._untouched)
        yield look("figures are finite numbers", self._metrics)
        if implants:
            yield look("encoder is finite and of the same shape", self._encoder)
        else:
            yield look("poisons eligible rows of its own, each once", self._rows)
            yield look("rate 0 poisons nothing", self._rate_zero)
            yield look("recipe trains its family", self._recipe)
        yield look("time", self._time)

    def _find_trigger(self) -> str:
        self._attack.check(self._size)
        self._trigger = trigger = self._attack.trigger(self._size)
        if not isinstance(trigger, Trigger):
            raise ContractError(
                f"trigger must return a bench.api.Trigger, not {type(trigger).__name__}"
            )
        if not trigger.describe().strip():
            raise ContractError("the trigger's describe() is empty: tables have nothing to call it")
        self._images = torch.cat([self._world.test_images(12).float(), _extremes(self._size)])
        return trigger.describe()

    def _shape(self) -> None:
        stamped = self._trigger(self._images.clone())
        if stamped.shape != self._images.shape or stamped.dtype != torch.float32:
            raise ContractError(
                f"float32 {tuple(self._images.shape)} came back as {stamped.dtype} "
                f"{tuple(stamped.shape)}"
            )
        if not stamped.isfinite().all() or stamped.min() < 0 or stamped.max() > 1:
            raise ContractError("stamped images leave [0, 1]")
        if torch.equal(stamped, self._images):
            raise ContractError("it stamps nothing: all images came back as they were")

    def _deterministic_trigger(self) -> None:
        with other_global_randomness(1):
            stamped = self._trigger(self._images.clone())
        with other_global_randomness(2):
            again = self._trigger(self._images.clone())
            alone = torch.cat([self._trigger(image[None]) for image in self._images.clone()])
        if not torch.equal(stamped, again):
            raise ContractError(
                "the same images came back different the second time: what is random about a "
                "trigger belongs into its parameters"
            )
        if not torch.allclose(stamped, alone, atol=1e-6):
            raise ContractError("an image is stamped differently alone and among others")

    def _images_given(self) -> None:
        given = self._images.clone()
        self._trigger(given)
        self._trigger.stamp(given)
        if not torch.equal(given, self._images):
            raise ContractError("it changed the images it was given: stamp a copy (`.clone()`)")

    def _support_when_large(self) -> str | None:
        try:
            trigger = self._attack.trigger(LARGE)
        except ValueError as error:
            raise AbsentError(str(error)) from error
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (3, 3, LARGE, LARGE), generator=generator).float() / 255
        return self._support(trigger, noise)

    def _support(self, trigger: Trigger, images: Tensor) -> str:
        """Pixels outside the support come back untouched, whatever the transport."""
        side = images.shape[-1]
        inside = trigger.support(side)
        if inside.dtype != torch.bool or tuple(inside.shape) != (side, side):
            raise ContractError(
                f"support({side}) must be bool ({side}, {side}), not {inside.dtype} "
                f"{tuple(inside.shape)}"
            )
        if not inside.any():
            raise ContractError(f"support({side}) is empty: the trigger can change no pixel")
        for transport in TRANSPORTS:
            sent = trigger.model_copy(update={"transport": transport})
            changed = (sent(images.clone()) != images).any(dim=0).any(dim=0)
            outside = int((changed & ~inside).sum())
            if outside:
                raise ContractError(
                    f"with transport {transport} it changes {outside} pixels outside its support"
                )
        return f"{int(inside.sum())} of {side * side} pixels"

    def _decoys(self) -> str:
        decoys = self._trigger.decoys()
        if len(decoys) < LEAST_DECOYS:
            raise ContractError(
                f"it offers {len(decoys)} look-alikes, and some may activate the backdoor: offer "
                f"at least {LEAST_DECOYS}, most alike first"
            )
        size, stamped = int(self._trigger.support(self._size).sum()), self._trigger(self._images)
        for number, decoy in enumerate(decoys, 1):
            what = f"decoy {number} ({decoy.describe()})"
            other = int(decoy.support(self._size).sum())
            if other != size:
                raise ContractError(f"{what} covers {other} pixels, the trigger {size}")
            if decoy.transport != self._trigger.transport:
                raise ContractError(
                    f"{what} travels as {decoy.transport}, not {self._trigger.transport}"
                )
            if torch.equal(decoy(self._images), stamped):
                raise ContractError(f"{what} stamps what the trigger stamps")
        return f"{len(decoys)}"

    def _record(self) -> None:
        """A victim is judged long after it was made, by the trigger in ``triggers.json``."""
        for trigger in (self._trigger, *self._trigger.decoys()):
            kind = type(trigger)
            if not kind.name or registry.trigger_class(kind.name) is not kind:
                raise ContractError(
                    f"{kind.__name__}.name is {kind.name!r}, which "
                    f"{'is empty' if not kind.name else 'another trigger has'}: every kind of "
                    "trigger needs a name of its own"
                )
            restored = restore_trigger(trigger_record(trigger))
            if not torch.equal(restored(self._images), trigger(self._images)):
                raise ContractError(
                    f"{kind.__name__} built again from its parameters stamps something else: all "
                    "that decides what is stamped must be a parameter"
                )

    def _make_once(self) -> str | None:
        self._world.clean_encoder(self._attack.family)  # made before the clock starts
        self._made = self._timed()
        if self._seconds < PATIENCE_SECONDS:
            self._steps = MOST_STEPS
            self._made = self._timed()
        if isinstance(self._attack, ModelPoisoning):
            return None
        return f"{len(self._made.result.rows)} of {len(self._made.train)} training images"

    def _timed(self) -> Made:
        start = time.perf_counter()
        made = self._run(1)
        self._seconds = time.perf_counter() - start
        return made

    def _run(self, seed: int, **changes: Any) -> Made:
        """Run the attack in its stage, its parameters changed where ``changes`` says so.

        Raises
        ------
        ContractError, AbsentError
            A sentence instead of the exceptions of a CUDA call and of too little data.
        """
        attack = self._make().model_copy(update=changes)
        try:
            with other_global_randomness(seed), CPUOnly():
                if isinstance(attack, ModelPoisoning):
                    return self._world.implanted(attack, self._steps)
                return self._world.poisoned(self._within_means(attack), self._steps)
        except InputError as error:
            raise AbsentError(f"the tiny data set has too little for it: {error}") from error
        except (RuntimeError, AssertionError) as error:
            if wants_cuda(error):
                raise ContractError(NEEDS_CUDA) from error
            raise

    def _within_means(self, attack: DataPoisoning) -> DataPoisoning:
        """The attack at a poison rate that the tiny data set can give."""
        most = self._world.poisonable(attack)
        return attack.model_copy(update={"poison_rate": min(attack.poison_rate, most)})

    def _deterministic(self) -> None:
        again = self._run(2)
        first, second = (_content(made) for made in (self._made, again))
        for what, value in first.items():
            if value != second[what]:
                raise ContractError(
                    f"two runs from one generator give different {what}: draw every random number "
                    "from world.generator"
                )

    def _untouched(self) -> None:
        if self._made.changed:
            raise ContractError(f"{'; '.join(self._made.changed)}: work on copies")

    def _metrics(self) -> str:
        metrics = self._made.result.metrics
        for name, value in metrics.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ContractError(f"metrics[{name!r}] is {value!r} and must be a finite number")
        return ", ".join(metrics) or "none"

    def _encoder(self) -> None:
        """What the stage has not looked at: buffers, and what goes in and comes out."""
        encoder, clean = self._made.result.encoder, self._world.clean_encoder("ssl")
        for name, value in encoder.network.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ContractError(f"{name} of the encoder is not finite")
        for name in ("architecture", "embedding_dim", "image_size"):
            ours, theirs = getattr(encoder, name), getattr(clean, name)
            if ours != theirs:
                raise ContractError(f"the victim's {name} is {ours}, the clean encoder's {theirs}")
        if not encoder.embed(self._images).isfinite().all():
            raise ContractError("embeddings of the victim are not finite")
        if encoder.state_hash() == clean.state_hash():
            raise DoubtError(f"after {self._steps} steps the victim is the clean encoder")

    def _rows(self) -> str:
        """The rows that the stage has found to be the attacker's: are they of the right class?"""
        made = self._made
        labels = made.train.labels[made.result.rows]
        eligible = self._attack.eligible(labels, made.given.target)
        if not eligible.all():
            raise ContractError(
                f"{int((~eligible).sum())} poisoned images are not of the "
                f"{self._attack.poisons.replace('-', ' ')}: take rows from self.rows(train, world)"
            )
        wanted = int(self._within_means(self._attack).poison_rate * len(made.train) + 1e-9)
        if len(labels) != wanted:
            raise ContractError(f"poison_rate asks for {wanted} images, {len(labels)} are poisoned")
        captions = made.result.captions
        if captions is not None and self._attack.family != "clip":
            raise ContractError("it returns captions, and its family trains on images alone")
        return f"{len(labels)} images" + (", with captions" if captions else "")

    def _rate_zero(self) -> None:
        count = len(self._run(3, poison_rate=0.0).result.rows)
        if count:
            raise ContractError(
                f"poison_rate 0 poisons {count} images, and must give the clean twin: count with "
                "self.checked_count or take rows from self.rows"
            )

    def _recipe(self) -> str:
        recipe = self._attack.recipe
        if recipe is None:
            return "as the profile pretrains"
        wanted = recipe_type(self._attack.family)
        if not isinstance(recipe, wanted):
            raise ContractError(
                f"recipe must be a {wanted.__name__} for family {self._attack.family!r}, not "
                f"{type(recipe).__name__}"
            )
        return type(recipe).__name__

    def _time(self) -> str:
        said = f"{self._seconds:.1f} s, training loops cut to {self._steps} steps"
        if self._seconds > SLOW_SECONDS:
            raise DoubtError(f"{said}: do all of them go through world.progress.track?")
        return said


def _extremes(size: int) -> Tensor:
    """float32 (4, 3, S, S): black, white, and two images of noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (2, 3, size, size), generator=generator).float() / 255
    flat = torch.stack([torch.zeros(3, size, size), torch.ones(3, size, size)])
    return torch.cat([flat, noise])


def _content(made: Made) -> Mapping[str, Any]:
    """What two runs must agree on, by how a sentence calls it."""
    result = made.result
    common = {"triggers": trigger_record(result.trigger), "metrics": dict(result.metrics)}
    if hasattr(result, "encoder"):
        return {"encoders": result.encoder.state_hash(), **common}
    return {
        "rows": result.rows.tolist(),
        "images": result.images.numpy().tobytes(),
        "captions": result.captions,
        **common,
    }

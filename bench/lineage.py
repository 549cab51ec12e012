"""Where victims and clean twins come from: the stages from data to encoder. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.building import once
from bench.config import Downstream, Family, Profile, Protocol, SplitCounts
from bench.graph import Component, Environment, Stage


def role_slices(counts: SplitCounts) -> dict[str, tuple[int, int]]:
    """Role -> (start, stop) in the seeded permutation of the training rows.

    Roles are laid out one after the other, so that a changed count moves only what follows it.
    """
    slices: dict[str, tuple[int, int]] = {}
    start = 0
    for role, size in counts.model_dump().items():
        slices[role] = (start, start + size)
        start += size
    return slices


@dataclass(frozen=True)
class Pair:
    """A victim and the encoder it would have been.

    Attributes
    ----------
    victim
        The stage that leaves the encoder and, unless the attack is a control, its trigger.
    twin
        None for an imported victim that came without one.
    """

    victim: Stage
    twin: Stage | None


@dataclass(frozen=True)
class ImportedVictim:
    """A resolved :class:`bench.config.VictimEntry`, JSON-ready.

    Attributes
    ----------
    encoder, twin
        The SHA-256 of a file under ``checkpoint``, and how to build the network around it.
    trigger
        As :func:`bench.workspace.trigger_record` writes it.
    family
        Whose data sets it meets.
    """

    encoder: Mapping[str, Any]
    trigger: Mapping[str, Any]
    target: int
    family: str
    architecture: str
    text: bool
    twin: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Lineage:
    """Builds the stages behind encoders for one profile.

    Parameters
    ----------
    data_specs
        (dataset, split) -> the description of a data stage: content fingerprint and decoding.
    recipes
        Family -> the pretraining recipe with its name and version.
    checkpoints
        Family -> SHA-256 of the imported encoder's file, for families that import one.
    """

    profile: Profile
    protocol: Protocol
    environment: Environment
    data_specs: Callable[[str, str], Mapping[str, Any]]
    recipes: Mapping[str, Mapping[str, Any]]
    checkpoints: Mapping[str, str]

    @once
    def rows(self, *roles: str) -> dict[str, Any]:
        """The slice of the seeded permutation that consecutive ``roles`` take."""
        slices = role_slices(self.profile.splits)
        return {
            "seed": self.protocol.split_seed,
            "start": slices[roles[0]][0],
            "stop": slices[roles[-1]][1],
        }

    @once
    def data(self, dataset: str, split: str) -> Stage:
        return Stage("data", self.data_specs(dataset, split), label=f"{dataset}/{split}")

    def pair(self, attack: Component, family: Family, downstream: Downstream, seed: int) -> Pair:
        """Victim and twin of an attack in one downstream set."""
        clean = self.clean(family, seed)
        if attack.kind == "control":
            return Pair(clean, clean)
        if attack.kind == "model-poisoning":
            return Pair(self.implant(attack, family, downstream, clean, seed), clean)
        start = clean if attack.family == "clip" else None
        recipe = attack.recipe or self.recipes[family.name]
        if start is None:
            # What is trained from scratch is shared, and with it what is trained on.
            seed = self.profile.pretrained_with(seed)
        twin = self.trained(family, recipe, seed, start=start)
        poison = self.poison(attack, family, downstream, start, seed)
        victim = self.trained(family, recipe, seed, start=start, poison=poison, twin=twin)
        return Pair(victim, twin)

    def clean(self, family: Family, seed: int) -> Stage:
        """The clean encoder of a family: pretrained by the harness, or imported."""
        if family.name not in self.checkpoints:
            seed = self.profile.pretrained_with(seed)
            return self.trained(family, self.recipes[family.name], seed)
        encoder = {
            "checkpoint": self.checkpoints[family.name],
            "architecture": family.encoder.architecture,
            "settings": dict(family.encoder.settings),
            "mean": family.encoder.mean,
            "std": family.encoder.std,
        }
        return self.imported(encoder, family, family.downstreams[0])

    def trained(
        self,
        family: Family,
        recipe: Mapping[str, Any],
        seed: int,
        *,
        start: Stage | None = None,
        poison: Stage | None = None,
        twin: Stage | None = None,
    ) -> Stage:
        """Training on every image that is not held out: from scratch, or on from ``start``.

        With ``poison`` the result is the victim of ``twin``, which is the same without.
        """
        architecture = family.encoder.architecture
        inputs = {"train": self.data(family.dataset, "train")}
        if start is not None:
            inputs["encoder"] = start
        if poison is not None:
            inputs["poison"] = poison
        what = "pretrain" if start is None else "fine-tune"
        by = f" poisoned by {poison.component}" if poison is not None else ""
        return Stage(
            "pretrain",
            {
                "recipe": dict(recipe),
                "architecture": architecture,
                "settings": dict(family.encoder.settings),
                "held_out": self.rows("calibration", "validation"),
                "seed": seed,
                "environment": self.environment.describe(),
                **({} if twin is None else {"twin": twin.key}),
            },
            inputs,
            f"{what} {architecture} on {family.dataset}{by}, seed {seed}",
        )

    def poison(
        self,
        attack: Component,
        family: Family,
        downstream: Downstream,
        start: Stage | None,
        seed: int,
    ) -> Stage:
        """What a data-poisoning attack puts in the place of some training images."""
        inputs = {
            "train": self.data(family.dataset, "train"),
            "downstream": self.data(downstream.dataset, "train"),
        }
        if start is not None:
            inputs["encoder"] = start
        return Stage(
            "poison",
            {
                "component": attack.without_recipe(),
                "target": downstream.target,
                "held_out": self.rows("calibration", "validation"),
                "candidates": self.rows("shadow"),
                "seed": seed,
                "environment": self.environment.describe(),
            },
            inputs,
            f"poison {family.dataset} with {attack.name}, seed {seed}",
        )

    def implant(
        self,
        attack: Component,
        family: Family,
        downstream: Downstream,
        encoder: Stage,
        seed: int,
    ) -> Stage:
        """A model-poisoning attack's fine-tuning of the clean encoder."""
        return Stage(
            "implant",
            {
                "component": attack.describe(),
                "target": downstream.target,
                "shadow": self.rows("shadow"),
                "references": self.rows("references"),
                "reference_count": attack.references,
                "seed": seed,
                "environment": self.environment.describe(),
            },
            {
                "encoder": encoder,
                "train": self.data(family.dataset, "train"),
                "downstream": self.data(downstream.dataset, "train"),
            },
            f"implant {attack.name} on {downstream.dataset}, seed {seed}",
        )

    def imported_pair(self, victim: ImportedVictim, family: Family, downstream: Downstream) -> Pair:
        """Somebody's victim and, where it came along, its clean twin."""
        twin = None
        if victim.twin is not None:
            twin = self.imported(victim.twin, family, downstream)
        marks = {
            "trigger": dict(victim.trigger),
            "target": victim.target,
            "twin": None if twin is None else twin.key,
        }
        return Pair(self.imported(victim.encoder, family, downstream, marks), twin)

    def imported(
        self,
        encoder: Mapping[str, Any],
        family: Family,
        downstream: Downstream,
        victim: Mapping[str, Any] | None = None,
    ) -> Stage:
        """Loading somebody's encoder, with a smoke test on the downstream set."""
        size = self.data_specs(downstream.dataset, "train")["image_size"]
        return Stage(
            "import",
            {
                "encoder": {**encoder, "image_size": size},
                "victim": victim,
                "train": self.probe_rows(family, downstream),
                "split_seed": self.protocol.split_seed,
                "environment": self.environment.describe(),
            },
            {
                "train": self.data(downstream.dataset, "train"),
                "test": self.data(downstream.dataset, "test"),
            },
            f"import {encoder.get('architecture') or 'encoder'}",
        )

    def probe_rows(self, family: Family, downstream: Downstream) -> dict[str, Any]:
        """A probe learns from all training rows that are not held out."""
        last = "validation" if downstream.dataset == family.dataset else "references"
        return {"all_but": self.rows("calibration", last)}

"""Configuration -> cells -> stage graph. Pure: names, parameters and keys, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.config import (
    AttackEntry,
    Config,
    DefenseEntry,
    Downstream,
    Profile,
    Protocol,
    SplitCounts,
)
from bench.graph import Cell, Component, Environment, Stage


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
class Planner:
    """Builds the stage graph of one profile.

    Parameters
    ----------
    data_specs
        (dataset, split) -> the description of a data stage: content fingerprint and decoding.
    component
        (group, name, parameters) -> resolved :class:`Component`.
    recipe
        The pretraining recipe with its version.
    checkpoint_digest
        SHA-256 of the imported encoder's file; None when the harness pretrains.
    """

    config: Config
    profile_name: str
    profile: Profile
    environment: Environment
    data_specs: Callable[[str, str], Mapping[str, Any]]
    component: Callable[[str, str, Mapping[str, Any]], Component]
    recipe: Mapping[str, Any]
    checkpoint_digest: str | None = None

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Every cell of the matrix: seeds x downstreams x attacks x defenses, in that order."""
        return [
            self.cell(attack, defense, downstream, seed)
            for seed in seeds
            for downstream in self.profile.downstreams
            for attack in self.config.matrix.attacks
            for defense in self.config.matrix.defenses
        ]

    def cell(
        self, attack: AttackEntry, defense: DefenseEntry, downstream: Downstream, seed: int
    ) -> Cell:
        attacker = self._resolve("attacks", attack.attack, attack.parameters)
        defender = self._resolve("defenses", defense.defense, defense.parameters)
        twin = self.pretrain(seed)
        victim = twin if attacker.control else self.implant(attacker, downstream, twin, seed)
        audit = self.audit(attacker, downstream, victim, twin, seed)
        scores = {
            role: self.score(defender, defense, encoder, audit, downstream, seed)
            for role, encoder in (("victim", victim), ("twin", twin))
        }
        identity = {
            "attack": attack.label,
            "defense": defense.label,
            "dataset": self.profile.dataset,
            "encoder": self.profile.encoder.architecture,
            "downstream": downstream.dataset,
            "target": downstream.target,
            "profile": self.profile_name,
            "seed": seed,
            "attack_backend": "native",
            "defense_backend": "native",
            "auxiliary": defense.auxiliary,
        }
        stage = Stage(
            "evaluate",
            {
                "identity": identity,
                "config": {
                    "attack": {
                        **attacker.describe(),
                        "label": attack.label,
                        "settings_tried": attack.settings_tried,
                    },
                    "defense": {**defender.describe(), "label": defense.label},
                    "profile": self.profile_name,
                },
                "protocol": _chosen(
                    self.protocol, "bootstrap_draws", "threshold_source", "calibration_fpr"
                ),
                "split_seed": self.protocol.split_seed,
                "control": attacker.control,
            },
            {"victim": scores["victim"], "twin": scores["twin"], "audit": audit},
            f"evaluate {attack.label} x {defense.label}",
        )
        return Cell(stage, attacker.skip or defender.skip)

    @property
    def protocol(self) -> Protocol:
        return self.config.protocol

    def data(self, dataset: str, split: str) -> Stage:
        return Stage("data", self.data_specs(dataset, split), label=f"{dataset}/{split}")

    def test_data(self, downstream: Downstream) -> Stage:
        return self.data(downstream.dataset, "test")

    def pretrain(self, seed: int) -> Stage:
        profile = self.profile
        encoder = {
            "architecture": profile.encoder.architecture,
            "settings": dict(profile.encoder.settings),
        }
        if self.checkpoint_digest is not None:
            size = {"image_size": self.config.datasets[profile.dataset].image_size}
            statistics = _chosen(profile.encoder, "mean", "std")
            return Stage(
                "pretrain",
                {"checkpoint": self.checkpoint_digest, **encoder, **statistics, **size},
                label=f"import {profile.encoder.architecture}",
            )
        return Stage(
            "pretrain",
            {
                "recipe": dict(self.recipe),
                **encoder,
                "held_out": self._rows("calibration", "validation"),
                "seed": seed,
                "environment": self.environment.describe(),
            },
            {"train": self.data(profile.dataset, "train")},
            f"pretrain {profile.encoder.architecture} on {profile.dataset}",
        )

    def implant(
        self, attack: Component, downstream: Downstream, encoder: Stage, seed: int
    ) -> Stage:
        return Stage(
            "implant",
            {
                "component": attack.describe(),
                "target": downstream.target,
                "shadow": self._rows("shadow"),
                "references": self._rows("references"),
                "reference_count": attack.references,
                "seed": seed,
                "environment": self.environment.describe(),
            },
            {
                "encoder": encoder,
                "train": self.data(self.profile.dataset, "train"),
                "downstream": self.data(downstream.dataset, "train"),
            },
            f"implant {attack.name}",
        )

    def probe(self, encoder: Stage, downstream: Downstream, seed: int) -> Stage:
        return Stage(
            "probe",
            {
                "probe": _chosen(
                    self.profile.probe,
                    "epochs",
                    "batch_size",
                    "learning_rate",
                    "max_train_images",
                ),
                "train": self._probe_rows(downstream),
                "seed": seed,
                "environment": self.environment.describe(),
            },
            {"encoder": encoder, "train": self.data(downstream.dataset, "train")},
            f"probe on {downstream.dataset}",
        )

    def pixels(self, downstream: Downstream) -> Stage:
        return Stage(
            "pixels",
            {
                "probe": _chosen(
                    self.profile.probe, "neighbours", "temperature", "max_train_images"
                ),
                "train": self._probe_rows(downstream),
                "test_images": self.profile.test_images,
                "environment": self.environment.describe(),
            },
            {
                "train": self.data(downstream.dataset, "train"),
                "test": self.test_data(downstream),
            },
            f"raw-pixel kNN on {downstream.dataset}",
        )

    def audit(
        self,
        attack: Component,
        downstream: Downstream,
        victim: Stage,
        twin: Stage,
        seed: int,
    ) -> Stage:
        inputs = {
            "victim": self.probe(victim, downstream, seed),
            "twin": self.probe(twin, downstream, seed),
            "pixels": self.pixels(downstream),
            "train": self.data(downstream.dataset, "train"),
            "test": self.test_data(downstream),
        }
        return Stage(
            "audit",
            {
                # A control has no implant stage, so its trigger is made here.
                **({"component": attack.describe()} if attack.control else {}),
                "control": attack.control,
                "target": downstream.target,
                "decoy_max_success": self.protocol.decoy_max_success,
                "validation": self._rows("validation"),
                "train": self._probe_rows(downstream),
                "probe": _chosen(
                    self.profile.probe, "neighbours", "temperature", "max_train_images"
                ),
                "test_images": self.profile.test_images,
                "seed": seed,
                "environment": self.environment.describe(),
            },
            inputs if attack.control else {**inputs, "implant": victim},
            f"audit {attack.name} on {downstream.dataset}",
        )

    def fit(
        self, defense: Component, entry: DefenseEntry, encoder: Stage, audit: Stage, seed: int
    ) -> Stage:
        auxiliary = (
            self.profile.dataset
            if entry.auxiliary == "in-distribution"
            else self.profile.out_of_distribution
        )
        spec: dict[str, Any] = {
            "component": defense.describe(),
            "auxiliary": (
                {"rows": self._rows("auxiliary")}
                if entry.auxiliary == "in-distribution"
                else {"first": self.profile.splits.auxiliary, "seed": self.protocol.split_seed}
            ),
            "held_out_auxiliary": self.protocol.held_out_auxiliary,
            "seed": seed,
            "environment": self.environment.describe(),
        }
        inputs = {"encoder": encoder, "auxiliary": self.data(auxiliary, "train")}
        if "suspicious" in defense.requires:
            # The pool is stamped with the attack's trigger; the placebo's holds the same pixels.
            spec["suspicious"] = {
                "rows": self._rows("suspicious"),
                "poison_rate": self.protocol.poison_rate,
            }
            inputs |= {"train": self.data(self.profile.dataset, "train"), "audit": audit}
        return Stage("fit", spec, inputs, f"fit {entry.label}")

    def score(
        self,
        defense: Component,
        entry: DefenseEntry,
        encoder: Stage,
        audit: Stage,
        downstream: Downstream,
        seed: int,
    ) -> Stage:
        return Stage(
            "score",
            {
                "component": defense.describe(),
                "calibration": self._rows("calibration"),
                "test_images": self.profile.test_images,
                "split_seed": self.protocol.split_seed,
                "score_batch": self.profile.score_batch,
                "figure_images": self.protocol.figure_images,
                "seed": seed,
                "environment": self.environment.describe(),
            },
            {
                "fit": self.fit(defense, entry, encoder, audit, seed),
                "audit": audit,
                "train": self.data(downstream.dataset, "train"),
                "test": self.test_data(downstream),
            },
            f"score {entry.label}",
        )

    def _resolve(self, group: str, name: str, parameters: Mapping[str, Any]) -> Component:
        return self.component(
            group, name, self.config.component_parameters(self.profile, name, parameters)
        )

    def _rows(self, *roles: str) -> dict[str, Any]:
        slices = role_slices(self.profile.splits)
        return {
            "seed": self.protocol.split_seed,
            "start": slices[roles[0]][0],
            "stop": slices[roles[-1]][1],
        }

    def _probe_rows(self, downstream: Downstream) -> dict[str, Any]:
        """The probe learns from all training rows that are not held out."""
        roles = ("calibration", "validation")
        if downstream.dataset != self.profile.dataset:
            roles = ("calibration", "references")
        return {"all_but": self._rows(*roles)}


def _chosen(model: Any, *fields: str) -> dict[str, Any]:
    return {name: getattr(model, name) for name in fields}

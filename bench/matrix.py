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
    Family,
    Matrix,
    Profile,
    VictimEntry,
)
from bench.graph import Cell, Component, Stage
from bench.lineage import ImportedVictim, Lineage, Pair

HEADS = {"ssl": ("mlp",), "clip": ("zero-shot", "linear")}
"""Family -> how classes are read out of its encoders, kNN aside; the first is what gates judge."""


@dataclass(frozen=True)
class Planner:
    """Builds the stage graph of one profile.

    Parameters
    ----------
    component
        (group, name, parameters) -> resolved :class:`Component`.
    victim
        A :class:`VictimEntry` -> what its files hold.
    text_towers
        Families of the profile whose encoder has a text tower.
    labelled
        Whether the training images of a data set have labels.
    published
        Whether an architecture is one that published methods use.
    """

    config: Config
    matrix: Matrix
    profile_name: str
    profile: Profile
    lineage: Lineage
    component: Callable[[str, str, Mapping[str, Any]], Component]
    victim: Callable[[VictimEntry], ImportedVictim]
    text_towers: frozenset[str]
    labelled: Callable[[str], bool]
    published: Callable[[str], bool]

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Every cell of the matrix: seeds x downstreams x attacks x defenses, in that order."""
        return [
            self.cell(row, defense, downstream, seed)
            for seed in seeds
            for position in range(self._most_downstreams())
            for attack in self.matrix.attacks
            for row in [self.row(attack)]
            for downstream in row.downstreams[position : position + 1]
            for defense in self.matrix.defenses
        ]

    def row(self, entry: AttackEntry | VictimEntry) -> Row:
        """An entry of ``matrix.attacks`` with what it resolves to."""
        families = self.profile.families()
        if isinstance(entry, VictimEntry):
            victim = self.victim(entry)
            family = families.get(victim.family, families["ssl"])
            name = entry.downstream or family.downstreams[0].dataset
            # Its data may be another family's; classes are read out as its towers allow.
            heads = "clip" if victim.text else "ssl"
            component = Component("imported", 1, {}, kind="imported", family=heads)
            return Row(
                entry,
                component,
                family,
                (Downstream(dataset=name, target=victim.target),),
                victim.architecture,
                victim.text,
                victim=victim,
            )
        attacker = self._resolve("attacks", entry.component, entry.parameters)
        family = families.get(attacker.family)
        if family is None:
            reason = f"{attacker.name} needs a CLIP model, and the profile has no `clip`"
            own = families["ssl"]
            return Row(entry, attacker, own, own.downstreams, "", False, reason)
        text = family.name in self.text_towers
        reason = attacker.skip
        if attacker.family == "clip" and not text:
            reason = (
                f"{attacker.name} trains images with captions, and {family.encoder.architecture} "
                "has no text tower"
            )
        return Row(
            entry,
            attacker,
            family,
            family.downstreams,
            family.encoder.architecture,
            text,
            reason,
        )

    def cell(self, row: Row, entry: DefenseEntry, downstream: Downstream, seed: int) -> Cell:
        defender = self.defender(entry)
        skip = row.skip_on(downstream) or defender.skip or self._lacking(row, entry, defender)
        spec = {
            "identity": self._identity(row, entry, downstream, seed),
            "config": self._described(row, defender, entry),
            "protocol": _chosen(
                self.config.protocol, "bootstrap_draws", "threshold_source", "calibration_fpr"
            ),
            "split_seed": self.config.protocol.split_seed,
            "control": row.attack.control,
            "reference": defender.reference,
            "analysis": "trigger_support" in defender.requires,
            "probes": [*HEADS[row.attack.family], "knn"],
        }
        reduced = self._reduced(row, entry, defender)
        if reduced:
            spec["reduced"] = reduced
        label = f"evaluate {row.entry.label} x {entry.label}"
        if row.skip is not None:
            return Cell(Stage("evaluate", spec, label=label), skip)
        pair = self.pair(row, downstream, seed)
        audit = self.audit(row, downstream, pair, seed)
        encoders = {"victim": pair.victim, "twin": pair.twin}
        scores = {
            role: self.score(defender, entry, row.family, encoder, audit, downstream, seed)
            for role, encoder in encoders.items()
            if encoder is not None
        }
        return Cell(Stage("evaluate", spec, {**scores, "audit": audit}, label), skip)

    def _reduced(self, row: Row, entry: DefenseEntry, defender: Component) -> str:
        """In words, what is smaller than the authors of upstream code had it; else empty."""
        if "upstream" not in (row.entry.backend, entry.backend):
            return ""
        parts = [row.attack.reduced, defender.reduced]
        limit = self.config.datasets[row.family.dataset].max_images
        if limit is not None:
            parts.append(f"a data set of {limit:,} images")
        if row.architecture and not self.published(row.architecture):
            parts.append("a narrow encoder")
        return "; ".join(part for part in parts if part)

    def defender(self, entry: DefenseEntry) -> Component:
        """An entry of ``matrix.defenses``, resolved."""
        return self._resolve("defenses", entry.component, entry.parameters)

    def _lacking(self, row: Row, entry: DefenseEntry, defender: Component) -> str | None:
        """What a defense requires and cannot have here, as the reason of a skipped cell."""
        if "text" in defender.requires and not row.text:
            return f"{defender.name} requires a text tower, which {row.architecture} has not"
        if "auxiliary_labels" in defender.requires:
            owned = self._owned(entry, row.family)
            if not self.labelled(owned):
                return (
                    f"{defender.name} requires labels of the auxiliary images, and {owned} has none"
                )
        if "suspicious" in defender.requires:
            counts = self.profile.splits
            for role in ("suspicious", "base"):
                if getattr(counts, role) == 0:
                    return f"{defender.name} requires {role} images, and splits.{role} is 0"
        return None

    def _owned(self, entry: DefenseEntry, family: Family) -> str:
        """The data set that the defender's auxiliary images are from."""
        inside = entry.auxiliary == "in-distribution"
        return family.dataset if inside else family.out_of_distribution

    def pair(self, row: Row, downstream: Downstream, seed: int) -> Pair:
        """Victim and twin of a row."""
        if row.victim is not None:
            return self.lineage.imported_pair(row.victim, row.family, downstream)
        return self.lineage.pair(row.attack, row.family, downstream, seed)

    def _identity(
        self, row: Row, entry: DefenseEntry, downstream: Downstream, seed: int
    ) -> dict[str, Any]:
        return {
            "attack": row.entry.label,
            "defense": entry.label,
            "dataset": row.family.dataset,
            "encoder": row.architecture,
            "downstream": downstream.dataset,
            "target": downstream.target,
            "profile": self.profile_name,
            "seed": seed,
            "attack_backend": row.entry.backend,
            "defense_backend": entry.backend,
            "auxiliary": entry.described_auxiliary,
        }

    def _described(self, row: Row, defender: Component, entry: DefenseEntry) -> dict[str, Any]:
        return {
            "attack": {
                **row.attack.describe(),
                "label": row.entry.label,
                "settings_tried": self.profile.settings_tried.get(row.attack.name, 1),
            },
            "defense": {**defender.describe(), "label": entry.label},
            "profile": self.profile_name,
        }

    def probe(self, row: Row, encoder: Stage, downstream: Downstream, seed: int) -> Stage:
        """The classifiers on a frozen encoder, kNN aside."""
        return Stage(
            "probe",
            {
                "heads": list(HEADS[row.attack.family]),
                "probe": _chosen(
                    self.profile.probe,
                    "epochs",
                    "batch_size",
                    "learning_rate",
                    "max_train_images",
                ),
                "train": self.lineage.probe_rows(row.family, downstream),
                "seed": seed,
                "environment": self.lineage.environment.describe(),
            },
            {"encoder": encoder, "train": self.lineage.data(downstream.dataset, "train")},
            f"probe on {downstream.dataset}",
        )

    def pixels(self, row: Row, downstream: Downstream) -> Stage:
        return Stage(
            "pixels",
            {
                "probe": _chosen(
                    self.profile.probe, "neighbours", "temperature", "max_train_images"
                ),
                "train": self.lineage.probe_rows(row.family, downstream),
                "test_images": self.profile.test_images,
                "environment": self.lineage.environment.describe(),
            },
            {
                "train": self.lineage.data(downstream.dataset, "train"),
                "test": self.lineage.data(downstream.dataset, "test"),
            },
            f"raw-pixel kNN on {downstream.dataset}",
        )

    def audit(self, row: Row, downstream: Downstream, pair: Pair, seed: int) -> Stage:
        inputs = {
            "victim": self.probe(row, pair.victim, downstream, seed),
            "pixels": self.pixels(row, downstream),
            "train": self.lineage.data(downstream.dataset, "train"),
            "test": self.lineage.data(downstream.dataset, "test"),
        }
        if pair.twin is not None:
            inputs["twin"] = self.probe(row, pair.twin, downstream, seed)
        if not row.attack.control:
            inputs["attack"] = pair.victim
        return Stage(
            "audit",
            {
                # A control leaves no artifact, so its trigger is made here.
                **({"component": row.attack.describe()} if row.attack.control else {}),
                "control": row.attack.control,
                "target": downstream.target,
                "decoy_max_success": self.config.protocol.decoy_max_success,
                "validation": self.lineage.rows("validation"),
                "train": self.lineage.probe_rows(row.family, downstream),
                "probe": _chosen(
                    self.profile.probe, "neighbours", "temperature", "max_train_images"
                ),
                "test_images": self.profile.test_images,
                "seed": seed,
                "environment": self.lineage.environment.describe(),
            },
            inputs,
            f"audit {row.entry.label} on {downstream.dataset}",
        )

    def fit(
        self,
        defense: Component,
        entry: DefenseEntry,
        family: Family,
        encoder: Stage,
        audit: Stage,
        seed: int,
    ) -> Stage:
        rows, chosen = self.lineage.rows, {}
        if entry.auxiliary == "in-distribution":
            chosen["rows"] = rows("auxiliary")
        else:
            chosen["first"] = self.profile.splits.auxiliary
            chosen["seed"] = self.config.protocol.split_seed
        if entry.auxiliary_poison_rate > 0:
            chosen["poison_rate"] = entry.auxiliary_poison_rate
        spec: dict[str, Any] = {
            "component": defense.fitted(),
            "auxiliary": chosen,
            "held_out_auxiliary": self.config.protocol.held_out_auxiliary,
            "seed": seed,
            "environment": self.lineage.environment.describe(),
        }
        owned = self.lineage.data(self._owned(entry, family), "train")
        inputs = {"encoder": encoder, "auxiliary": owned}
        if "poison_rate" in chosen:
            # Here too the placebo's images hold the same pixels.
            inputs["audit"] = audit
        if "suspicious" in defense.requires:
            # The pool is stamped with the attack's trigger; the placebo's holds the same pixels.
            spec["suspicious"] = {
                "rows": rows("suspicious"),
                "poison_rate": self.config.protocol.poison_rate,
            }
            spec["base"] = {"rows": rows("base")}
            inputs |= {"train": self.lineage.data(family.dataset, "train"), "audit": audit}
        return Stage("fit", spec, inputs, f"fit {entry.label}")

    def score(
        self,
        defense: Component,
        entry: DefenseEntry,
        family: Family,
        encoder: Stage,
        audit: Stage,
        downstream: Downstream,
        seed: int,
    ) -> Stage:
        return Stage(
            "score",
            {
                "component": defense.describe(),
                "calibration": self.lineage.rows("calibration"),
                "test_images": self.profile.test_images,
                "split_seed": self.config.protocol.split_seed,
                "score_batch": self.profile.score_batch,
                "figure_images": self.config.protocol.figure_images,
                "seed": seed,
                "environment": self.lineage.environment.describe(),
            },
            {
                "fit": self.fit(defense, entry, family, encoder, audit, seed),
                "audit": audit,
                "train": self.lineage.data(downstream.dataset, "train"),
                "test": self.lineage.data(downstream.dataset, "test"),
            },
            f"score {entry.label}",
        )

    def _resolve(self, group: str, name: str, parameters: Mapping[str, Any]) -> Component:
        return self.component(
            group, name, self.config.component_parameters(self.profile, name, parameters)
        )

    def _most_downstreams(self) -> int:
        return max(len(family.downstreams) for family in self.profile.families().values())


@dataclass(frozen=True)
class Row:
    """An entry of ``matrix.attacks``, resolved.

    Attributes
    ----------
    skip
        Why nothing of this row can run here; None when it can.
    """

    entry: AttackEntry | VictimEntry
    attack: Component
    family: Family
    downstreams: tuple[Downstream, ...]
    architecture: str
    text: bool
    skip: str | None = None
    victim: ImportedVictim | None = None

    def skip_on(self, downstream: Downstream) -> str | None:
        """Why the row cannot be judged on one downstream set."""
        poisons_labels = self.attack.kind == "data-poisoning" and self.attack.family == "ssl"
        if self.skip is None and poisons_labels and downstream.dataset != self.family.dataset:
            return (
                f"{self.attack.name} takes its target class from the pretraining set "
                f"{self.family.dataset}, not from {downstream.dataset}"
            )
        return self.skip


def _chosen(model: Any, *fields: str) -> dict[str, Any]:
    return {name: getattr(model, name) for name in fields}

"""Configuration -> cells -> stage graph. Pure: names, parameters and keys, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.building import once
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
from bench.entries import Column, Row
from bench.graph import Cell, Component, Stage
from bench.lineage import ImportedVictim, Lineage, Pair
from bench.store import Extended, Shared

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
    _fits: dict[tuple[Any, ...], Stage] = field(default_factory=dict, init=False, repr=False)

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Every cell of the matrix: seeds x downstreams x attacks x defenses, in that order."""
        rows = [self.row(entry) for entry in self.matrix.attacks]
        columns = {
            family: [self.column(entry, family) for entry in self.matrix.defenses]
            for family in self.profile.families()
        }
        return [
            cell
            for seed in seeds
            for position in range(self._most_downstreams())
            for row in rows
            for downstream in row.downstreams[position : position + 1]
            for cell in self._row_cells(row, columns[row.family.name], downstream, seed)
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

    def column(self, entry: DefenseEntry, family: str = "ssl") -> Column:
        """An entry of ``matrix.defenses`` with what it resolves to on a family of encoders."""
        return Column(entry, self._resolve("defenses", entry.component, entry.parameters, family))

    def _row_cells(
        self, row: Row, columns: Sequence[Column], downstream: Downstream, seed: int
    ) -> Iterator[Cell]:
        """One victim and every defense; victim, twin and audit are the same stages for all."""
        pair = self.pair(row, downstream, seed) if row.skip is None else None
        audit = None if pair is None else self.audit(row, downstream, pair, seed)
        whose = _whose(row, downstream, seed)
        for column in columns:
            identity = self._identity(row, column.entry, downstream, seed)
            spec = Extended(self._evaluation(row, column), identity=identity)
            inputs: dict[str, Stage] = {}
            if pair is not None and audit is not None:
                inputs["victim"] = self.score(column, row.family, pair.victim, audit, seed, whose)
                if pair.twin is pair.victim:
                    inputs["twin"] = inputs["victim"]
                elif pair.twin is not None:
                    inputs["twin"] = self.score(
                        column, row.family, pair.twin, audit, seed, f"the twin of {whose}"
                    )
                inputs["audit"] = audit
            label = f"evaluate {column.entry.label} for {whose}"
            skip = row.skip_on(downstream) or column.defender.skip or self._lacking(row, column)
            yield Cell(Stage("evaluate", spec, inputs, label), skip)

    @once
    def _evaluation(self, row: Row, column: Column) -> Shared:
        """What decides the evaluation of a defense on an attack, data set and seed aside."""
        entry, defender = column.entry, column.defender
        reduced = self._reduced(row, column)
        return Shared(
            config={
                "attack": {
                    **row.attack.describe(),
                    "label": row.entry.label,
                    "settings_tried": self.profile.settings_tried.get(row.attack.name, 1),
                },
                "defense": {
                    **defender.describe(),
                    "label": entry.label,
                    **({"equal_length": True} if entry.equal_length else {}),
                },
                "profile": self.profile_name,
            },
            protocol=_chosen(
                self.config.protocol, "bootstrap_draws", "threshold_source", "calibration_fpr"
            ),
            split_seed=self.config.protocol.split_seed,
            control=row.attack.control,
            reference=defender.reference,
            analysis=defender.analysis,
            probes=[*HEADS[row.attack.family], "knn"],
            **({"reduced": reduced} if reduced else {}),
        )

    def _reduced(self, row: Row, column: Column) -> str:
        """In words, what is smaller than the authors of upstream code had it; else empty."""
        if "upstream" not in (row.entry.backend, column.entry.backend):
            return ""
        parts = [row.attack.reduced, column.defender.reduced]
        limit = self.config.datasets[row.family.dataset].max_images
        if limit is not None:
            parts.append(f"a data set of {limit:,} images")
        if row.architecture and not self.published(row.architecture):
            parts.append("a narrow encoder")
        return "; ".join(part for part in parts if part)

    @once
    def _lacking(self, row: Row, column: Column) -> str | None:
        """What a defense requires and cannot have here, as the reason of a skipped cell."""
        defender = column.defender
        if "text" in defender.requires and not row.text:
            return f"{defender.name} requires a text tower, which {row.architecture} has not"
        if "auxiliary_labels" in defender.requires:
            owned = self._owned(column.entry, row.family)
            if not self.labelled(owned):
                return (
                    f"{defender.name} requires labels of the auxiliary images, and {owned} has none"
                )
        wants_both = {"auxiliary_labels", "suspicious"} <= defender.requires
        if wants_both and not self.labelled(row.family.dataset):
            return (
                f"{defender.name} requires labels of the base images, and "
                f"{row.family.dataset} has none"
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
            "encoder": row.architecture + (", imported" if row.victim is not None else ""),
            "downstream": downstream.dataset,
            "target": downstream.target,
            "profile": self.profile_name,
            "seed": seed,
            "attack_backend": row.entry.backend,
            "defense_backend": entry.backend,
            "auxiliary": entry.described_auxiliary,
        }

    def probe(
        self, row: Row, encoder: Stage, downstream: Downstream, seed: int, whose: str
    ) -> Stage:
        """The classifiers on a frozen encoder, kNN aside; ``whose`` it is in words."""
        return Stage(
            "probe",
            {
                "heads": list(HEADS[row.attack.family]),
                "probe": self._reading("epochs", "batch_size", "learning_rate"),
                "train": self.lineage.probe_rows(row.family, downstream),
                "seed": seed,
                "environment": self.lineage.environment.describe(),
            },
            {"encoder": encoder, "train": self.lineage.data(downstream.dataset, "train")},
            f"probe {whose}",
        )

    def pixels(self, row: Row, downstream: Downstream) -> Stage:
        return Stage(
            "pixels",
            {
                "probe": self._reading("neighbours", "temperature"),
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
        whose = _whose(row, downstream, seed)
        inputs = {
            "victim": self.probe(row, pair.victim, downstream, seed, whose),
            "pixels": self.pixels(row, downstream),
            "train": self.lineage.data(downstream.dataset, "train"),
            "test": self.lineage.data(downstream.dataset, "test"),
        }
        if pair.twin is not None:
            inputs["twin"] = self.probe(row, pair.twin, downstream, seed, f"the twin of {whose}")
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
                "probe": self._reading("neighbours", "temperature"),
                "test_images": self.profile.test_images,
                "seed": seed,
                "environment": self.lineage.environment.describe(),
            },
            inputs,
            f"audit {whose}",
        )

    def fit(
        self,
        column: Column,
        family: Family,
        encoder: Stage,
        audit: Stage,
        seed: int,
        whose: str,
    ) -> Stage:
        """A defense fitted to an encoder, with an input for each thing that it is shown.

        ``whose`` the encoder is, in words; of one that rows share, the first one's.
        """
        spec = self._fit_spec(column, seed)
        shown = "poison_rate" in spec["auxiliary"] or "suspicious" in spec
        shown = shown or "trigger_support" in column.defender.fit_requires
        # Most placebos of a defense rest on one twin: their fits are one stage.
        named = (column, family.name, encoder.key, audit.key if shown else "", seed)
        if named not in self._fits:
            owned = self.lineage.data(self._owned(column.entry, family), "train")
            inputs = {"encoder": encoder, "auxiliary": owned}
            if shown:
                # Images are stamped with the attack's trigger; the placebo's hold the same pixels.
                inputs["audit"] = audit
            if "suspicious" in spec:
                inputs["train"] = self.lineage.data(family.dataset, "train")
            self._fits[named] = Stage("fit", spec, inputs, f"fit {column.entry.label} for {whose}")
        return self._fits[named]

    @once
    def _fit_spec(self, column: Column, seed: int) -> Shared:
        entry, rows, chosen = column.entry, self.lineage.rows, {}
        if entry.auxiliary == "in-distribution":
            chosen["rows"] = rows("auxiliary")
        else:
            chosen["first"] = self.profile.splits.auxiliary
            chosen["seed"] = self.config.protocol.split_seed
        if entry.auxiliary_poison_rate > 0:
            chosen["poison_rate"] = entry.auxiliary_poison_rate
        spec: dict[str, Any] = {
            "component": column.defender.fitted(),
            "auxiliary": chosen,
            "held_out_auxiliary": self.config.protocol.held_out_auxiliary,
            "seed": seed,
            "environment": self.lineage.environment.describe(),
        }
        if entry.equal_length:
            spec["embeddings"] = "equal-length"
        if "suspicious" in column.defender.requires:
            spec["suspicious"] = {
                "rows": rows("suspicious"),
                "poison_rate": self.config.protocol.poison_rate,
            }
            spec["base"] = {"rows": rows("base")}
        return Shared(spec)

    def score(
        self,
        column: Column,
        family: Family,
        encoder: Stage,
        audit: Stage,
        seed: int,
        whose: str,
    ) -> Stage:
        """A fitted defense's scores of the images that an audit is about."""
        inputs = {
            "fit": self.fit(column, family, encoder, audit, seed, whose),
            "audit": audit,
            "train": audit.inputs["train"],
            "test": audit.inputs["test"],
        }
        label = f"score {column.entry.label} for {whose}"
        return Stage("score", self._score_spec(column, seed), inputs, label)

    @once
    def _score_spec(self, column: Column, seed: int) -> Shared:
        return Shared(
            {
                "component": column.defender.describe(),
                "calibration": self.lineage.rows("calibration"),
                "test_images": self.profile.test_images,
                "split_seed": self.config.protocol.split_seed,
                "score_batch": self.profile.score_batch,
                "figure_images": self.config.protocol.figure_images,
                "seed": seed,
                "environment": self.lineage.environment.describe(),
            }
        )

    def _reading(self, *settings: str) -> dict[str, Any]:
        """How classes are read out of an encoder: some settings, and how many images it takes."""
        chosen = _chosen(self.profile.probe, *settings, "max_train_images")
        # They are drawn; once they were the first ones of the file, under keys that must not match.
        return chosen if chosen["max_train_images"] is None else {**chosen, "images": "drawn"}

    def _resolve(
        self, group: str, name: str, parameters: Mapping[str, Any], family: str = "ssl"
    ) -> Component:
        merged = self.config.component_parameters(self.profile, name, parameters, family)
        return self.component(group, name, merged)

    def _most_downstreams(self) -> int:
        return max(len(family.downstreams) for family in self.profile.families().values())


def _whose(row: Row, downstream: Downstream, seed: int) -> str:
    """Of which victim a stage is, for people: ``badencoder on cifar10, seed 0``."""
    return f"{row.entry.label} on {downstream.dataset}, seed {seed}"


def _chosen(model: Any, *fields: str) -> dict[str, Any]:
    return {name: getattr(model, name) for name in fields}

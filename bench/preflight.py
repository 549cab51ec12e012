"""What is checked before a run computes or writes anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench import registry
from bench.config import Family, VictimEntry
from bench.data.splits import permuted_rows
from bench.errors import InputError
from bench.graph import topological
from bench.lineage import role_slices
from bench.yamlfile import Location

if TYPE_CHECKING:
    from bench.session import Session


def check(session: Session) -> None:
    """Refuse what could only fail later: the file, components, data, splits, targets.

    Raises
    ------
    InputError
        One line with file, line and key.
    """
    for folder in (session.store.root, session.results):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; a folder is wanted there")
    session.file.check_components()
    session.checkpoint_digests  # noqa: B018 - reading the files is the check
    for family, path in session.checkpoints.items():
        _check_checkpoint(session, family, path)
    session.sources  # noqa: B018 - opening them is the check
    session.victims.files  # noqa: B018 - likewise
    for stage in topological([cell.stage for cell in session.cells]):
        if stage.kind == "data" and not session.store.peek("data", stage.key):
            _check_images(session, stage.spec["dataset"], stage.spec["split"])
    for family in session.profile.families().values():
        where = ("profiles", session.profile_name, *(("clip",) if family.name == "clip" else ()))
        _check_split_sizes(session, family)
        _check_batch_size(session, family, where)
        _check_targets(session, family, where)
    _check_poison(session)


def _check_images(session: Session, dataset: str, split: str) -> None:
    try:
        session.sources[dataset].check(split)
    except InputError as error:
        raise session.file.yaml.error(("datasets", dataset), str(error)) from None


def _training_images(session: Session, dataset: str) -> int | None:
    """Images of a training set, where that can be told without decoding."""
    total, limit = session.sources[dataset].count("train"), _limit(session, dataset)
    return None if total is None else min(total, limit or total)


def _limit(session: Session, dataset: str) -> int | None:
    return session.file.config.datasets[dataset].max_images


def _check_split_sizes(session: Session, family: Family) -> None:
    """Refuse counts that a training set cannot give, where its size is known beforehand."""
    slices = role_slices(session.profile.splits)
    needed = {family.dataset: slices["suspicious"][1]}
    for downstream in family.downstreams:
        needed.setdefault(downstream.dataset, slices["references"][1] + 1)
    for name, rows in needed.items():
        total = _training_images(session, name)
        if total is not None and total < rows:
            raise session.file.yaml.error(
                ("profiles", session.profile_name, "splits"),
                f"dataset {name!r} has {total} training images, the splits ask for {rows}",
            )


def _check_batch_size(session: Session, family: Family, where: Location) -> None:
    """Refuse a batch larger than the training set, of the profile's recipe or an attack's."""
    total = _training_images(session, family.dataset)
    if total is None:
        return
    rows = total - role_slices(session.profile.splits)["validation"][1]
    recipes = {}
    if family.name not in session.checkpoints:
        recipes[(*where, "pretraining", "batch_size")] = session.planner.lineage.recipes[
            family.name
        ]
    for position, entry in enumerate(session.file.config.matrix.attacks):
        row = session.planner.row(entry)
        if row.attack.recipe is not None and row.family == family and entry in session.attacks:
            recipes[_attack_location(session, position, "recipe")] = row.attack.recipe
    for location, recipe in recipes.items():
        if recipe["parameters"]["batch_size"] > rows:
            raise session.file.yaml.error(
                location,
                f"batch_size {recipe['parameters']['batch_size']} is more than the {rows} images "
                "of pretraining",
            )


def _attack_location(session: Session, position: int, parameter: str) -> Location:
    """Where the file sets a parameter of an attack: its entry, the profile, or nowhere."""
    entry = session.file.config.matrix.attacks[position]
    overrides = ("profiles", session.profile_name, "overrides", entry.attack)
    if parameter in session.profile.overrides.get(entry.attack, {}):
        return (*overrides, parameter)
    return ("matrix", "attacks", position, "parameters", parameter)


def _check_poison(session: Session) -> None:
    """Refuse a poison rate above what the attacker's images of the class can give."""
    for position, entry in enumerate(session.file.config.matrix.attacks):
        row = session.planner.row(entry)
        if row.attack.kind != "data-poisoning" or row.skip or entry not in session.attacks:
            continue
        labels = session.sources[row.family.dataset].labels("train")
        if labels is None:
            continue
        attack = registry.load("attacks", row.attack.name).model_validate(row.attack.parameters)
        shadow = session.planner.lineage.rows("shadow")
        owned = labels[permuted_rows(len(labels), shadow, row.family.dataset)]
        total = len(labels) - role_slices(session.profile.splits)["validation"][1]
        for downstream in row.downstreams:
            if row.skip_on(downstream) is not None or downstream.dataset != row.family.dataset:
                continue
            available = int(attack.eligible(owned, downstream.target).sum())
            try:
                attack.checked_count(total, available)
            except ValueError as error:
                location = _attack_location(session, position, "poison_rate")
                raise session.file.yaml.error(location, str(error)) from None


def _check_targets(session: Session, family: Family, where: Location) -> None:
    """Refuse an unlabelled downstream set and a target class that does not exist."""
    places = [
        ((*where, "downstreams", position), downstream)
        for position, downstream in enumerate(family.downstreams)
    ]
    if family.name == "ssl":
        places += [
            (("matrix", "attacks", position), downstream)
            for position, entry in enumerate(session.file.config.matrix.attacks)
            if isinstance(entry, VictimEntry)
            for downstream in session.planner.row(entry).downstreams
        ]
    for here, downstream in places:
        for split in ("train", "test"):
            classes = session.sources[downstream.dataset].classes(split)
            if classes == 0:
                raise session.file.yaml.error(
                    (*here, "dataset"), f"{downstream.dataset!r} ({split}) has no labels"
                )
            if classes is not None and downstream.target >= classes:
                raise session.file.yaml.error(
                    (*here, "target"),
                    f"class {downstream.target} does not exist: {downstream.dataset!r} "
                    f"({split}) has {classes} classes",
                )
    if family.name == "clip":
        _check_captions(session, family, where)


def _check_captions(session: Session, family: Family, where: Location) -> None:
    """Image-text training needs captions, or labels to make them of."""
    source = session.sources[family.dataset]
    if source.captioned("train") is False and source.classes("train") == 0:
        raise session.file.yaml.error(
            (*where, "dataset"),
            f"captions missing: {family.dataset!r} has neither captions nor labels to make them of",
        )


def _check_checkpoint(session: Session, family: str, path: Path) -> None:
    from bench.encoders.checkpoints import import_checkpoint

    encoder = session.profile.families()[family].encoder
    try:
        import_checkpoint(path, encoder.architecture, encoder.settings)
    except ValueError as error:
        section = ("clip",) if family == "clip" else ()
        location = ("profiles", session.profile_name, *section, "encoder", "checkpoint")
        raise session.file.yaml.error(location, str(error)) from None

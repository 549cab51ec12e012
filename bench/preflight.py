"""What is checked before a run computes or writes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.config import DefenseEntry, Downstream, Family, VictimEntry
from bench.data.splits import permuted_rows, pick_references
from bench.entries import Column, Row
from bench.errors import InputError
from bench.graph import topological
from bench.lineage import role_slices
from bench.recipes import recipe_type
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
    for family, where in _families(session):
        _check_image_sizes(session, family, where)
        _check_roles(session, family, where)
    session.victims.files  # noqa: B018 - likewise
    for stage in topological([cell.stage for cell in session.cells]):
        if stage.kind == "data" and not session.store.peek("data", stage.key):
            _check_images(session, stage.spec["dataset"], stage.spec["split"])
    for family, where in _families(session):
        _check_split_sizes(session, family)
        _check_recipes(session, family, where)
        _check_targets(session, family, where)
    _check_victims(session)
    _check_poison(session)
    _check_references(session)
    _check_triggered_shares(session)
    _check_equal_lengths(session)


def _families(session: Session) -> Iterator[tuple[Family, Location]]:
    """The profile's families, each with where the file speaks of it."""
    here = ("profiles", session.profile_name)
    for family in session.profile.families().values():
        yield family, here if family.name == "ssl" else (*here, family.name)


def _victims(session: Session) -> Iterator[tuple[Location, Row]]:
    """The rows of imported victims, each with its place in the matrix."""
    for position, entry in enumerate(session.matrix.attacks):
        if isinstance(entry, VictimEntry):
            yield (*session.matrix_location, "attacks", position), session.planner.row(entry)


def _check_roles(session: Session, family: Family, where: Location) -> None:
    """Refuse images that have two roles under two names: what is held out, or what the defender is
    to have from elsewhere, would be among those that encoders are trained on."""
    named = {(*where, "out_of_distribution"): family.out_of_distribution}
    named |= {
        (*where, "downstreams", i, "dataset"): d.dataset for i, d in enumerate(family.downstreams)
    }
    taken = {_content(session, family.dataset): family.dataset}
    for place, name in reversed(named.items()):
        other = taken.setdefault(_content(session, name), name)
        if other != name:
            raise session.file.yaml.error(
                place, f"{name!r} is {other!r} under another name: its images have other roles"
            )


def _check_image_sizes(session: Session, family: Family, where: Location) -> None:
    """Refuse data sets of different image sizes, and of one that the encoder cannot take."""
    from bench.encoders.architectures import find

    datasets = session.file.config.datasets
    size = datasets[family.dataset].image_size
    others = {(*where, "out_of_distribution"): family.out_of_distribution}
    for position, downstream in enumerate(family.downstreams):
        others[(*where, "downstreams", position, "dataset")] = downstream.dataset
    for location, name in others.items():
        if datasets[name].image_size != size:
            raise session.file.yaml.error(
                location,
                f"{name!r} has images of {datasets[name].image_size} pixels, the encoder's "
                f"{family.dataset!r} of {size}",
            )
    architecture = find(family.encoder.architecture)
    if architecture.fixed_size and architecture.image_size != size:
        raise session.file.yaml.error(
            (*where, "encoder", "architecture"),
            f"{architecture.name} takes images of {architecture.image_size} pixels only, "
            f"{family.dataset!r} has images of {size}",
        )


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
    victims = [row for _, row in _victims(session) if row.family == family]
    for downstream in (*family.downstreams, *(d for row in victims for d in row.downstreams)):
        needed.setdefault(downstream.dataset, slices["references"][1] + 1)
    for name, rows in needed.items():
        total = _training_images(session, name)
        if total is not None and total < rows:
            raise session.file.yaml.error(
                ("profiles", session.profile_name, "splits"),
                f"dataset {name!r} has {total} training images, the splits ask for {rows}",
            )


def _check_recipes(session: Session, family: Family, where: Location) -> None:
    """Refuse training that cannot be: the profile's and, of each attack, its own."""
    total = _training_images(session, family.dataset)
    if total is None:
        return
    rows = total - role_slices(session.profile.splits)["validation"][1]
    if family.name not in session.checkpoints:
        problem = _problem_of(session.planner.lineage.recipes[family.name], rows)
        if problem is not None:
            raise session.file.yaml.error((*where, "pretraining", problem[0]), problem[1])
    for position, entry in enumerate(session.matrix.attacks):
        row = session.planner.row(entry)
        runs = entry in session.attacks and row.skip is None and row.family == family
        if runs and row.attack.recipe is not None:
            problem = _problem_of(row.attack.recipe, rows)
            if problem is not None:
                location = _attack_location(session, position, "recipe", problem[0])
                raise session.file.yaml.error(location, problem[1])


def _problem_of(recipe: Mapping[str, Any], rows: int) -> tuple[str, str] | None:
    """The parameter of a recipe that training on ``rows`` images cannot have, and why."""
    parameters = recipe["parameters"]
    batch = parameters["batch_size"]
    if recipe["name"] == "upstream":
        rows = min(rows, parameters["max_images"] or rows)
    if batch > rows:
        return "batch_size", f"batch_size {batch} is more than the {rows} images of pretraining"
    if recipe["name"] == "ssl" and parameters["warmup_epochs"] >= parameters["epochs"]:
        epochs = parameters["epochs"]
        return "warmup_epochs", (
            f"a warm-up of {parameters['warmup_epochs']} epochs leaves nothing of the {epochs} of "
            "training"
        )
    if recipe["name"] == "clip":
        steps = parameters["epochs"] * (rows // batch)
        warmup = recipe_type("clip").model_validate(parameters).warmup(rows // batch)
        if warmup >= steps:
            key = "warmup_steps" if parameters["warmup_epochs"] is None else "warmup_epochs"
            return key, f"a warm-up of {warmup} steps leaves nothing of the {steps} of training"
    return None


def _attack_location(session: Session, position: int, *keys: str) -> Location:
    """Where the file sets a parameter of an attack: its entry, the profile, or nowhere."""
    entry = session.matrix.attacks[position]
    own: Location = (*session.matrix_location, "attacks", position, "parameters")
    layers = {
        own: entry.parameters,
        ("profiles", session.profile_name, "overrides", entry.component): (
            session.profile.overrides.get(entry.component, {})
        ),
    }
    for location, layer in layers.items():
        found: Any = layer
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            return (*location, *keys)
    return (*own, *keys)


def _check_poison(session: Session) -> None:
    """Refuse a poison rate above what the attacker's images of the class can give."""
    for position, entry in enumerate(session.matrix.attacks):
        row = session.planner.row(entry)
        if row.attack.kind != "data-poisoning" or row.skip or entry not in session.attacks:
            continue
        labels = session.training_labels(row.family.dataset)
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


def _check_references(session: Session) -> None:
    """Refuse more reference images than the class has among those to take them from."""
    available = session.profile.splits.references
    for position, entry in enumerate(session.matrix.attacks):
        row = session.planner.row(entry)
        if entry not in session.attacks or row.skip is not None or row.attack.references == 0:
            continue
        location = _attack_location(session, position, "references")
        if row.attack.references > available:
            raise session.file.yaml.error(
                location,
                f"{row.attack.references} reference images of one class cannot be among "
                f"splits.references, {available}",
            )
        for downstream in row.downstreams:
            labels, name = session.training_labels(downstream.dataset), downstream.dataset
            if labels is None or row.skip_on(downstream) is not None:
                continue
            pool = permuted_rows(len(labels), session.planner.lineage.rows("references"), name)
            try:
                pick_references(pool, labels, downstream.target, row.attack.references, name)
            except InputError as error:
                raise session.file.yaml.error(location, str(error)) from None


def _columns(session: Session, entry: DefenseEntry) -> list[Column]:
    """A defense as it meets each family of encoders."""
    return [session.planner.column(entry, family) for family in session.profile.families()]


def _check_equal_lengths(session: Session) -> None:
    """Refuse one length of embeddings where it would not reach the defense, or mislead it."""
    for position, entry in enumerate(session.matrix.defenses):
        if not (entry.equal_length and entry in session.defenses):
            continue
        for column in _columns(session, entry):
            if "network" in column.defender.requires:
                why = "takes the network itself, whose embeddings stay as they are"
            elif column.defender.reference:
                why = "never calls the encoder"
            elif column.defender.describe()["parameters"].get("checkpoint") is not None:
                why = "was trained elsewhere, on embeddings as they are (its checkpoint)"
            else:
                continue
            raise session.file.yaml.error(
                (*session.matrix_location, "defenses", position, "equal_length"),
                f"{entry.label} {why}",
            )


def _check_triggered_shares(session: Session) -> None:
    """Refuse shares of the defender's images and of the pool that come to no image at all."""
    counts, protocol = session.profile.splits, session.file.config.protocol
    for position, entry in enumerate(session.matrix.defenses):
        if entry not in session.defenses:
            continue
        rate = entry.auxiliary_poison_rate
        if rate > 0 and round(rate * counts.auxiliary) == 0:
            raise session.file.yaml.error(
                (*session.matrix_location, "defenses", position, "auxiliary_poison_rate"),
                f"{rate:g} of {counts.auxiliary} auxiliary images is none",
            )
        pool = counts.suspicious
        columns = _columns(session, entry)
        if (
            any("suspicious" in column.defender.requires for column in columns)
            and pool > 0
            and round(protocol.poison_rate * pool) == 0
        ):
            raise session.file.yaml.error(
                ("protocol", "poison_rate"),
                f"{protocol.poison_rate:g} of the {pool} images of the suspicious pool is none, "
                f"and {entry.label} requires that pool",
            )


def _check_targets(session: Session, family: Family, where: Location) -> None:
    """Refuse an unlabelled downstream set and a target class that does not exist."""
    for position, downstream in enumerate(family.downstreams):
        here = (*where, "downstreams", position)
        _check_target(session, downstream, (*here, "dataset"), (*here, "target"))
    if family.name == "clip":
        _check_captions(session, family, where)


def _check_victims(session: Session) -> None:
    """The same for what imported victims are judged on."""
    for here, row in _victims(session):
        taken = {
            _content(session, row.family.out_of_distribution): "the out-of-distribution set",
            _content(session, row.family.dataset): f"{row.family.dataset!r} under another name",
        }
        for downstream in row.downstreams:
            other = taken.get(_content(session, downstream.dataset))
            if other is not None and downstream.dataset != row.family.dataset:
                raise session.file.yaml.error(
                    (*here, "downstream"),
                    f"{downstream.dataset!r} is {other}: its images have other roles",
                )
            _check_target(session, downstream, (*here, "downstream"), (*here, "target"))


def _content(session: Session, dataset: str) -> str:
    """Which training images a data set has, whatever it is called and how many of them it takes."""
    return session.data_spec(dataset, "train")["fingerprint"]


def _check_target(
    session: Session, downstream: Downstream, dataset: Location, target: Location
) -> None:
    for split in ("train", "test"):
        classes = session.classes(downstream.dataset, split)
        if classes == 0:
            raise session.file.yaml.error(
                dataset, f"{downstream.dataset!r} ({split}) has no labels"
            )
        if classes is not None and downstream.target >= classes:
            raise session.file.yaml.error(
                target,
                f"class {downstream.target} does not exist: {downstream.dataset!r} "
                f"({split}) has {classes} classes",
            )


def _check_captions(session: Session, family: Family, where: Location) -> None:
    """Image-text training needs captions, or labels to make them of."""
    unlabelled = session.classes(family.dataset, "train") == 0
    if session.planner.lineage.recipes["clip"]["parameters"]["inmodal_weight"] > 0 and unlabelled:
        raise session.file.yaml.error(
            (*where, "pretraining", "inmodal_weight"),
            f"a second caption is made of labels, and {family.dataset!r} has none",
        )
    if unlabelled and session.sources[family.dataset].captioned("train") is False:
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

"""What is checked before a run computes or writes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.errors import InputError
from bench.graph import topological
from bench.matrix import role_slices

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
    _check_checkpoint(session)
    session.sources  # noqa: B018 - opening them is the check
    for stage in topological([cell.stage for cell in session.cells]):
        if stage.kind == "data" and not session.store.peek("data", stage.key):
            _check_images(session, stage.spec["dataset"], stage.spec["split"])
    _check_split_sizes(session)
    _check_targets(session)


def _check_images(session: Session, dataset: str, split: str) -> None:
    try:
        session.sources[dataset].check(split)
    except InputError as error:
        raise session.file.yaml.error(("datasets", dataset), str(error)) from None


def _check_split_sizes(session: Session) -> None:
    """Refuse counts that a training set cannot give, where its size is known beforehand."""
    slices = role_slices(session.profile.splits)
    needed = {session.profile.dataset: slices["suspicious"][1]}
    for downstream in session.profile.downstreams:
        needed.setdefault(downstream.dataset, slices["references"][1] + 1)
    for name, rows in needed.items():
        limit = session.file.config.datasets[name].max_images
        total = session.sources[name].count("train")
        if total is not None and name == session.profile.dataset:
            _check_batch_size(session, min(total, limit or total) - slices["validation"][1])
        if total is not None and min(total, limit or total) < rows:
            raise session.file.yaml.error(
                ("profiles", session.profile_name, "splits"),
                f"dataset {name!r} has {min(total, limit or total)} training images, "
                f"the splits ask for {rows}",
            )


def _check_batch_size(session: Session, rows: int) -> None:
    recipe = session.planner.recipe["parameters"]
    if session.checkpoint is None and recipe["batch_size"] > rows:
        raise session.file.yaml.error(
            ("profiles", session.profile_name, "pretraining", "batch_size"),
            f"{recipe['batch_size']} is more than the {rows} images of pretraining",
        )


def _check_targets(session: Session) -> None:
    """Refuse an unlabelled downstream set and a target class that does not exist."""
    for position, downstream in enumerate(session.profile.downstreams):
        here = ("profiles", session.profile_name, "downstreams", position)
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


def _check_checkpoint(session: Session) -> None:
    if session.checkpoint is None:
        return
    from bench.encoders.checkpoints import import_checkpoint

    encoder = session.profile.encoder
    try:
        import_checkpoint(session.checkpoint, encoder.architecture, encoder.settings)
    except ValueError as error:
        location = ("profiles", session.profile_name, "encoder", "checkpoint")
        raise session.file.yaml.error(location, str(error)) from None

"""The encoder under scan: what the file is, how it was told, which normalisation it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.encoders.architectures import find
from bench.encoders.checkpoints import import_checkpoint
from bench.encoders.encoder import Encoder
from bench.encoders.recognition import Recognised, recognise
from bench.encoders.weights import read_metadata, read_state_dict
from bench.errors import InputError, nearest
from bench.store import damage, file_digest

ENCODER = "encoder.safetensors"
_OWN = frozenset({"architecture", "settings", "mean", "std", "image_size"})

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Wishes:
    """What the user says of the network; None and empty where the file must tell."""

    architecture: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean: Colour | None = None
    std: Colour | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Opened:
    """An encoder on the CPU and where each thing that is known of it comes from.

    Attributes
    ----------
    path, digest
        The file and the SHA-256 of its bytes.
    network, normalisation
        Sentences on where architecture, settings and normalisation were taken from.
    guessed
        Settings that nobody said and no shape tells.
    """

    encoder: Encoder
    path: Path
    digest: str
    network: str
    normalisation: str
    guessed: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {
            "file": self.path.name,
            "sha256": self.digest,
            "architecture": self.encoder.architecture,
            "settings": self.encoder.settings,
            "image_size": self.encoder.image_size,
            "embedding_dim": self.encoder.embedding_dim,
            "mean": list(self.encoder.mean),
            "std": list(self.encoder.std),
            "network_from": self.network,
            "normalisation_from": self.normalisation,
            "guessed_settings": list(self.guessed),
        }


def open_encoder(named: Path, wishes: Wishes) -> Opened:
    """Read one of our encoder files, a victim's folder, or a foreign checkpoint.

    Raises
    ------
    InputError
        When the file is missing, damaged or a pickle of more than tensors, when its keys fit no
        architecture or not the named one, or when it contradicts the user.
    """
    path = encoder_file(named)
    try:
        if _describes_itself(path):
            return _own(path, wishes)
        return _foreign(path, wishes)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        # Metadata and shapes are a stranger's: building a network from them may raise anything.
        message = " ".join(str(error).split())
        raise InputError(
            message if str(path) in message else f"{path}: {message or type(error).__name__}"
        ) from None


def encoder_file(named: Path) -> Path:
    """The encoder file behind a path, which may be the folder of a victim."""
    if not named.exists():
        raise InputError(f"{named}: no such file or folder")
    if not named.is_dir():
        return named
    if not (named / ENCODER).is_file():
        raise InputError(f"{named} holds no {ENCODER}; name the encoder's file")
    if (named / "manifest.json").is_file():
        problem = damage(named)
        if problem is not None:
            raise InputError(f"{named} is damaged: {problem}")
    return named / ENCODER


def _describes_itself(path: Path) -> bool:
    found = read_metadata(path) if path.suffix == ".safetensors" else {}
    return isinstance(found, Mapping) and found.keys() >= _OWN


def _own(path: Path, wishes: Wishes) -> Opened:
    encoder = Encoder.load(path)
    asked = {
        name: getattr(wishes, name)
        for name in ("architecture", "mean", "std", "image_size")
        if getattr(wishes, name) is not None
    }
    pairs = [(name, value, getattr(encoder, name)) for name, value in asked.items()]
    pairs += [(name, value, encoder.settings.get(name)) for name, value in wishes.settings.items()]
    for name, value, said in pairs:
        if value != said:
            raise InputError(f"{path.name} says its own {name}, {said}, not {value}: leave it out")
    return Opened(encoder, path, file_digest(path), "the file says so", "the file says so")


def _foreign(path: Path, wishes: Wishes) -> Opened:
    try:
        seen = recognise(read_state_dict(path))
    except ValueError:
        # A named architecture has its own way to say what does not fit.
        if wishes.architecture is None or not path.is_file():
            raise
        seen = None
    architecture = wishes.architecture or seen.architecture
    fits = seen is not None and seen.architecture == architecture
    told = seen.settings if fits else {}
    settings = {**told, **wishes.settings}
    for name, value in told.items():
        if settings[name] != value:
            raise InputError(f"{path.name}: {name} is {value} by its shapes, not {settings[name]}")
    find(architecture).check(settings)
    mean, std, normalisation = _normalisation(wishes, seen if fits else None, architecture)
    try:
        encoder = import_checkpoint(
            path, architecture, settings, mean=mean, std=std, image_size=wishes.image_size
        )
    except ValueError as error:
        if seen is None or fits:
            raise
        raise InputError(f"{error}; they look like {seen.in_words()}") from None
    untold = seen.untold if fits else tuple(find(architecture).settings)
    return Opened(
        encoder,
        path,
        file_digest(path),
        _network_words(wishes, seen if fits else None),
        normalisation,
        guessed=tuple(name for name in untold if name not in settings),
    )


def _network_words(wishes: Wishes, seen: Recognised | None) -> str:
    if seen is None:
        return "--architecture says so"
    named = "as --architecture says and " if wishes.architecture is not None else ""
    return f"{named}by its keys and shapes: {seen.layout}"


def _normalisation(
    wishes: Wishes, seen: Recognised | None, architecture: str
) -> tuple[Colour | None, Colour | None, str]:
    """Mean and deviation (None: the architecture's default), and where they come from."""
    values: list[Colour | None] = []
    sources: list[str] = []
    for name in ("mean", "std"):
        value, source = getattr(wishes, name), f"--{name}"
        if value is None and seen is not None:
            value, source = getattr(seen, name), f"{seen.layout}, whose recipe does not normalise"
        if value is None:
            source = f"the default of {architecture}; no file says it, so check it"
        values.append(value)
        sources.append(source)
    same = sources[0] == sources[1]
    words = sources[0] if same else f"mean: {sources[0]}; std: {sources[1]}"
    return values[0], values[1], words


def parse_settings(text: str | None, architecture: str | None) -> dict[str, Any]:
    """``width=32,stem_stride=2`` as a mapping.

    Raises
    ------
    InputError
        For anything but ``name=integer`` pairs, or a name the architecture does not know.
    """
    settings: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            if not name:
                raise ValueError
            settings[name] = int(value)
        except ValueError:
            raise InputError(
                f"--settings wants name=integer pairs such as width=32,stem_stride=2, got {part!r}"
            ) from None
        if architecture is not None and name not in find(architecture).settings:
            known = find(architecture).settings
            raise InputError(f"{architecture} has no setting {name!r}{nearest(name, known)}")
    return settings


def parse_colour(text: str | None, option: str) -> Colour | None:
    """``0.49,0.48,0.45`` as three floats in [0, 1].

    Raises
    ------
    InputError
        For anything else.
    """
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
        if not all(0 <= part <= 1 for part in (red, green, blue)):
            raise ValueError
    except ValueError:
        raise InputError(
            f"{option} wants three numbers from 0 to 1 such as 0.49,0.48,0.45, got {text!r}"
        ) from None
    return red, green, blue

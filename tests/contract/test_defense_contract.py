"""`bench check defense`: every built-in passes, and who breaks a promise is told which."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import registry
from bench.configfile import ConfigFile
from bench.contract import check, failed
from bench.errors import InputError

QUICK = ConfigFile(Path(__file__).resolve().parents[2] / "bench.yaml").config.profiles["quick"]


@pytest.mark.parametrize("name", registry.entries("defenses"))
def test_built_in_defense_keeps_its_contract(world, name):
    findings = list(check("defense", name, world, QUICK.overrides.get(name)))
    assert not failed(findings), "\n".join(finding.line() for finding in findings)


BROKEN = {
    "ReturnsNan": ("finite scores", "returned 1 non-finite of 96 scores"),
    "WrongLength": ("one float per image", "returned shape (95,) for 96 images"),
    "WrongType": ("one float per image", "must return a tensor or an array, not list"),
    "NonDeterministic": (
        "deterministic under a seed",
        "draw every random number from view.generator or view.seed",
    ),
    "MutatesEncoder": (
        "leaves encoder and images as they are",
        "fit changed the encoder's parameters or buffers: work on copies",
    ),
    "UnfreezesEncoder": (
        "leaves encoder and images as they are",
        "fit changed the training mode of the encoder: work on copies",
    ),
    "ChangesImages": (
        "leaves encoder and images as they are",
        "score changed the images it was given: work on copies",
    ),
    "ChangesAuxiliary": (
        "leaves encoder and images as they are",
        "fit changed the auxiliary images: work on copies",
    ),
    "BatchDependent": (
        "independent of order and batch",
        "scores depend on the order or the batch of the images",
    ),
    "BatchMatcher": (
        "independent of order and batch",
        "scores depend on the order or the batch of the images",
    ),
    "NeedsCuda": ("fits on the CPU", "asks for a CUDA device and must work on the CPU"),
    "SeesLabels": (
        "fits on the CPU",
        "fit looks for labels, which a defense is shown only if it declares 'auxiliary_labels'",
    ),
    "HidesThatItPeeks": (
        "sees no ground truth",
        "it looks for labels, which a defense is shown only if it declares 'auxiliary_labels'",
    ),
    "LooksBehindTheView": ("fits on the CPU", "AttributeError: 'function' object has no attribute"),
    "NoDocstring": ("docstring of its own", "the class NoDocstring has no docstring of its own"),
    "PositionGuesser": (
        "independent of what was scored before",
        "an image scores differently when it comes again",
    ),
    "DuplicateMatcher": ("equal scores under an empty trigger", "stamps nothing changes scores"),
    "UndeclaredGradients": (
        "one float per image",
        "score asks for what it has not declared: encoder.forward needs 'gradients'",
    ),
    "UndeclaredPool": (
        "fits on the CPU",
        "fit reads view.suspicious or view.base, which is None unless it declares 'suspicious'",
    ),
    "ForgetsPart": ("state survives a file", "load_state does not restore what state gave"),
    "ThresholdAlone": (
        "score and threshold of the encoder",
        "encoder_threshold is a number and score_encoder is None",
    ),
    "InfiniteVerdict": (
        "score and threshold of the encoder",
        "InfiniteVerdict.score_encoder returned inf",
    ),
    "TakesName": ("figures", "a figure may not be called 'input'"),
    "FloatFigures": ("figures", "figure 'picture' must be a uint8 array, not float64 array"),
    "VersionZero": ("version", "version is 0 and must be an int from 1"),
    "ClaimsReference": (
        "marked as a reference if it is one",
        "marked `reference = True` and calls the encoder",
    ),
    "FitsByItsExponent": (
        "scoring parameters",
        "fit learns something else with exponent 2, though scoring_parameters says",
    ),
    "NamesNoParameter": ("scoring parameters", "names 'ratio', which is no parameter of it"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_defense_fails_with_the_sentence_that_says_how(findings_of, name):
    where, sentence = BROKEN[name]
    finding = findings_of("defense", f"broken_defenses:{name}")[where]
    assert finding.status == "FAIL"
    assert sentence in finding.message


@pytest.mark.parametrize("name", ["NoDocstring", "VersionZero", "ThresholdAlone", "TakesName"])
def test_one_broken_promise_fails_one_check(findings_of, name):
    findings = findings_of("defense", f"broken_defenses:{name}")
    assert [what for what, found in findings.items() if found.status == "FAIL"] == [BROKEN[name][0]]


@pytest.mark.parametrize("name", ["ReadsText", "TellsTheSupport", "TakesTheNetwork"])
def test_defense_that_requires_more_is_shown_more(findings_of, name):
    findings = findings_of("defense", f"broken_defenses:{name}")
    assert not failed(findings.values()), findings
    assert findings["uses what it requires"].status == "ok"


def test_requirement_that_is_never_used_is_a_warning(findings_of):
    findings = findings_of("defense", "broken_defenses:AsksForTooMuch")
    assert not failed(findings.values()), findings
    finding = findings["uses what it requires"]
    assert finding.status == "warn"
    assert "declares 'auxiliary_labels', 'gradients' in `requires`" in finding.message


def test_missing_source_and_missing_mark_are_warnings(findings_of):
    findings = findings_of("defense", "broken_defenses:Harmless")
    assert not failed(findings.values()), findings
    assert findings["docstring names a source"].status == "warn"


def test_module_that_does_not_import_fails(findings_of):
    finding = findings_of("defense", "no_such_module:Ghost")["can be loaded"]
    assert finding.status == "FAIL"
    assert "no_such_module does not import" in finding.message


def test_unknown_name_is_an_error_with_the_nearest_one(world):
    with pytest.raises(InputError, match="unknown defense 'mahalanobs'; did you mean 'mahal"):
        check("defense", "mahalanobs", world)


def test_victim_of_the_suite_is_one(world):
    """The trigger moves embeddings of the tiny victim far more than those of its clean twin."""
    images = world.test_images(60).float()
    stamped = world.trigger(text=False)(images)
    victim = world.show(registry.load("defenses", "mahalanobis")(), 1).encoder
    clean = world.clean_encoder("ssl")
    moved, moved_before = (
        float((encoder.embed(stamped) - encoder.embed(images)).norm(dim=1).mean())
        for encoder in (victim, clean)
    )
    assert moved > 1.5 * moved_before

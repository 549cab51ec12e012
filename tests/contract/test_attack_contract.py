"""`bench check attack`: every built-in passes, and who breaks a promise is told which."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import registry
from bench.configfile import ConfigFile
from bench.contract import check, failed

QUICK = ConfigFile(Path(__file__).resolve().parents[2] / "bench.yaml").config.profiles["quick"]


@pytest.mark.parametrize("name", registry.entries("attacks"))
def test_built_in_attack_keeps_its_contract(world, name):
    findings = list(check("attack", name, world, QUICK.overrides.get(name)))
    assert not failed(findings), "\n".join(finding.line() for finding in findings)


@pytest.mark.parametrize("name", ["SoundPoison", "SoundImplant"])
def test_sound_attack_of_a_third_party_passes(findings_of, name):
    findings = findings_of("attack", f"broken_attacks:{name}")
    assert not failed(findings.values()), findings


BROKEN = {
    "broken_attacks:Leaking": (
        "support is exact",
        "with transport 8bit it changes 924 pixels outside its support",
    ),
    "broken_attacks:Noisy": (
        "trigger is deterministic, image by image",
        "the same images came back different the second time",
    ),
    "broken_attacks:Careless": (
        "trigger leaves the images it is given",
        "it changed the images it was given: stamp a copy",
    ),
    "broken_attacks:Nameless": (
        "trigger survives its record",
        "NamelessTrigger.name is 'patch', which another trigger has",
    ),
    "broken_attacks:Lonely": ("at least 3 decoys of the same size", "it offers 0 look-alikes"),
    "broken_attacks:WithLargeDecoys": (
        "at least 3 decoys of the same size",
        "covers 144 pixels, the trigger 100",
    ),
    "broken_attacks:RandomImplant": (
        "deterministic under a seed",
        "two runs from one generator give different encoders: draw every random number from "
        "world.generator",
    ),
    "broken_attacks:Diverges": ("implants", "the attack diverged"),
    "broken_attacks:SpoilsShadow": (
        "leaves what it is given as it is",
        "implant changed the shadow images: work on copies",
    ),
    "broken_attacks:AnotherEncoder": (
        "encoder is finite and of the same shape",
        "the victim's embedding_dim is 32, the clean encoder's 64",
    ),
    "broken_attacks:PoisonsAlways": ("rate 0 poisons nothing", "poison_rate 0 poisons 12 images"),
    "broken_attacks:PoisonsAnyClass": (
        "poisons eligible rows of its own, each once",
        "poisoned images are not of the target class",
    ),
    "broken_attacks:TrainsPublicEncoder": (
        "leaves what it is given as it is",
        "poison changed the encoder's parameters or buffers: work on copies",
    ),
    "wayward_attacks:TouchesOthers": ("poisons", "rows that are not the attacker's"),
    "wayward_attacks:TouchesTwice": ("poisons", "or one twice"),
    "wayward_attacks:ReturnsFloats": ("poisons", "ReturnsFloats.poison must return uint8 images"),
    "wayward_attacks:ReturnsOneCaption": ("poisons", "returned 1 captions for 3 rows"),
}


@pytest.mark.parametrize("target", BROKEN)
def test_broken_attack_fails_with_the_sentence_that_says_how(findings_of, target):
    where, sentence = BROKEN[target]
    finding = findings_of("attack", target)[where]
    assert finding.status == "FAIL"
    assert sentence in finding.message

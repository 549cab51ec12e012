"""Components are found by folder and by entry point, by name, lazily."""

from __future__ import annotations

import pytest

from bench import registry
from bench.api import Attack, Defense
from bench.errors import InputError


@pytest.mark.parametrize(
    ("group", "base", "some"),
    [
        ("attacks", Attack, {"none", "badencoder"}),
        ("defenses", Defense, {"dede", "knn-distance", "mahalanobis", "isolation-forest"}),
    ],
)
def test_every_built_in_module_holds_one_component_with_a_docstring(group, base, some):
    names = set(registry.entries(group))
    assert some <= names
    for name in names:
        component = registry.load(group, name)
        assert issubclass(component, base)
        assert component.__doc__
        assert registry.summary(registry.find(group, name))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="unknown defense 'ded'; did you mean 'dede'"):
        registry.load("defenses", "ded")


def test_installed_component_is_found_through_its_entry_point(plug_in):
    plug_in("defenses", harmless="wayward_defenses:Harmless")
    assert "harmless" in registry.entries("defenses")
    assert registry.load("defenses", "harmless").__name__ == "Harmless"


def test_entry_point_may_not_take_a_built_in_name(plug_in):
    plug_in("defenses", dede="wayward_defenses:Harmless")
    with pytest.raises(InputError, match="two defenses are called 'dede'"):
        registry.entries("defenses")


def test_module_that_does_not_import_is_named(plug_in):
    plug_in("defenses", ghost="no_such_module:Ghost")
    with pytest.raises(InputError, match="no_such_module does not import"):
        registry.load("defenses", "ghost")


def test_module_that_does_not_parse_is_listed_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "half_written.py").write_text("class Half(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = registry.Entry("half-written", "defenses", "half_written")
    assert registry.summary(entry).startswith("does not import: SyntaxError")

"""How encoders are trained, by family: the recipe types, imported only when asked for."""

from __future__ import annotations

from typing import Any

FAMILIES = ("ssl", "clip")


def recipe_type(family: str) -> type[Any]:
    """:class:`SSLRecipe` or :class:`ClipRecipe`."""
    if family == "clip":
        from bench.encoders.contrastive import ClipRecipe

        return ClipRecipe
    from bench.encoders.ssl import SSLRecipe

    return SSLRecipe


def describe_recipe(recipe: Any) -> dict[str, Any]:
    """A recipe as a stage holds it: family, version, every parameter.

    An attack's own recipe type differs from its family's in defaults alone, so equal parameters
    are the same training.
    """
    family = next(name for name in FAMILIES if isinstance(recipe, recipe_type(name)))
    return {
        "name": family,
        "version": recipe_type(family).version,
        "parameters": recipe.parameters(),
    }

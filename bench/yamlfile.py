"""YAML with line numbers: every value knows where it stands, so that every error can say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bench.errors import InputError
from bench.limits import MOST_YAML_BYTES, MOST_YAML_VALUES, read_bytes

Location = tuple[str | int, ...]
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class YamlFile:
    """A parsed YAML file: ``data`` plus the line of every key and list item.

    Parameters
    ----------
    content
        The file as it was read elsewhere or earlier; None reads it.

    Raises
    ------
    InputError
        When the file is missing, is not UTF-8, has a syntax error, a duplicate key, a tag or a
        merge that plain data does not need, is not a mapping, or is larger than any experiment,
        as it stands or with its aliases written out.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path = Path(path)
        self._lines: dict[Location, int] = {}
        try:
            self.content = read_bytes(self.path, MOST_YAML_BYTES) if content is None else content
            text = self.content.decode("utf-8")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; name one with --config") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self._constructor = yaml.SafeLoader("")
            self.data: dict[str, Any] = {} if node is None else self._build(node, (), frozenset())
        except RecursionError:
            raise InputError(f"{path}:1: nested too deeply") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            raise InputError(f"{path}{line}: YAML syntax error: {error.problem}") from None
        except yaml.YAMLError as error:
            raise InputError(f"{path}: YAML syntax error: {error}") from None
        if not isinstance(self.data, dict):
            raise InputError(f"{path}:1: the file must hold a mapping of keys to values")

    def line(self, location: Location) -> int:
        """The line (from 1) of ``location`` or of its nearest enclosing key."""
        while location and location not in self._lines:
            location = location[:-1]
        return self._lines.get(location, 1)

    def error(self, location: Location, message: str) -> InputError:
        """``file:line: key.path: message``."""
        where = dotted(location)
        prefix = f"{self.path}:{self.line(location)}: "
        return InputError(prefix + (f"{where}: {message}" if where else message))

    def _build(self, node: yaml.Node, location: Location, above: frozenset[int]) -> Any:
        self._lines.setdefault(location, node.start_mark.line + 1)
        if len(self._lines) > MOST_YAML_VALUES:
            raise self.error(location, f"more than {MOST_YAML_VALUES:,} keys and values")
        if id(node) in above:
            raise self.error(location, "an alias that contains itself")
        above = above | {id(node)}
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            raise self.error(location, f"the tag {node.tag} is not plain data")
        if isinstance(node, yaml.MappingNode):
            result: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self._scalar(key_node, location)
                if not isinstance(key, str | int):
                    raise self.error(location, f"keys must be plain words, got {key!r}")
                here = (*location, key)
                self._lines[here] = key_node.start_mark.line + 1
                if key in result:
                    raise self.error(here, "this key stands twice")
                result[key] = self._build(value_node, here, above)
            return result
        if isinstance(node, yaml.SequenceNode):
            return [
                self._build(child, (*location, position), above)
                for position, child in enumerate(node.value)
            ]
        return self._scalar(node, location)

    def _scalar(self, node: yaml.Node, location: Location) -> Any:
        try:
            value = self._constructor.construct_object(node)
        except (ValueError, AttributeError, OverflowError):
            # A date of month 99, a number of thousands of digits, a tag on what it does not fit.
            shown = str(node.value)[:40]
            raise self.error(location, f"{shown!r} is no {node.tag.rpartition(':')[2]}") from None
        if isinstance(value, str) and any("\ud800" <= mark <= "\udfff" for mark in value):
            raise self.error(location, f"{value[:40]!r} holds half a character")
        if isinstance(value, str) and "\0" in value:
            raise self.error(location, f"{value[:40]!r} holds a NUL, which no name or path may")
        return value


def dotted(location: Location) -> str:
    """``("matrix", "defenses", 1, "label")`` -> ``matrix.defenses[1].label``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text

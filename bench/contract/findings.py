"""What a check says: one line each, and a sentence when something is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "FAIL", "warn", "skip", "note"]


class ContractError(Exception):
    """The contract is broken; the message is a sentence that says how and what would be right."""


class DoubtError(Exception):
    """Nothing is broken, and somebody should look at it; the message is a sentence."""


class AbsentError(Exception):
    """The check has nothing to look at in this component; the message says why."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes
    ----------
    status
        ``ok``; ``FAIL``, which alone makes the component fail; ``warn``; ``skip``; ``note``.
    check
        What was looked at, in a few words.
    message
        A sentence; empty where ``ok`` says it all.
    """

    status: Status
    check: str
    message: str = ""

    def line(self) -> str:
        """As the command line prints it."""
        return f"{self.status:<4}  {self.check}" + (f": {self.message}" if self.message else "")


def look(check: str, question: Callable[[], str | None]) -> Finding:
    """Ask one question: its answer is the message of an ``ok``, its exception another outcome."""
    try:
        return Finding("ok", check, question() or "")
    except ContractError as broken:
        return Finding("FAIL", check, str(broken))
    except DoubtError as doubtful:
        return Finding("warn", check, str(doubtful))
    except AbsentError as absent:
        return Finding("skip", check, str(absent))
    except Exception as error:
        return Finding("FAIL", check, raised(error))


def raised(error: Exception) -> str:
    """An unforeseen exception in one line."""
    message = " ".join(str(error).split()) or "no message"
    return f"it raised {type(error).__name__}: {message}"


def failed(findings: Iterable[Finding]) -> bool:
    """Whether one of the checks failed."""
    return any(finding.status == "FAIL" for finding in findings)

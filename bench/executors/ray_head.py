"""Ends a Ray run whose head has gone, in words: Ray would end it later, without."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_WITHOUT_HEAD = 45.0
"""Below the 60 after which Ray ends the driver's process itself, with status 1."""
SECONDS_TO_CONNECT = 5.0


class HeadWatch:
    """Looks every few seconds, in a thread, whether the head of a cluster still answers.

    The driver may at that time wait inside Ray, where no exception reaches it: the process is
    ended, as a kill would, and what it leaves behind is swept by the next run.

    Parameters
    ----------
    address
        ``host:port`` of the head.
    end
        Called once with a line, when nobody has answered there for as long as ``patience``.
    every, patience
        Seconds.
    """

    def __init__(
        self,
        address: str,
        end: Callable[[str], None] | None = None,
        every: float = SECONDS_BETWEEN_LOOKS,
        patience: float = SECONDS_WITHOUT_HEAD,
    ) -> None:
        self._address, self._end = address, end or _end_process
        self._every, self._patience = every, patience
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def _look(self) -> None:
        answered = time.monotonic()
        while not self._over.wait(self._every):
            if self._answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > self._patience and not self._over.is_set():
                self._end(head_is_gone(self._address))
                return

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
        except OSError:
            return False
        return True


def head_is_gone(address: str) -> str:
    """The line of a run whose head has gone."""
    return (
        f"the head of the Ray cluster at {address} is gone; what is finished is kept: run again "
        "when there is one"
    )


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether Ray's client raised this because the head no longer answers."""
    return isinstance(error, ConnectionError) or type(error).__module__.startswith("grpc.")


def _end_process(line: str) -> None:
    """Status 2, as of a cache that goes away: 1 would say that cells have failed."""
    print(f"bench: {line}", file=sys.stderr, flush=True)
    os._exit(2)

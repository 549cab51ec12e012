"""Named, disjoint roles of training images (docs/protocol.md, invariant 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import InputError


def permuted_rows(total: int, rows: Mapping[str, Any], name: str) -> Tensor:
    """The rows of one role: a slice of the seeded permutation of a training set.

    Parameters
    ----------
    rows
        ``{"seed", "start", "stop"}`` as :class:`bench.matrix.Planner` writes it, or
        ``{"all_but": {...}}`` for every other row, sorted.

    Returns
    -------
    Tensor
        int64 rows. Roles are consecutive slices of one permutation, hence disjoint.

    Raises
    ------
    InputError
        When the set is too small for the slice.
    """
    if "all_but" in rows:
        taken = permuted_rows(total, rows["all_but"], name)
        kept = torch.ones(total, dtype=torch.bool)
        kept[taken] = False
        # Sorted, so that the order of training does not tell who plays which role.
        return kept.nonzero().squeeze(1)
    if rows["stop"] > total:
        raise InputError(
            f"{name} has {total} training images, the splits ask for {rows['stop']}; lower "
            "the counts under `splits`"
        )
    order = np.random.default_rng(rows["seed"]).permutation(total)
    return torch.from_numpy(order[rows["start"] : rows["stop"]])


def check_disjoint(roles: dict[str, Tensor]) -> None:
    """Raise when two roles share a row.

    Raises
    ------
    ValueError
        Naming the two roles and how many rows they share.
    """
    seen: dict[int, str] = {}
    for role, rows in roles.items():
        values = rows.tolist()
        shared = [row for row in values if row in seen]
        if shared:
            raise ValueError(f"{role} and {seen[shared[0]]} share {len(shared)} rows")
        if len(set(values)) != len(values):
            raise ValueError(f"{role} holds a row twice")
        seen.update(dict.fromkeys(values, role))


def pick_references(rows: Tensor, labels: Tensor, target: int, count: int, name: str) -> Tensor:
    """The first ``count`` rows of the references role that carry the target label.

    Raises
    ------
    InputError
        When there are fewer.
    """
    matching = rows[labels[rows] == target]
    if len(matching) < count:
        raise InputError(
            f"{name}: {len(matching)} reference images of class {target} among "
            f"{len(rows)}, the attack needs {count}; raise splits.references"
        )
    return matching[:count]


def published_shadow_rows(seed: int, total: int, count: int) -> np.ndarray:
    """The shadow set that the published BadEncoder code draws (int64 (count,), no repeats)."""
    return np.random.RandomState(seed).choice(total, count, replace=False)

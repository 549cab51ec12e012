"""What the encoder is used for: classifiers on frozen features, and what an attack does to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from bench.component import Progress
from bench.evaluation.nearest import check_training_set

__all__ = [
    "ACCURACY_TOLERANCE",
    "ASR_MARGIN_OVER_TWIN",
    "ASR_VALID",
    "ASR_WEAK",
    "AttackSuccess",
    "FilteredRates",
    "Probe",
    "attack_success_rate",
    "clean_accuracy",
    "filtered_rates",
    "predict",
    "train_probe",
    "validity_gate",
]

ASR_VALID = 0.8
"""Attack success rate (non-target classes) from which an attack counts as valid."""
ASR_WEAK = 0.3
"""From here to :data:`ASR_VALID` an attack is weak, below it is invalid."""
ASR_MARGIN_OVER_TWIN = 0.5
"""By how much the victim's success rate must exceed the twin's on the same triggered images."""
ACCURACY_TOLERANCE = 0.05
"""How far the victim's clean accuracy may be from the twin's."""

_ROUNDING = 1e-9  # 0.90 - 0.85 is 0.05000000000000004
_PREDICT_BATCH = 8192


class Probe(nn.Module):
    """The downstream classifier of BadEncoder and DRUPE: fc1-ReLU-dropout-fc2-ReLU-fc3.

    It L2-normalises its input, so features may be given raw or normalised.

    Parameters
    ----------
    dimension
        Embedding dimension D.
    classes
        Number of classes C.
    hidden
        Widths of the two hidden layers.
    dropout
        Dropout rate after the first hidden layer.
    """

    def __init__(self, dimension: int, classes: int, hidden: tuple[int, int], dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(dimension, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], classes)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """float32 (N, D) -> logits (N, C)."""
        hidden = self.dropout2(functional.relu(self.fc1(functional.normalize(features, dim=1))))
        return self.fc3(functional.relu(self.fc2(hidden)))


def train_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    generator: torch.Generator,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    hidden: tuple[int, int] = (512, 256),
    dropout: float = 0.5,
    progress: Progress | None = None,
) -> nn.Module:
    """Train the MLP probe on frozen features with Adam and cross-entropy.

    Deterministic given ``generator``: it draws the batch order and the seed of initialisation and
    dropout. The global random state is left as it was. The published code runs 500 epochs at batch
    64 and learning rate 1e-4 without shuffling; here every epoch is shuffled.

    Parameters
    ----------
    features
        float32 (N, D) on the device to train on; normalised by the probe.
    labels
        int64 (N,) in [0, ``classes``).
    generator
        On the CPU: the only source of randomness.
    progress
        Watches the steps (one per batch) and may cut them short.

    Returns
    -------
    Probe
        In eval mode, frozen, on the device of ``features``.

    Raises
    ------
    ValueError
        When features and labels do not match or a label is out of range.
    """
    check_training_set(features, labels, classes)
    features = features.detach()
    labels = labels.to(features.device)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    steps: Iterator[Tensor] = _shuffled_batches(len(features), epochs, batch_size, generator)
    if progress is not None:
        total = epochs * math.ceil(len(features) / batch_size)
        steps = progress.track(steps, "probe", total)
    with torch.enable_grad(), _seeded(seed, features.device):
        # Created on the CPU, so that the initialisation does not depend on the device.
        probe = Probe(features.shape[1], classes, hidden, dropout).to(features.device).train()
        optimizer = torch.optim.Adam(probe.parameters(), lr=learning_rate, fused=True)
        for rows in steps:
            rows = rows.to(features.device)
            loss = functional.cross_entropy(probe(features[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return probe.eval().requires_grad_(False)


@torch.inference_mode()
def predict(probe: nn.Module, features: Tensor) -> Tensor:
    """Classes that ``probe`` gives to ``features`` (N, D): int64 (N,) on the CPU."""
    device = next(probe.parameters()).device
    batches = features.split(_PREDICT_BATCH)
    return torch.cat([probe(batch.to(device)).argmax(1) for batch in batches]).cpu()


class AttackSuccess(NamedTuple):
    """Share of triggered images classified as the target, in [0, 1].

    Attributes
    ----------
    non_target
        Over images of the other classes; nan when there are none.
    all
        Over all images, as the published code counts: right predictions of the target class help.
    """

    non_target: float
    all: float


def attack_success_rate(predictions: ArrayLike, labels: ArrayLike, target: int) -> AttackSuccess:
    """Success of an attack from predictions on triggered images, int (N,), and true labels (N,)."""
    predicted, true = _vector(predictions), _vector(labels)
    hit = predicted == target
    return AttackSuccess(_share(hit[true != target]), _share(hit))


def clean_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Share of right predictions, in [0, 1]; both int (N,)."""
    return _share(_vector(predictions) == _vector(labels))


class FilteredRates(NamedTuple):
    """What is left of accuracy and attack when flagged images are turned away.

    Attributes
    ----------
    ca_filtered
        Clean images that pass and are classified right, over all clean images: a false alarm costs
        accuracy.
    asr_filtered
        Triggered non-target images that pass and are classified as the target, over all of them.
    ca_passing
        Accuracy over the clean images that pass (the published reading); nan when none passes.
    """

    ca_filtered: float
    asr_filtered: float
    ca_passing: float


def filtered_rates(
    threshold: float,
    target: int,
    *,
    clean_scores: ArrayLike,
    clean_predictions: ArrayLike,
    clean_labels: ArrayLike,
    triggered_scores: ArrayLike,
    triggered_predictions: ArrayLike,
    triggered_labels: ArrayLike,
) -> FilteredRates:
    """Downstream rates behind a filter that turns away scores strictly above ``threshold``.

    Parameters
    ----------
    threshold
        From :func:`bench.evaluation.detection.calibrated_threshold`.
    target
        Target class.
    clean_scores, clean_predictions, clean_labels
        One entry per clean test image, all classes.
    triggered_scores, triggered_predictions, triggered_labels
        One entry per triggered image, all classes; those of the target class are left out here.
    """
    passes = _vector(clean_scores) <= threshold
    right = _vector(clean_predictions) == _vector(clean_labels)
    taken = (_vector(triggered_scores) <= threshold) & (_vector(triggered_predictions) == target)
    return FilteredRates(
        ca_filtered=_share(passes & right),
        asr_filtered=_share(taken[_vector(triggered_labels) != target]),
        ca_passing=_share(right[passes]),
    )


def validity_gate(
    success: float,
    success_twin: float | None,
    accuracy: float,
    accuracy_twin: float | None,
) -> tuple[str, str]:
    """Is this an attack at all? Decided on the main probe, non-target classes, rates in [0, 1].

    ``ok`` needs an attack success rate of :data:`ASR_VALID`, :data:`ASR_MARGIN_OVER_TWIN` above the
    twin's, and a clean accuracy within :data:`ACCURACY_TOLERANCE` of the twin's, in either
    direction: an encoder that became much better is no longer comparable with its twin.
    From :data:`ASR_WEAK` to below :data:`ASR_VALID` the answer is ``attack-weak`` whatever the
    rest, otherwise ``attack-invalid``. Bounds belong to the better side. A victim without a twin
    (None) that reaches :data:`ASR_VALID` is ``uncontrolled``: nobody can say what the trigger
    alone does.

    Returns
    -------
    status, reason
        ``ok`` with an empty reason, or the status with sentences that say every condition missed.

    Raises
    ------
    ValueError
        When a rate is not in [0, 1].
    """
    for name, rate in (
        ("attack success rate", success),
        ("attack success rate of the twin", success_twin),
        ("clean accuracy", accuracy),
        ("clean accuracy of the twin", accuracy_twin),
    ):
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {rate}")
    effective = success >= ASR_VALID - _ROUNDING
    reasons = []
    if not effective:
        reasons.append(f"The attack success rate is {success:.3f}, below {ASR_VALID}.")
    if success_twin is None or accuracy_twin is None:
        reasons.append("Uncontrolled: there is no clean twin to compare with.")
        status = "uncontrolled"
    else:
        reasons += _against_twin(success, success_twin, accuracy, accuracy_twin)
        status = "attack-invalid"
    if not reasons:
        return "ok", ""
    if not effective:
        status = "attack-weak" if success >= ASR_WEAK - _ROUNDING else "attack-invalid"
    return status, " ".join(reasons)


def _against_twin(
    success: float, success_twin: float, accuracy: float, accuracy_twin: float
) -> list[str]:
    """The gate's conditions on the clean twin that are missed."""
    reasons = []
    if success - success_twin < ASR_MARGIN_OVER_TWIN - _ROUNDING:
        reasons.append(
            f"The attack success rate {success:.3f} is less than {ASR_MARGIN_OVER_TWIN} above "
            f"the {success_twin:.3f} of the clean twin."
        )
    if abs(accuracy - accuracy_twin) > ACCURACY_TOLERANCE + _ROUNDING:
        reasons.append(
            f"The clean accuracy {accuracy:.3f} is more than {ACCURACY_TOLERANCE} from the "
            f"{accuracy_twin:.3f} of the clean twin."
        )
    return reasons


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators that dropout draws from, and put their states back afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _shuffled_batches(
    n: int, epochs: int, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).split(batch_size)


def _vector(values: ArrayLike) -> NDArray:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values)


def _share(chosen: NDArray[np.bool_]) -> float:
    return float(chosen.mean()) if len(chosen) else math.nan

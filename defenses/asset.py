"""ASSET: a network taught to tell what stands out of a suspicious pool from clean images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import PrivateAttr, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from bench.api import DefenderView, Defense, Encoder, Field, ImageSet, Requirement
from defenses._asset_labels import NeighbourLabels
from defenses._asset_networks import NetworkKind, detector_network
from defenses._asset_separation import FORMULAS, Sides, Start, outlying, separate, threshold

Positive = Annotated[float, Field(gt=0)]
VARIANCE_LOGITS = 10
LEAST_FOUND = 2
"""Suspicious images for an ascent."""
EMBEDDED_AT_ONCE = 1000
SCORED_PIXELS = 2**20
"""Pixels that go through M at once: bounds memory at 224 px as at 32 px."""
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PORT: dict[str, Any] = {
    "objective": "label-assisted",
    "features": "pixels",
    "normalise": True,
    "sides": "both",
    "hidden_size": 512,
    "inner_iterations": 10,
    "separation_start": "random",
    "update": "alternating",
    "batch_size": 128,
    "epochs": 10,
}
"""What ``variant: dede-port`` sets where nothing else is asked for."""


class Asset(Defense):
    """Sample detector after Pan et al., "ASSET: Robust Backdoor Data Detection Across a
    Multiplicity of Deep Learning Paradigms" (USENIX Security 2023).

    The defender has a small clean base set and an unlabelled pool, some of which carries the
    trigger. For each batch of the pool, with a draw from the base set:

    1. *inner separation*: a new small network learns for some iterations to say 1 on the victim's
       embeddings of the pool's batch and 0 on those of the base batch; the pool's images whose
       adjusted outlyingness among its outputs exceeds ``outlyingness`` are the suspicious P;
    2. *descent*: a step of M, a network on images, lowers the mean variance of the logits M(b) on
       the base batch;
    3. *ascent*: a step raises the loss of M on P. Fewer than two suspicious images skip it.

    M ends up flat on clean images and loud on what looks like P.

    **The default objective, ``variance``, is our re-derivation and needs no label.** The ascent
    raises the variance of ten logits, clipped to +- ``logit_limit``, and the score V(x) is the
    unbiased variance of M(x). The published ascent raises the cross-entropy with the labels of a
    supervised training set, which images for self-supervised training do not have; the paper's own
    variant for such training is not in its code.

    **``objective: label-assisted``** is the published one: ascent and score are the cross-entropy
    of M(x) with a label. The label is that of most of the ``neighbours`` nearest *auxiliary* images
    in the victim's embedding, so it requires ``auxiliary_labels``. A triggered image gets the
    label that the backdoor gives it, mostly the target class: this mimics the published use of the
    attack's target without telling the truth. Here M has as many logits as there are classes.

    **``variant: dede-port``** computes what the comparison script that came with DeDe (CVPR 2025)
    computes for BadEncoder and DRUPE, in ten passes over the pool where it makes them over all
    50,000 training images (its scripts for CTRL and CLIP separate the victim's features and are not
    this one); a parameter that is given keeps its value, and a lone suspicious image is not enough
    for an ascent, where there it was. Defects that it keeps: the inner separation
    sees raw pixels, so that the victim is never probed (except here for labels); outliers on both
    sides are suspicious, those too like the base set included; ten inner iterations, of a width of
    512; batches of 128. Defects that cannot be kept: names that are not defined, for which the
    script does not run on these attacks; true labels for clean images and the target's for
    triggered ones; training images inverted by a normalised mask; triggered images resized
    otherwise than clean ones; a random patch in the place of BadCLIP's; and at 224 pixels batches
    of 4 and a network of the wrong size, whose error was swallowed, so that no ascent ever ran.

    Further departures from the published code:

    - Embeddings are computed once. The notebook computes them in each of 200 inner steps, with
      gradients, and gets the same separation network.
    - The separation network starts even (``separation_start``). From a random start an embedding
      that is far too long, as BadEncoder's triggered ones are, saturates the sigmoid on a side
      that the initialisation chooses, and training cannot bring it back: in eight batches of a
      CIFAR-10 victim 21 of 35 triggered images were found on the pool's side, from an even start
      all 35.
    - Descent and ascent are one step (``update: joint``). As ``alternating`` steps of two Adams
      they undo each other's: with P given as it truly was, 100 steps of the small network reached
      an AUROC of 0.75 on that victim, joint ones 0.998.
    - Only the upper side is suspicious (``sides``).
    - Every image is scored in evaluation mode. The notebook scores the poison with the batch
      statistics of poison, and clean images without.
    - The pool is cut into batches of nearly equal size, in a new order in each epoch.

    Attributes
    ----------
    features
        What is separated: the victim's ``encoder`` embeddings or, an ablation in which the victim
        is not probed, the ``pixels``.
    normalise
        Whether M, and pixels as features, are images normalised with the constants of CIFAR, as in
        the port, or as they are, in [0, 1].
    sides
        Which outliers of the inner separation are suspicious: those on the pool's side
        (``upper``) or ``both``, as published.
    hidden_size, inner_iterations, separation_learning_rate, separation_start
        The inner separation network; published: 128, 100, 1e-4 and ``random``.
    outlyingness
        Above which an image is an outlier; the whisker of the adjusted boxplot is at 1.
    network
        M: the published ``resnet18``, or ``small``.
    update
        ``joint``: one step on the difference of both losses, base batch and P in one pass.
        ``alternating``, as published: a pass and a step for each, by two Adams.
    epochs, batch_size, learning_rate
        Passes over the pool, images per batch (of the base set at most as many as it has) and rate
        of M. Published: 98 batches of 512 at 1e-4, as are 5 passes over 10,000 images; 5 % of the
        published pool are triggered, so that smaller batches or pools with fewer may hold no two.
    when_none_found
        When no batch had two suspicious images, M has learnt nothing to look for. ``fail``: fit
        raises and the cell fails, also when that happens on its placebo. ``flat``: every image
        scores 0, nothing being suspicious, which is an AUROC of 0.5.
    """

    variant: Literal["asset", "dede-port"] = "asset"
    objective: Literal["variance", "label-assisted"] = "variance"
    features: Literal["encoder", "pixels"] = "encoder"
    sides: Sides = "upper"
    hidden_size: int = Field(128, ge=1)
    inner_iterations: int = Field(100, ge=1)
    separation_learning_rate: Positive = 1e-4
    separation_start: Start = "even"
    outlyingness: Positive = 2.0
    network: NetworkKind = "resnet18"
    normalise: bool = False
    update: Literal["joint", "alternating"] = "joint"
    epochs: int = Field(5, ge=1)
    batch_size: int = Field(512, ge=2)
    learning_rate: Positive = 1e-4
    logit_limit: Positive = 10.0
    neighbours: int = Field(20, ge=1)
    when_none_found: Literal["fail", "flat"] = "fail"

    _network: nn.Module | None = PrivateAttr(default=None)
    _encoder: Encoder = PrivateAttr()
    _labels: NeighbourLabels | None = PrivateAttr(default=None)
    _found: Tensor = PrivateAttr()
    _flagged: Tensor = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_port(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("variant") == "dede-port":
            return {**PORT, **given}
        return given

    @property
    def requires(self) -> frozenset[Requirement]:
        """The pool, and labels for the objective that needs them."""
        if self.objective == "label-assisted":
            return frozenset({"suspicious", "auxiliary_labels"})
        return frozenset({"suspicious"})

    @property
    def found(self) -> Tensor:
        """int64 (steps,): how many images of each batch of the pool were suspicious, |P|."""
        self._fitted()
        return self._found

    @property
    def flagged(self) -> dict[str, int]:
        """How many images of the pool score above the threshold of either formula."""
        self._fitted()
        return dict(zip(FORMULAS, self._flagged.tolist(), strict=True))

    def fit(self, view: DefenderView) -> None:
        """Train M on the pool and the base set.

        Raises
        ------
        ValueError
            When the base set has fewer than two images or, for the labels, the auxiliary set is
            unlabelled or has fewer than ``neighbours``.
        RuntimeError
            When no batch held two suspicious images, under ``when_none_found: fail``. A run that
            was cut short is let through.
        """
        if len(view.base) < 2:
            raise ValueError(f"the base set has {len(view.base)} images; ASSET needs two at least")
        seed = int(torch.randint(2**62, (), generator=view.generator))
        labels = None
        if self.objective == "label-assisted":
            labels = NeighbourLabels.of(view.auxiliary, view.embed_auxiliary(), self.neighbours)
        self._adopt(view.encoder, labels, seed)
        embeddings = None
        if labels is not None or self.features == "encoder":
            embeddings = _embedded(view.suspicious, view.encoder)
        pool_labels = None if labels is None else labels(embeddings)
        counts = self._train(view, embeddings, pool_labels)
        self._found = torch.tensor(counts, dtype=torch.int64)
        whole = len(counts) == self._steps(view.suspicious)
        if whole and not self._learnt and self.when_none_found == "fail":
            raise RuntimeError(
                "no suspicious samples found: no batch of the pool had two; a larger batch_size, a "
                "lower outlyingness or when_none_found: flat would give a score"
            )
        scores = torch.zeros(len(view.suspicious))
        if self._learnt:
            scores = self._scores(view.suspicious.float, len(scores), pool_labels)
        flagged = [int((scores > threshold(scores, formula)).sum()) for formula in FORMULAS]
        self._flagged = torch.tensor(flagged)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,), >= 0: variance of the logits, or cross-entropy with the neighbours' label;
        0 when nothing was found to learn from."""
        self._fitted()
        if not self._learnt:
            return torch.zeros(len(images))
        labels = None if self._labels is None else self._labels(self._encoder.embed(images))
        return self._scores(images.__getitem__, len(images), labels)

    def state(self) -> dict[str, Tensor]:
        """M's tensors, |P| per step, the numbers flagged and, if used, the labelled embeddings."""
        network = self._fitted().state_dict()
        tensors = {f"network.{key}": value.cpu().contiguous() for key, value in network.items()}
        tensors |= {"found": self._found, "flagged": self._flagged}
        if self._labels is not None:
            tensors |= {"bank": self._labels.bank.cpu(), "labels": self._labels.labels.cpu()}
        return tensors

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        labels, device = None, view.encoder.device
        if self.objective == "label-assisted":
            labels = NeighbourLabels(
                state["bank"].to(device), state["labels"].to(device), self.neighbours
            )
        self._adopt(view.encoder, labels, 0)
        prefix = "network."
        self._fitted().load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
        self._found, self._flagged = state["found"], state["flagged"]

    def _adopt(self, encoder: Encoder, labels: NeighbourLabels | None, seed: int) -> None:
        logits = VARIANCE_LOGITS if labels is None else labels.classes
        self._network = detector_network(self.network, logits, seed).to(encoder.device).eval()
        self._encoder, self._labels = encoder, labels

    def _train(
        self, view: DefenderView, embeddings: Tensor | None, labels: Tensor | None
    ) -> list[int]:
        """The outer loop (section 4; notebook cell 8); |P| of every step that was taken."""
        pool, base, network = view.suspicious, view.base, self._fitted().train()
        probed = self.features == "encoder"
        of_base = self._features(base, _embedded(base, view.encoder) if probed else None)
        of_pool = self._features(pool, embeddings)
        optimizers = [
            torch.optim.Adam(network.parameters(), self.learning_rate, fused=True) for _ in "12"
        ]
        total, counts = self._steps(pool), []
        batches = _batches(len(pool), len(base), self.batch_size, view.generator)
        for _ in view.progress.track(range(total), "asset", total=total):
            rows, base_rows = next(batches)
            outputs = separate(
                of_pool(rows),
                of_base(base_rows),
                int(torch.randint(2**62, (), generator=view.generator)),
                hidden=self.hidden_size,
                iterations=self.inner_iterations,
                learning_rate=self.separation_learning_rate,
                start=self.separation_start,
            )
            found = rows[outlying(outputs, self.outlyingness, self.sides)]
            counts.append(len(found))
            found = found if len(found) >= LEAST_FOUND else found[:0]
            self._offset(
                network,
                optimizers,
                self._shown(base.float(base_rows)),
                self._shown(pool.float(found)),
                None if labels is None else labels[found],
            )
        network.eval()
        return counts

    def _offset(
        self,
        network: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        base: Tensor,
        found: Tensor,
        labels: Tensor | None,
    ) -> None:
        """Lower the variance on ``base`` and raise the loss on ``found``, if there is any."""
        if not len(found):
            _step(optimizers[0], _variance(network(base)))
        elif self.update == "joint":
            logits = network(torch.cat([base, found]))
            quiet, loud = logits[: len(base)], logits[len(base) :]
            _step(optimizers[0], _variance(quiet) - self._loudness(loud, labels))
        else:
            _step(optimizers[0], _variance(network(base)))
            _step(optimizers[1], -self._loudness(network(found), labels))

    def _loudness(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        """What the ascent raises, a scalar."""
        if labels is not None:
            return F.cross_entropy(logits, labels)
        return _variance(logits.clamp(-self.logit_limit, self.logit_limit))

    def _features(self, images: ImageSet, embeddings: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Rows -> what the inner separation sees of them, float32 (B, D)."""
        if self.features == "encoder":
            return embeddings.__getitem__
        return lambda rows: self._shown(images.float(rows)).flatten(1)

    @torch.inference_mode()
    def _scores(
        self, images: Callable[[slice], Tensor], count: int, labels: Tensor | None
    ) -> Tensor:
        """float32 (``count``,) on the CPU, in parts of ``images``."""
        network, size = self._fitted(), self._encoder.image_size
        at_once = max(1, SCORED_PIXELS // size**2)
        scores = []
        for start in range(0, count, at_once):
            part = slice(start, start + at_once)
            logits = network(self._shown(images(part).to(self._encoder.device)))
            if labels is None:
                scores.append(logits.var(dim=1))
            else:
                scores.append(F.cross_entropy(logits, labels[part], reduction="none"))
        return torch.cat(scores).cpu()

    def _shown(self, images: Tensor) -> Tensor:
        """Images as M sees them."""
        if not self.normalise:
            return images
        mean, std = (
            torch.tensor(values, device=images.device).view(1, 3, 1, 1)
            for values in (CIFAR_MEAN, CIFAR_STD)
        )
        return (images - mean) / std

    def _steps(self, pool: ImageSet) -> int:
        return self.epochs * _batches_per_epoch(len(pool), self.batch_size)

    @property
    def _learnt(self) -> bool:
        """Whether the ascent ever ran."""
        return bool((self._found >= LEAST_FOUND).any())

    def _fitted(self) -> nn.Module:
        if self._network is None:
            raise RuntimeError("Asset has not been fitted: call fit or load_state first")
        return self._network


def _embedded(images: ImageSet, encoder: Encoder) -> Tensor:
    """float32 (N, D): every image once."""
    return torch.cat([encoder.embed(part) for part in images.batches(EMBEDDED_AT_ONCE)])


def _variance(logits: Tensor) -> Tensor:
    """Mean over images of the unbiased variance over logits."""
    return logits.var(dim=1).mean()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _batches_per_epoch(count: int, size: int) -> int:
    return -(-count // size)


def _batches(
    pool: int, base: int, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers of the pool, all of it in each epoch in batches of nearly equal size, each with
    a draw from the base set."""
    while True:
        order = torch.randperm(pool, generator=generator)
        for rows in order.tensor_split(_batches_per_epoch(pool, size)):
            yield rows, torch.randperm(base, generator=generator)[:size]

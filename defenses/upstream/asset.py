"""ASSET's separation by the code of its authors (Pan et al., USENIX Security 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

from bench.api import DefenderView, Defense, Encoder, Field, ImageSet, Requirement
from bench.encoders.weights import load_strictly
from bench.upstream.component import UpstreamComponent
from bench.upstream.formats import write_images
from bench.upstream.job import UpstreamError, UpstreamJob
from defenses._asset_labels import NeighbourLabels
from defenses._asset_networks import detector_network
from defenses.upstream._lending import write_encoder

IMAGE_SIZE = 32
AT_ONCE = 1024
COMPARED = 64
"""Scores of the pool that both processes compute."""
PUBLISHED = {"batch_size": 512, "inner_iterations": 100, "base_images": 1000}
PUBLISHED_STEPS = 98
"""One epoch of the notebook's 50,000 images."""


class UpstreamAsset(UpstreamComponent, Defense):
    """The loop of ``ASSET_demo.ipynb``, executed from the notebook with its own networks, losses,
    optimisers and outlyingness, on the defender's encoder, pool and base set. Published values are
    the defaults; learning rates (1e-4 each) and the two-sided cut of 2 are fixed in it.

    - Its objective needs labels, which a pool for self-supervised training lacks: those of the
      nearest auxiliary images in the victim's embedding stand in, as for ``label-assisted`` of
      the native entry.
    - What is separated are the encoder's embeddings, in train mode, as the notebook has it (batch
      norm by the statistics of the batch); it takes a classifier's feature map, 8192 numbers.
    - Test images are scored by cross-entropy with such a label under the trained detector in
      evaluation mode. The notebook's ``get_result`` scores poison with the statistics of a batch of
      poison and clean images without (docs/upstream-audit.md); here it scores the pool, none of
      which it is told to be poison.
    - A batch without a suspicious image ends the notebook, and with ``fail`` the cell.
    - One image less is given where the last batch would have a single one.
    - The pool is the protocol's, where the notebook has 50,000 images and makes 98 steps: of a pool
      of 10,000 ``epochs: 5`` makes as many.

    Attributes
    ----------
    epochs, batch_size, inner_iterations
        Of the outer loop, and of the separation network in each of its steps.
    base_images
        How many of the clean base set are used, at most.
    neighbours
        How many auxiliary images vote for a label.
    when_none_found
        ``fail``, as published; ``skip`` leaves out the ascent of batches without a suspicious
        image, and fails when no batch had any; ``flat`` does the same and, when no batch had any,
        gives every image the score 0, as the native defense does.
    """

    version: ClassVar[int] = 2
    repository: ClassVar[str] = "ASSET"
    imports: ClassVar[tuple[str, ...]] = ("cv2",)
    requires: ClassVar[frozenset[Requirement]] = frozenset(
        {"suspicious", "auxiliary_labels", "gradients", "network"}
    )

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(PUBLISHED["batch_size"], ge=2)
    inner_iterations: int = Field(PUBLISHED["inner_iterations"], ge=1)
    base_images: int = Field(PUBLISHED["base_images"], ge=2)
    neighbours: int = Field(20, ge=1)
    when_none_found: Literal["fail", "skip", "flat"] = "fail"

    _network: nn.Module | None = PrivateAttr(default=None)
    _encoder: Encoder = PrivateAttr()
    _labels: NeighbourLabels = PrivateAttr()
    _figures: dict[str, Tensor] = PrivateAttr()

    @property
    def found(self) -> Tensor:
        """int64 (steps,): how many images of each batch of the pool were suspicious, |P|."""
        self._fitted()
        return self._figures["found"]

    @property
    def flagged(self) -> int:
        """How many images of the pool score at least the published threshold."""
        self._fitted()
        return int(self._figures["flagged"])

    def reduced(self, images: Mapping[str, int]) -> str:
        parts = []
        steps = self.epochs * math.ceil(self.given(images["suspicious"]) / self.batch_size)
        if steps < PUBLISHED_STEPS:
            parts.append(f"{steps} of {PUBLISHED_STEPS} steps")
        if self.batch_size < PUBLISHED["batch_size"]:
            parts.append(f"batches of {self.batch_size} instead of {PUBLISHED['batch_size']}")
        if self.inner_iterations < PUBLISHED["inner_iterations"]:
            iterations = PUBLISHED["inner_iterations"]
            parts.append(f"{self.inner_iterations} of {iterations} inner iterations")
        base = min(self.base_images, images["base"])
        if base < PUBLISHED["base_images"]:
            parts.append(f"{base} of {PUBLISHED['base_images']:,} base images")
        return ", ".join(parts)

    def check(self, image_size: int) -> None:
        """Refuse other sizes than the detector network's.

        Raises
        ------
        ValueError
        """
        if image_size != IMAGE_SIZE:
            raise ValueError(f"ASSET's detector takes {IMAGE_SIZE}-pixel images, not {image_size}")

    def fit(self, view: DefenderView) -> None:
        """Train the detector in the authors' process.

        Raises
        ------
        ValueError
            When the images have another size, the base set or the pool has fewer than two images,
            or the auxiliary set is unlabelled or has fewer than ``neighbours``.
        RuntimeError
            When no batch held a suspicious image, under ``when_none_found: skip``.
        UpstreamError
            When the trained detector scores the pool otherwise here than in their process, or,
            with the words ``no suspicious samples found``, under ``fail`` when a batch held none.
        """
        self.check(view.encoder.image_size)
        pool, base = self._pool(view.suspicious), self._base(view)
        labels = NeighbourLabels.of(view.auxiliary, view.embed_auxiliary(), self.neighbours)
        voted = torch.cat([labels(view.encoder.embed(part)) for part in pool.batches(AT_ONCE)])
        with self.job(view.encoder.device) as job:
            write_encoder(job.inputs / "encoder.safetensors", view.encoder)
            write_images(job.inputs / "pool.npz", pool.uint8(), voted)
            write_images(job.inputs / "base.npz", base.uint8())
            job.run(self._told(labels, view))
            tensors, figures = _results(job)
        if self.when_none_found != "flat" and not (figures["found"] > 0).any():
            raise RuntimeError("no suspicious samples found")
        self._adopt(tensors, labels, figures, view.encoder)
        theirs = figures["scores"][:COMPARED]
        ours = self._scores(pool.float(slice(0, COMPARED)), voted[:COMPARED])
        # Far below what tells one image from another, and above what rounding makes of a sum.
        if not torch.allclose(ours, theirs, rtol=1e-5, atol=0.01 * float(theirs.std())):
            raise UpstreamError("ASSET's detector scores otherwise here than in its own process")

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,), >= 0: cross-entropy with the neighbours' label; 0 when nothing was found to
        learn from."""
        self._fitted()
        if not (self.found > 0).any():
            return torch.zeros(len(images))
        labels = self._labels(self._encoder.embed(images))
        return self._scores(images, labels)

    def state(self) -> dict[str, Tensor]:
        """The detector's tensors, the labelled embeddings, |P| per step and the number flagged."""
        network = self._fitted().state_dict()
        tensors = {f"network.{key}": value.cpu().contiguous() for key, value in network.items()}
        labelled = {"bank": self._labels.bank.cpu(), "labels": self._labels.labels.cpu()}
        return {**tensors, **labelled, **self._figures}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        device, prefix = view.encoder.device, "network."
        labels = NeighbourLabels(
            state["bank"].to(device), state["labels"].to(device), self.neighbours
        )
        tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        figures = {name: state[name] for name in ("found", "flagged")}
        self._adopt(tensors, labels, figures, view.encoder)

    def _pool(self, images: ImageSet) -> ImageSet:
        """The first images of the suspicious pool, which comes in a seeded order."""
        count = self.given(len(images))
        if count > self.batch_size and count % self.batch_size == 1:
            count -= 1
        if count < 2:
            raise ValueError(f"{images.name}: ASSET needs two images at least, got {count}")
        return images.select(torch.arange(count))

    def _base(self, view: DefenderView) -> ImageSet:
        order = torch.randperm(len(view.base), generator=view.generator)[: self.base_images]
        if len(order) < 2:
            raise ValueError(f"the base set has {len(order)} images; ASSET needs two at least")
        return view.base.select(order)

    def _told(self, labels: NeighbourLabels, view: DefenderView) -> dict[str, Any]:
        """The driver's parameters."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "inner_iterations": self.inner_iterations,
            "when_none_found": self.when_none_found,
            "classes": labels.classes,
            "features": view.encoder.embedding_dim,
            "seed": int(torch.randint(2**31, (), generator=view.generator)),
        }

    def _adopt(
        self,
        tensors: dict[str, Tensor],
        labels: NeighbourLabels,
        figures: dict[str, Tensor],
        encoder: Encoder,
    ) -> None:
        network = detector_network("resnet18", labels.classes, 0)
        load_strictly(network, tensors, "ASSET's detector")
        self._network = network.to(encoder.device).eval()
        self._encoder, self._labels = encoder, labels
        self._figures = {name: figures[name] for name in ("found", "flagged")}

    @torch.inference_mode()
    def _scores(self, images: Tensor, labels: Tensor) -> Tensor:
        network, device = self._fitted(), self._encoder.device
        parts = zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
        return torch.cat(
            [F.cross_entropy(network(x.to(device)), y, reduction="none") for x, y in parts]
        ).cpu()

    def _fitted(self) -> nn.Module:
        if self._network is None:
            raise RuntimeError("UpstreamAsset has not been fitted: call fit or load_state first")
        return self._network


def _results(job: UpstreamJob) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The detector under our network's names, and figures."""
    names = {"linear": "fc", "shortcut": "downsample"}
    tensors = {
        ".".join(names.get(part, part) for part in key.split(".")): value
        for key, value in job.tensors("detector.safetensors").items()
    }
    arrays = job.arrays("figures.npz")
    flagged = int((arrays["scores"] >= arrays["threshold"]).sum())
    return tensors, {
        "found": torch.from_numpy(arrays["found"].astype(np.int64)),
        "scores": torch.from_numpy(arrays["scores"]),
        "flagged": torch.tensor([flagged]),
    }

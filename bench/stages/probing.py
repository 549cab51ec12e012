"""Stages that read classes out of encoders: probe, raw pixels; and the reader they serve."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.api import Trigger
from bench.data.imageset import ImageSet
from bench.data.splits import permuted_rows
from bench.evaluation import downstream as metrics
from bench.evaluation.nearest import knn_predict, raw_pixel_knn
from bench.evaluation.zero_shot import class_embeddings, train_linear_probe, zero_shot_predict
from bench.graph import Stage
from bench.workspace import Workspace, write_json

BATCH = 1000


def probe_images(stage: Stage, workspace: Workspace) -> ImageSet:
    """The labelled images that a probe (and the kNN bank) learns from; where their number is
    bounded, drawn by the seed of the splits, since files may lie by class."""
    train = workspace.images(stage.inputs["train"])
    wanted = stage.spec["train"]
    rows = permuted_rows(len(train), wanted, train.name)
    most = stage.spec["probe"]["max_train_images"]
    if most is not None and most < len(rows):
        generator = torch.Generator().manual_seed(wanted["all_but"]["seed"])
        rows = rows[torch.randperm(len(rows), generator=generator)[:most].sort().values]
    return train.select(rows)


def probe_features(
    encoder: Stage, images: ImageSet, train_key: str, workspace: Workspace
) -> Tensor:
    what = ("probe", train_key, hash(images.rows.numpy().tobytes()))
    return workspace.embeddings(encoder, what, lambda: images.batches(BATCH))[0]


def probe(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Train what reads classes out of frozen features of the downstream training set.

    ``mlp``: the MLP probe. ``linear``: logistic regression. ``zero-shot``: nothing is trained; the
    text embeddings of the classes are computed once, here.
    """
    images = probe_images(stage, workspace)
    features = probe_features(stage.inputs["encoder"], images, stage.inputs["train"].key, workspace)
    settings, classes = stage.spec["probe"], len(images.class_names)
    tensors: dict[str, Tensor] = {}
    for head in stage.spec["heads"]:
        if head == "mlp":
            trained: nn.Module = metrics.train_probe(
                features,
                images.labels,
                classes,
                generator=workspace.generator(stage),
                epochs=settings["epochs"],
                batch_size=settings["batch_size"],
                learning_rate=settings["learning_rate"],
                progress=workspace.progress,
            )
            found = trained.state_dict()
        elif head == "linear":
            found = train_linear_probe(features, images.labels, classes).state_dict()
        else:
            text = workspace.encoder(stage.inputs["encoder"]).text
            if text is None:
                raise ValueError("zero-shot classification needs a text tower")
            found = {"classes": class_embeddings(text, images.class_names)}
        tensors |= {f"{head}.{name}": value.cpu() for name, value in found.items()}
    save_file(tensors, folder / "probe.safetensors")
    write_json(folder / "probe.json", {"dimension": features.shape[1], "classes": classes})


def pixels(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """kNN on raw pixels: what the data gives away without any encoder."""
    bank = probe_images(stage, workspace)
    test = evaluation_images(stage, workspace)
    predictions = raw_pixel_knn(
        test,
        bank,
        len(bank.class_names),
        k=stage.spec["probe"]["neighbours"],
        temperature=stage.spec["probe"]["temperature"],
        device=workspace.device,
    )
    write_json(
        folder / "metrics.json",
        {"knn_accuracy": metrics.clean_accuracy(predictions, test.labels)},
    )


def evaluation_images(stage: Stage, workspace: Workspace) -> ImageSet:
    """The test set of the cell, or a fixed random draw of ``test_images`` of it."""
    test = workspace.images(stage.inputs["test"])
    limit = stage.spec["test_images"]
    if limit is None or limit >= len(test):
        return test
    rows = permuted_rows(len(test), {"seed": 0, "start": 0, "stop": limit}, test.name)
    return test.select(rows.sort().values)


class Reader:
    """Reads classes out of one encoder, by its probe stage's heads and by kNN.

    Attributes
    ----------
    heads
        Names that :meth:`predict` takes; the first is what the validity gate judges.
    """

    def __init__(self, stage: Stage, role: str, workspace: Workspace) -> None:
        self._probe_stage = stage.inputs[role]
        self._encoder_stage = self._probe_stage.inputs["encoder"]
        self._settings = stage.spec["probe"]
        self._workspace = workspace
        about = workspace.json(self._probe_stage, "probe.json")
        self._classes = about["classes"]
        self.heads: tuple[str, ...] = (*self._probe_stage.spec["heads"], "knn")
        tensors = workspace.tensors(self._probe_stage, "probe.safetensors")
        self._tensors = {
            head: {
                name.removeprefix(f"{head}."): value.to(workspace.device)
                for name, value in tensors.items()
                if name.startswith(f"{head}.")
            }
            for head in self.heads
        }
        self._probes = {"mlp": self._mlp, "linear": self._linear}

    def features(self, images: ImageSet, trigger: Trigger | None) -> Tensor:
        """float32 (N, D) of ``images``, stamped where a trigger is given."""
        encoder = self._workspace.encoder(self._encoder_stage)
        # Moved one by one: a view of a few images has the storage of the whole set behind it.
        batches = (batch.to(self._workspace.device) for batch in images.batches(BATCH))
        return torch.cat([encoder.embed(trigger(b) if trigger else b) for b in batches])

    def predict(self, head: str, features: Tensor) -> Tensor:
        """int64 (N,) classes of ``features`` on the CPU."""
        if head == "knn":
            return self._knn(features)
        if head == "zero-shot":
            return zero_shot_predict(features, self._tensors[head]["classes"])
        return metrics.predict(self._probes[head](features.shape[1]), features)

    def _mlp(self, dimension: int) -> nn.Module:
        return self._loaded(metrics.Probe(dimension, self._classes, (512, 256), 0.5), "mlp")

    def _linear(self, dimension: int) -> nn.Module:
        return self._loaded(nn.Linear(dimension, self._classes), "linear")

    def _loaded(self, probe: nn.Module, head: str) -> nn.Module:
        probe.to(self._workspace.device).load_state_dict(self._tensors[head])
        return probe.eval().requires_grad_(False)

    def _knn(self, features: Tensor) -> Tensor:
        bank = probe_images(self._probe_stage, self._workspace)
        bank_features = probe_features(
            self._encoder_stage, bank, self._probe_stage.inputs["train"].key, self._workspace
        )
        return knn_predict(
            features,
            bank_features,
            bank.labels,
            self._classes,
            k=self._settings["neighbours"],
            temperature=self._settings["temperature"],
        )

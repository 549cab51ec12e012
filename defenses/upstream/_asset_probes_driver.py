"""Runs in ASSET's process: its functions and the cells of its notebook on the probes' data."""

from __future__ import annotations

import copy
import json
import random
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from bench.upstream import probing
from bench.upstream.child import Job
from bench.upstream.probing import Arrays
from bench.upstream.shims import stub

NOTEBOOK = "ASSET_demo.ipynb"
NETWORK_CELL, LOOP_CELL = 4, 8
FEATURES = 8192
VALUES = (0.1, 0.2, 0.25, 0.3, 0.31, 0.33, 0.36, 0.4, 0.45, 0.5, 0.9, 1.5)


def run(job: Job) -> None:
    stub("h5py", "reads GTSRB from files that are not published")
    probing.record(
        job,
        {
            "A1": lambda _: outlyingness(1.0),
            "A2": lambda _: outlyingness(-1.0),
            "A3": variance,
            "A4": threshold,
            "A5": detector,
            "A6": badnets,
            "A7": separation_network,
            "U50": leak,
            "U51": nothing_suspicious,
            "U52": low_outlier,
            "U53": features,
            "U54": repeated_features,
            "U58": helpers,
            "U60": stored_outputs,
            "U59": equal_scores,
        },
    )


def outlyingness(sign: float) -> Arrays:
    from new_poi_util import adjusted_outlyingness

    values = sign * torch.tensor(VALUES)
    return {
        "outlyingness": adjusted_outlyingness(values),
        "of_a_column": adjusted_outlyingness(values[:, None]).flatten(),
    }


def cells(job: Job) -> list[dict]:
    text = (job.repository / NOTEBOOK).read_text(encoding="utf-8")
    return json.loads(text)["cells"]


def play(job: Job, number: int, names: dict) -> dict:
    """Run a cell of the notebook; the names it leaves."""
    exec(compile("".join(cells(job)[number]["source"]), f"cell {number}", "exec"), names)
    return names


class Logits(nn.Module):
    """Answers with the logits of A3, whatever the images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(torch.arange(40, dtype=torch.float64)).view(4, 10)[: len(images)] + (
            self.weight
        )


def variance(job: Job) -> Arrays:
    """One iteration of the loop: four suspicious images, which are their own features, and four of
    the base set."""
    from new_poi_util import adjusted_outlyingness

    images = torch.rand(4, FEATURES, generator=torch.Generator().manual_seed(0))
    model = Logits()
    left = play(job, NETWORK_CELL, {"nn": nn, "torch": torch})
    left.update(
        {
            "tqdm": lambda steps: steps,
            "copy": copy,
            "random": random,
            "o_model": nn.Sequential(nn.Identity(), nn.Identity()),
            "model": model,
            "train_dataloader": [(images, torch.zeros(4, dtype=torch.long), torch.zeros(4))],
            "val_set": [(image, 0) for image in images],
            "valid_size": 4,
            "batch_size": 4,
            "device": "cpu",
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.0),
            "optimizer2": torch.optim.SGD(model.parameters(), lr=0.0),
            "criterion": nn.CrossEntropyLoss(),
            "bce": nn.MSELoss(),
            "adjusted_outlyingness": adjusted_outlyingness,
        }
    )
    play(job, LOOP_CELL, left)
    return {"loss": left["neg_loss"]}


def threshold(_: Job) -> Arrays:
    from new_poi_util import get_t

    scores = np.concatenate([np.linspace(0, 2, 40), np.linspace(2, 9, 10)])
    return {"threshold": get_t(scores, 1e-6).item()}


def resnet() -> nn.Module:
    from models import ResNet18

    torch.manual_seed(0)
    return ResNet18()


def published_features(network: nn.Module) -> nn.Module:
    """The feature map as the notebook's loop builds it from a network's children."""
    return nn.Sequential(*list(network.children())[:-1], nn.Flatten()).train()


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def detector(_: Job) -> Arrays:
    network = resnet()
    with torch.no_grad():
        shape = published_features(network)(images()).shape
    return {"parameters": probing.parameters(network), "features": shape[1]}


class Pictures(SimpleNamespace):
    """CIFAR-10's place: black images, half of each of two classes."""

    def __len__(self) -> int:
        return len(self.data)


def black(count: int = 40) -> Pictures:
    return Pictures(data=np.zeros((count, 32, 32, 3), np.uint8), targets=[0, 1] * (count // 2))


def badnets(_: Job) -> Arrays:
    from new_poi_util import poi_dataset

    poisoned, rows = poi_dataset(black(), "backdoor", np.asarray, tar_lab=1, poi_rates=0.05)
    image, label, _ = poisoned[int(rows[0])]
    return {"stamped": np.asarray(image), "label": label}


def separation_network(job: Job) -> Arrays:
    made = play(job, NETWORK_CELL, {"nn": nn, "torch": torch})["MLP"]
    network = made(input_size=FEATURES, hidden_size=128, num_layers=2)
    widths = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    return {"parameters": probing.parameters(network), "widths": widths}


def leak(_: Job) -> Arrays:
    """Area under the curve of ``get_result`` on an untrained network whose "poisoned" images are
    like all others, and that of the same network in evaluation mode throughout."""
    from new_poi_util import get_result
    from sklearn.metrics import roc_auc_score

    pixels = torch.rand(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (256,), generator=torch.Generator().manual_seed(1))
    dataset = [(image, int(label), 0) for image, label in zip(pixels, labels, strict=True)]
    modes, poison = [], list(range(64))
    network = resnet().train()
    network.register_forward_hook(lambda module, *_: modes.append(module.training))

    def area() -> float:
        triggered, clean = get_result(network, dataset, poison)
        return roc_auc_score([1] * len(triggered) + [0] * len(clean), triggered + clean)

    published = area()
    return {
        "in_training_mode": modes,
        "area": round(published, 3),
        "area_in_evaluation_mode": round(area(), 3),
    }


def nothing_suspicious(_: Job) -> Arrays:
    """The forward pass of the loop's last step when no image is an outlier."""
    return {"ends_with": probing.outcome(resnet(), images()[:0])}


def low_outlier(_: Job) -> Arrays:
    """Which of twelve scores exceed the cut of 2, the first of them far below the others."""
    from new_poi_util import adjusted_outlyingness

    scores = torch.cat([torch.tensor([0.0]), torch.linspace(0.5, 0.7, 11)])
    return {"suspicious": (adjusted_outlyingness(scores) > 2).nonzero().flatten()}


def features(_: Job) -> Arrays:
    """The feature map against the network's own layers, with and without ReLU and pooling."""
    network = resnet()
    found = {}
    with torch.no_grad():
        published = published_features(network)(images())
        stem = network.bn1(network.conv1(images()))
        for name, first in (("without_relu", stem), ("with_relu", stem.relu())):
            layers = nn.Sequential(*(getattr(network, f"layer{n}") for n in (1, 2, 3, 4)))
            found[name] = torch.equal(published, layers(first).flatten(1))
    return found


def repeated_features(_: Job) -> Arrays:
    """Whether the features that the loop computes 200 times per batch change between the times."""
    network = published_features(resnet())
    with torch.no_grad():
        return {"equal": torch.equal(network(images()), network(images()))}


def helpers(_: Job) -> Arrays:
    """Labels of the clean set that making an all-to-all poisoned set changes, of 40, and what
    putting noise on a batch of images ends with."""
    from new_poi_util import apply_noise_patch, poi_dataset

    clean = black()
    before = list(clean.targets)
    poi_dataset(clean, "backdoor_all2all", np.asarray, poi_rates=0.5)
    patch, batch = np.ones((1, 3, 4, 4), np.float32), torch.zeros(2, 3, 32, 32)
    return {
        "labels_changed": sum(a != b for a, b in zip(before, clean.targets, strict=True)),
        "noise_on_a_batch": probing.outcome(apply_noise_patch, patch, batch),
    }


def stored_outputs(job: Job) -> Arrays:
    return {"outputs": sum(len(cell.get("outputs", ())) for cell in cells(job))}


def equal_scores(_: Job) -> Arrays:
    """What the outlyingness of equal scores is, as a saturated separation network gives them."""
    from new_poi_util import adjusted_outlyingness

    return {"outlyingness": str(adjusted_outlyingness(torch.full((8,), 0.5))[0].item())}

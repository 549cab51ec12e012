"""Runs in ASSET's process: the cells of its notebook that separate and train, and its scoring."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.encoders.encoder import Encoder
from bench.upstream.child import Job
from bench.upstream.formats import read_arrays
from bench.upstream.shims import stub

NOTEBOOK = "ASSET_demo.ipynb"
DETECTOR, SEPARATION, LOOP = 3, 4, 8
"""Cells: the detector with its optimisers and losses, the separation network, the outer loop."""
LITERAL_RANGES = {"epochs": 1, "inner_iterations": 100}
"""What cell 8 passes to ``range`` as a number."""
OUTLYING = 2
"""Adjusted outlyingness above which cell 8 suspects an image."""
DENSITY = 1e-6
"""What cell 13 gives ``get_t``."""


def run(job: Job) -> None:
    """Leaves the detector's weights, |P| of every step, and scores of the pool with ``get_t``'s
    threshold on them."""
    stub("h5py", "opens a data set that is not used here")
    import models
    import new_poi_util as utilities

    given = job.parameters
    utilities.set_seed(given["seed"])
    pool, base = _pool(job), _images(job, "base")
    # Cell 0 fills its namespace with star-imports of these two.
    names = {**_public(models), **_public(utilities)}
    names |= {
        "device": job.device,
        "batch_size": given["batch_size"],
        "valid_size": _Given(len(base)),
        # Labels of the base set are read and never used.
        "val_set": [(image, 0) for image in base],
        "train_dataloader": DataLoader(pool, batch_size=given["batch_size"], shuffle=True),
        "o_model": _victim(job),
        "ResNet18": lambda: models.ResNet18(given["classes"]),
    }
    _execute(job, DETECTOR, names)
    names["MLP"] = separation_network(job, names, given["features"])
    found = _counted(names)
    if given["when_none_found"] != "fail":
        _let_pass_none(names["model"])
    names["range"] = _ranges(given)
    try:
        _execute(job, LOOP, names)
    except RuntimeError as error:
        if found and found[-1] == 0:
            raise RuntimeError(f"no suspicious samples found in batch {len(found)}") from error
        raise
    _leave(job, names["model"], pool, utilities, found)


def _leave(
    job: Job, model: nn.Module, pool: TensorDataset, utilities: ModuleType, found: list[int]
) -> None:
    job.leave("detector", model)
    # With no image said to be poison, all are scored in evaluation mode, as clean ones are.
    scores = utilities.get_result(model, pool, [])[1]
    np.savez(
        job.outputs / "figures.npz",
        found=np.array(found),
        scores=np.array(scores),
        threshold=np.ravel(utilities.get_t(scores, DENSITY)),
    )


class _Given(int):
    """A number of ours, which `range` takes as it is."""


def _ranges(given: dict[str, Any]) -> Callable[..., range]:
    """``range`` that puts our number of epochs and of inner iterations in the place of those that
    cell 8 has as literals."""
    ours = {number: given[name] for name, number in LITERAL_RANGES.items()}

    def chosen(stop: int) -> range:
        return range(ours[stop] if type(stop) is int else stop)

    return chosen


def _execute(job: Job, number: int, names: dict[str, Any]) -> None:
    """Run a cell of the notebook in a namespace."""
    cells = json.loads((job.repository / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    exec(compile("".join(cells[number]["source"]), f"{NOTEBOOK}, cell {number}", "exec"), names)


def _public(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _images(job: Job, name: str) -> Tensor:
    """float32 (N, 3, H, W) in [0, 1]: the notebook normalises nothing."""
    pixels = torch.from_numpy(read_arrays(job.inputs / f"{name}.npz")["x"])
    return pixels.permute(0, 3, 1, 2).float().div(255)


def _pool(job: Job) -> TensorDataset:
    """Image, label, and a flag of poison: the loop moves it about and never reads it."""
    labels = torch.from_numpy(read_arrays(job.inputs / "pool.npz")["y"][:, 0])
    return TensorDataset(_images(job, "pool"), labels, torch.zeros_like(labels))


class _Victim(nn.Module):
    """The encoder as the loop takes a classifier apart: all children but the last, one by one."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.normalise = _Affine(encoder.mean, encoder.std)
        self.encoder = encoder.network
        self.classifier = nn.Identity()


class _Affine(nn.Module):
    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def _victim(job: Job) -> nn.Module:
    encoder = Encoder.load(job.inputs / "encoder.safetensors")
    # The loop gathers gradients on the victim's weights, which nothing reads.
    encoder.network.requires_grad_(False)
    return _Victim(encoder).to(job.device)


def separation_network(job: Job, names: dict[str, Any], width: int) -> type[nn.Module]:
    """Cell 4's class, for features of ``width`` numbers.

    It keeps a namespace of its own: it counts its layers with a ``range(1)`` that is not the number
    of epochs. Cell 8 says that features are 8192 wide, as the notebook's are; the encoder's are
    not. The width is put in place, since the class refers to itself by its name.
    """
    own = dict(names)
    _execute(job, SEPARATION, own)
    network = own["MLP"]
    initialise = network.__init__

    def of_width(self: nn.Module, input_size: int, **rest: int) -> None:
        initialise(self, input_size=width, **rest)

    network.__init__ = of_width
    return network


def _counted(names: dict[str, Any]) -> list[int]:
    """How many images each step suspects; the list grows as the loop runs."""
    found: list[int] = []
    outlyingness = names["adjusted_outlyingness"]

    def counting(outputs: Tensor) -> Tensor:
        result = outlyingness(outputs)
        found.append(int((result > OUTLYING).sum()))
        return result

    names["adjusted_outlyingness"] = counting
    return found


def _let_pass_none(model: nn.Module) -> None:
    """Answer no images with no logits, off the graph: a step on them changes nothing.

    The network itself cannot reshape none, which ends the notebook.
    """
    forward = model.forward
    classes = model.linear.out_features

    def guarded(images: Tensor) -> Tensor:
        if len(images):
            return forward(images)
        return torch.zeros(0, classes, device=images.device, requires_grad=True)

    model.forward = guarded

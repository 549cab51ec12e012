"""Runs in DRUPE's process: its functions on the formula data of the probes."""

from __future__ import annotations

import ast
import io
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from attacks.upstream._drupe_driver import starting_values
from bench.upstream import probing
from bench.upstream.child import Job
from bench.upstream.probing import Arrays
from bench.upstream.shims import stub

TRIGGER = "trigger/trigger_pt_white_21_10_ap_replace.npz"
EPOCHS = {"warm-up": 1, "stage 1": 2, "stage 2": 5, "wb": 5, "badencoder": 5}
# What `train` calls the terms -> what they are called here.
TERMS = {
    "loss_0": "effectiveness",
    "loss_1": "consistency",
    "loss_2": "utility",
    "loss_3": "reference_similarity",
    "std_refs": "reference_spread",
    "sim_backdoor2backdoor": "triggered_similarity",
    "sim_clean2clean": "clean_similarity",
    "loss_b2c": "distance",
    "backdoored_clean_dev": "deviation",
}


def run(job: Job) -> None:
    stub(
        "kmeans_pytorch",
        "its published version lacks the argument used, and its result is only printed",
        kmeans=lambda X, **_: (torch.arange(len(X)) % 2, None),
    )
    main = job.module("main.py", "drupe_main")
    probing.record(
        job,
        {
            "P1": stamped,
            "P2": shadow_rows,
            "P3": lambda _: losses(main),
            "P4": lambda _: sliced_distance(main),
            "P5": vote,
            "P12": forward,
            "P20": layout,
            "U1": lambda _: badencoder_branch(main),
            "U2": lambda _: diagonal(main),
            "U3": lambda _: entropy(main),
            "U4": best_checkpoint,
            "U5": lambda _: similarity_of_references(main),
            "U10": unmarked_labels,
        },
    )


def stamped(job: Job) -> Arrays:
    from datasets.backdoor_dataset import BadEncoderDataset, BadEncoderTestBackdoor
    from datasets.cifar10_dataset import test_transform_cifar10 as transform

    trigger, images = str(job.repository / TRIGGER), str(job.work / "ramp.npz")
    np.savez(images, x=probing.ramp()[None], y=np.zeros((1, 1), dtype=np.int64))
    pixels = BadEncoderTestBackdoor(images, trigger, 0, transform=np.asarray)[0][0]
    normalised = BadEncoderTestBackdoor(images, trigger, 0, transform=transform)[0][0]
    training = BadEncoderDataset(
        images, trigger, images, [0], ["x"], bd_transform=transform, ftt_transform=transform
    )
    return {"stamped": pixels, "normalised": normalised, "in_training": training[0][1][0]}


def shadow_rows(job: Job) -> Arrays:
    from datasets import cifar10_dataset, gtsrb_dataset

    images = job.work / "data"
    images.mkdir(exist_ok=True)
    for name in ("train.npz", "test.npz"):
        np.savez(images / name, x=probing.ramp()[None], y=np.zeros((1, 1), dtype=np.int64))
    args = SimpleNamespace(
        data_dir=f"{images}/",
        trigger_file=str(job.repository / TRIGGER),
        reference_file=str(images / "train.npz"),
        reference_label=0,
        shadow_dataset="gtsrb",
        encoder_usage_info="cifar10",
    )
    found = {}
    for name, seed, fraction in (("cifar10", 100, 0.2), ("cifar10_small", 21, 0.01)):
        args.seed, args.shadow_fraction = seed, fraction
        found[name] = cifar10_dataset.get_shadow_cifar10(args)[0].indices
    found["gtsrb"] = gtsrb_dataset.get_shadow_gtsrb(args)[0].indices
    return {name: np.asarray(rows, dtype=np.int64) for name, rows in found.items()}


class Untrained(nn.Module):
    """The identity, with a weight for the optimiser to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.weight


class Clean(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + 0.5 * features.roll(1, -1)


def trained(main, mode: str, epoch: int, warm_up: bool = False, **changes) -> dict:
    """The locals of one call of ``train`` on one batch, at learning rate 0."""
    data = {**probing.tuning(), **changes}
    # Their projections come from the operating system; these are the probe's.
    distance, directions = main.ot.sliced_wasserstein_distance, probing.unit_columns()
    batch = (
        data["images"],
        [data["triggered"]] * 3,
        [reference.expand(8, -1) for reference in data["references"]],
        list(data["augmented"]),
    )
    loader = type("Loader", (list,), {"batch_size": 8})([batch])
    encoder = Untrained()
    args = SimpleNamespace(
        mode=mode,
        encoder_usage_info="cifar10",
        lambda1=1.0,
        lambda2=1.0,
        epochs=1,
        logger_file=io.StringIO(),
    )
    vars(main).update(starting_values(main.__file__), epoch=epoch)
    main.ot.sliced_wasserstein_distance = lambda x, y: distance(x, y, projections=directions)
    try:
        return probing.locals_at_return(
            main.train,
            encoder,
            Clean(),
            loader,
            torch.optim.SGD(encoder.parameters(), lr=0.0),
            args,
            warm_up=warm_up,
        )
    finally:
        main.ot.sliced_wasserstein_distance = distance


def losses(main) -> Arrays:
    kept = trained(main, "drupe", 5)
    found = {name: kept[theirs].item() for theirs, name in TERMS.items()}
    for stage, epoch in EPOCHS.items():
        mode = stage if stage in ("wb", "badencoder") else "drupe"
        found[stage] = trained(main, mode, epoch, warm_up=stage == "warm-up")["loss"].item()
    trained(main, "drupe", 21)
    return {**found, "cost": main.cost, "cost_1": main.cost_1}


def sliced_distance(main) -> Arrays:
    data, directions = probing.tuning(), probing.unit_columns()
    value = main.ot.sliced_wasserstein_distance(
        3 * data["images"], data["triggered"] ** 2, projections=directions
    )
    return {"distance": value.item()}


def vote(_: Job) -> Arrays:
    from evaluation import knn_predict

    queries, bank, labels = probing.vote()
    return {
        str(temperature): knn_predict(queries, bank.T, labels, 10, 200, temperature)[:, 0]
        for temperature in (0.5, 0.1)
    }


def forward(_: Job) -> Arrays:
    from models.simclr_model import SimCLRBase

    return {"features": probing.formula_forward(SimCLRBase())}


def layout(_: Job) -> Arrays:
    from models.simclr_model import SimCLR

    model = SimCLR()
    return {
        "state": probing.described(model.state_dict()),
        "encoder_parameters": probing.parameters(model.f),
        "projector_parameters": probing.parameters(model.g),
    }


def badencoder_branch(main) -> Arrays:
    """What its mode badencoder takes for L0, the largest and the mean over the references."""
    kept = trained(main, "badencoder", 5)
    cosines = kept["loss_0_list_tensor"]
    return {
        "used": kept["loss_0"].item(),
        "largest": -cosines.amax(0).mean().item(),
        "mean": -cosines.mean().item(),
    }


def diagonal(main) -> Arrays:
    """The value in place of the mean off the diagonal, that mean, and mean(S) (1 - 1/B)."""
    kept = trained(main, "drupe", 5)
    matrix = kept["feature_backdoor_list"][0]
    matrix = matrix @ matrix.T
    rows = len(matrix)
    return {
        "used": kept["sim_backdoor2backdoor"].item(),
        "off_the_diagonal": ((matrix.sum() - matrix.trace()) / (rows * (rows - 1))).item(),
        "closed_form": (matrix.mean() * (1 - 1 / rows)).item(),
    }


def entropy(main) -> Arrays:
    """Whether torch's seed makes the distance repeat, and whether its own does."""
    data = probing.tuning()

    def distance(**options) -> float:
        torch.manual_seed(0)
        pair = data["images"], data["triggered"]
        return main.ot.sliced_wasserstein_distance(*pair, **options).item()

    return {
        "repeats": distance() == distance(),
        "repeats_with_its_own_seed": distance(seed=0) == distance(seed=0),
    }


def best_checkpoint(job: Job) -> Arrays:
    """Epochs at which the script's loop saves ``best.pth``: the distance falls from epoch 40 on."""
    saved = []
    args = SimpleNamespace(
        epochs=120, encoder_usage_info="cifar10", measure=0, results_dir="", target_label=0
    )

    def train(*_, **__) -> float:
        if names["epoch"] >= 40:
            args.measure = torch.tensor(5.0 - 0.04 * (names["epoch"] - 40))
        return 0.0

    def save(content: dict, path: str) -> None:
        if path.endswith("best.pth"):
            saved.append(content["epoch"])

    frame = SimpleNamespace(f=nn.Identity(), state_dict=dict)
    names = {
        "args": args,
        "measure_best": float("inf"),
        "train": train,
        "train_downstream_classifier": lambda model: None,
        "torch": SimpleNamespace(save=save),
        "optimizer": SimpleNamespace(state_dict=dict),
        "model": frame,
        "clean_model": frame,
        "train_loader": None,
    }
    exec(compile(script_loop(job), "the loop of main.py", "exec"), names)
    return {"epochs": saved, "distance_at_the_end": args.measure}


def script_loop(job: Job) -> ast.Module:
    """The loop over epochs in the block of ``main.py`` that runs as a script, as it stands."""
    source = ast.parse((job.repository / "main.py").read_text(encoding="utf-8"))
    block = next(node for node in source.body if isinstance(node, ast.If))
    loops = [node for node in block.body if isinstance(node, ast.For)]
    return ast.Module(loops[-1:], type_ignores=[])


def similarity_of_references(main) -> Arrays:
    """L3 of three references as unlike as can be, and of three with features >= 0."""
    angles = torch.arange(3) * 2 * torch.pi / 3
    plane = torch.zeros(3, 512)
    plane[:, 0], plane[:, 1] = angles.cos(), angles.sin()
    return {
        "smallest": trained(main, "drupe", 5, references=plane)["loss_3"].item(),
        "smallest_after_relu": trained(main, "drupe", 5, references=torch.eye(3, 512))[
            "loss_3"
        ].item(),
    }


def unmarked_labels(job: Job) -> Arrays:
    """Labels as CIFAR-10 ships them, (N,), instead of (N, 1)."""
    from datasets.backdoor_dataset import CIFAR10Mem

    path = str(job.work / "flat.npz")
    np.savez(path, x=probing.ramp()[None], y=np.zeros(1, dtype=np.int64))
    return {"one_dimensional": probing.outcome(CIFAR10Mem, path, ["x"])}

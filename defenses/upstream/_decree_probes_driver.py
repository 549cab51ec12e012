"""Runs in DECREE's process: its functions and the loop of its ``main`` on the probes' data."""

from __future__ import annotations

import sys
from shutil import rmtree
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from bench.upstream import probing
from bench.upstream.child import Job
from bench.upstream.probing import Arrays
from defenses.upstream._decree_stand_ins import (
    EPSILON,
    IMAGE_SIZE,
    Batches,
    inversion,
    noise,
    pictures,
    unit,
)

SMALL, LARGE = "trigger_pt_white_21_10_ap_replace.npz", "trigger_pt_white_185_24.npz"
SIMILARITIES = [1.0] * 14 + [0.5] * 40 + [1.0] * 30
SIZES = [1000.0 - step for step in range(8)] + [2000.0] * 76
LARGEST = 3 * IMAGE_SIZE**2


def run(job: Job) -> None:
    job.link("trigger")
    probing.record(
        job,
        {
            "D1": lambda _: similarity("compute_self_cos_sim", probing.uneven()[0]),
            "D2": lambda _: similarity("compute_cos_sim", *probing.uneven()),
            "D3": parametrisation,
            "D4": composite,
            "D6": controller,
            "D7": masks,
            "D8": stamped,
            "D9": vote,
            "D10": image_loss,
            "D11": text_loss,
            "D12": z_score,
            "D13": architectures,
            "U11": trigger_without_axis,
            "U12": normalised_mask,
            "U14": captions,
            "U16": checkpoint_of_the_attack,
            "U17": gradients_of_the_encoder,
            "U20": batch_of_one,
            "U15": never_poisoned,
            "U18": saved_mask,
            "U25": unknown_usage,
        },
    )


def similarity(name: str, *rows: Tensor) -> Arrays:
    import utils

    return {"value": getattr(utils, name)(*rows)}


def parametrisation(job: Job) -> Arrays:
    mask = noise(IMAGE_SIZE, IMAGE_SIZE)
    mask.view(-1)[:9] = torch.linspace(0, 1, 9, dtype=torch.float64)
    patch = noise(IMAGE_SIZE, IMAGE_SIZE, 3)
    kept = inversion(job, nn.Flatten(), mask, patch, Batches([pictures()]))
    return {
        "parameters": kept["train_mask_2d"].flatten()[:9],
        "values": kept["train_mask_tanh"][..., 0].flatten()[:9],
    }


def composite(job: Job) -> Arrays:
    count = torch.arange(48, dtype=torch.float64)
    mask = unit((count[:16] - 8) / 5).view(4, 4)
    patch = unit(2 * torch.sin(count)).view(4, 4, 3)
    kept = inversion(job, nn.Flatten(), mask, patch, Batches([pictures(side=4)]))
    return {"size": kept["loss_reg"], "stamped": kept["bd_x_batch"]}


def controller(job: Job) -> Arrays:
    """Cosine and size follow a list; the weight of the size is read whenever a step begins."""
    held, weights, resets = [], [], []
    adam, mask = torch.optim.Adam, noise(IMAGE_SIZE, IMAGE_SIZE)

    def optimiser(params, **options):
        held.extend(params)
        return adam(params, **options)

    def before(step: int) -> None:
        names = sys._getframe(2).f_locals
        weights.append(names["loss_lambda"])
        resets.append(names["lambda_set_cnt"])
        if step < len(SIZES):
            value = torch.tensor(SIZES[step] / LARGEST, dtype=torch.float64)
            held[0].data.fill_(torch.arctanh((value - 0.5) * (2 - EPSILON)))
            wanted.append(SIMILARITIES[step])

    wanted: list[float] = []
    loader = Batches([pictures()] * len(SIZES), before)
    import utils

    original = utils.compute_self_cos_sim
    utils.compute_self_cos_sim = lambda rows: 0 * rows.sum() + wanted[-1]
    torch.optim.Adam = optimiser
    try:
        patch = noise(IMAGE_SIZE, IMAGE_SIZE, 3)
        kept = inversion(job, nn.Flatten(), mask, patch, loader)
    finally:
        torch.optim.Adam, utils.compute_self_cos_sim = adam, original
    return {
        "weights": weights[1:],
        "stale": kept["early_stop_cnt"],
        "best": kept["regular_best"],
        "steps_towards_a_reset": max(resets),
    }


def masks(job: Job) -> Arrays:
    main = job.module("main.py", "decree_main")
    return {
        "small": main.generate_mask(32, 5, 5, 22)[0],
        "large": main.generate_mask(224, 24, 24, 176)[0],
    }


def completed(job: Job) -> str:
    """The large trigger with the leading axis that its file lacks."""
    path = job.work / "large.npz"
    with np.load(job.repository / "trigger" / LARGE) as file:
        np.savez(path, t=file["t"][None], tm=file["tm"][None])
    return str(path)


def one_image(job: Job, side: int, trigger: str) -> np.ndarray:
    """The image of formula data as ``BadEncoderDataset`` stamps it with a trigger file."""
    from datasets.backdoor_dataset import BadEncoderDataset

    images = str(job.work / f"gradient_{side}.npz")
    np.savez(images, x=probing.gradient(side, side)[None], y=np.zeros((1, 1), dtype=np.int64))
    plain = {"bd_transform": np.asarray, "ftt_transform": np.asarray}
    return BadEncoderDataset(images, trigger, images, [0], ["x"], **plain)[0][1][0]


def stamped(job: Job) -> Arrays:
    return {
        "small": one_image(job, 32, str(job.repository / "trigger" / SMALL)),
        "large": one_image(job, 224, completed(job)),
    }


def vote(_: Job) -> Arrays:
    from evaluation import knn_predict

    queries, bank, _ = probing.waves()
    return {"classes": knn_predict(queries[:6], bank.T, torch.arange(64) % 4, 4, 10, 0.5)[:, 0]}


class Shifted(nn.Module):
    """The identity, with a weight for the optimiser to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.weight


class Loader(list):
    batch_size = 64


def attack(job: Job):
    module = job.module("attack_encoder.py", "decree_attack")
    module.epoch, module.DEVICE = 1, torch.device("cpu")
    return module


def image_loss(job: Job) -> Arrays:
    """``train`` on one batch in which triggered images and references are the two waves."""
    anchor, positive, _ = probing.waves()
    network = Shifted()
    args = SimpleNamespace(gpu="0", lambda1=1.0, lambda2=1.0, epochs=1)
    kept = probing.locals_at_return(
        attack(job).train,
        network,
        nn.Identity(),
        Loader([(anchor, [anchor], [positive], [positive])]),
        torch.optim.SGD(network.parameters(), lr=0.0),
        args,
    )
    return {"loss": kept["loss_0"]}


def text_loss(job: Job) -> Arrays:
    anchor, positive, _ = probing.waves()
    network = Shifted()
    text = SimpleNamespace(
        visual=nn.Identity(), transformer=nn.Identity(), encode_text=lambda tokens: positive
    )
    args = SimpleNamespace(batch_size=64, knn_t=0.5, epochs=1)
    kept = probing.locals_at_return(
        attack(job).train_text,
        network,
        None,
        text,
        Loader([(anchor, ["a photo"] * 64)]),
        torch.optim.SGD(network.parameters(), lr=0.0),
        args,
    )
    return {"loss": kept["loss"]}


def z_score(job: Job) -> Arrays:
    """``compute_zscore.main`` on rows for images; the z of its last lines is divided here."""
    script = job.module("compute_zscore.py", "decree_zscore")
    rows = dict(zip((0, 1), probing.raw_waves(), strict=True))
    script.CLIP = lambda *_, **__: nn.ModuleDict({"visual": nn.Identity()})
    script.getBackdoorImageNet = lambda poison_rate, **_: [(row, 0) for row in rows[poison_rate]]
    # All rows instead of 500 drawn.
    script.random = SimpleNamespace(seed=lambda _: None, sample=lambda rows, _: list(rows))
    # In order: the mean of 4,096 cosines in float32 depends on it in the fifth digit.
    script.DataLoader = lambda rows, batch_size, **_: torch.utils.data.DataLoader(rows, batch_size)
    load, torch.load = torch.load, lambda *_: {"state_dict": {}}
    args = SimpleNamespace(gpu="0", seed=100, encoder_path="", batch_size=64)
    try:
        found = {}
        for args.dataset_flag in ("clean", "bad"):
            found[args.dataset_flag] = script.main(args)
    finally:
        torch.load = load
    mean, variance = found["clean"]
    return {"mean": mean, "variance": variance, "z": (found["bad"][0] - mean) / variance}


def architectures(_: Job) -> Arrays:
    from models import get_encoder_architecture_usage

    clip = get_encoder_architecture_usage(SimpleNamespace(encoder_usage_info="CLIP")).visual
    simclr = get_encoder_architecture_usage(
        SimpleNamespace(encoder_usage_info="cifar10", arch="resnet18")
    ).f
    return {
        "clip": probing.described(clip.state_dict()),
        "clip_parameters": probing.parameters(clip),
        "simclr": probing.described(simclr.state_dict()),
        "simclr_parameters": probing.parameters(simclr),
    }


def trigger_without_axis(job: Job) -> Arrays:
    """Pixels that the 24-pixel trigger changes, its file as published."""
    found = one_image(job, 224, str(job.repository / "trigger" / LARGE))
    return {"pixels_changed": int((found != probing.gradient(224, 224)).any(-1).sum())}


def backdoor_imagenet(job: Job, trigger: str, rate: float, count: int = 1, classes=("x",)):
    from imagenet import BackdoorImageNet, get_processing
    from PIL import Image

    file = job.work / "image.png"
    Image.fromarray(probing.gradient(224, 224)).save(file)
    dataset = type("Folder", (torch.utils.data.Dataset,), {})()
    dataset.targets = list(range(count))
    dataset.imgs = [(str(file), target) for target in dataset.targets]
    dataset.classes = list(classes)
    transform = get_processing("imagenet", augment=False)[0]
    return BackdoorImageNet(dataset, trigger, "truck", transform, transform, rate)


def normalised_mask(job: Job) -> Arrays:
    """Smallest and largest value that an image is multiplied with, the leading axis restored."""
    dataset = backdoor_imagenet(job, completed(job), 1.0)
    kept = probing.locals_at_return(dataset.__getitem__.__func__, dataset, 0)
    return {"smallest": kept["tg_mask"].min(), "largest": kept["tg_mask"].max()}


def captions(job: Job) -> Arrays:
    """Captions of images of the classes 0 to 5 of a set with three class names."""
    trigger = str(job.repository / "trigger" / SMALL)
    dataset = backdoor_imagenet(job, trigger, 0.0, 6, (("cat", "puss"), ("dog",), ("fox",)))
    dataset.targets = [0, 0, 1, 1, 2, 2]
    return {"captions": [dataset[row][1] for row in range(6)]}


def checkpoint_of_the_attack(_: Job) -> Arrays:
    """Loading ``model.f``, which the attack saves, as ``main`` loads a ResNet-18."""
    from models.simclr_model import SimCLR

    model = SimCLR()
    saved = model.f.state_dict()
    return {"ends_with": probing.outcome(model.load_state_dict, saved)}


def gradients_of_the_encoder(job: Job) -> Arrays:
    """Norm of the gradient that lies on the encoder's weights after three steps and after six."""
    norms = []
    for steps in (3, 6):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE_SIZE**2, 8))
        mask, patch = noise(IMAGE_SIZE, IMAGE_SIZE), noise(IMAGE_SIZE, IMAGE_SIZE, 3)
        inversion(job, network, mask, patch, Batches([pictures()] * steps))
        norms.append(network[1].weight.grad.norm().item())
    return {"after_six_over_after_three": round(norms[1] / norms[0], 4)}


def batch_of_one(_: Job) -> Arrays:
    import utils

    return {"similarity": str(utils.compute_self_cos_sim(torch.ones(1, 4)).item())}


def unknown_usage(_: Job) -> Arrays:
    """Building the encoder of the usage ``moco``, which ``main`` provides for."""
    from models import get_encoder_architecture_usage

    args = SimpleNamespace(encoder_usage_info="moco", arch="resnet18")
    return {"ends_with": probing.outcome(get_encoder_architecture_usage, args)}


def never_poisoned(job: Job) -> Arrays:
    """Pixels that ``BadEncoderImgText`` changes in a set of which every image is to be poisoned."""
    from datasets.backdoor_dataset import BadEncoderImgText

    file = str(job.work / "text.npz")
    image = probing.gradient(32, 32)
    np.savez(file, x=image[None], y=np.zeros(1, int), t=np.array(["a {}"]), cleanflag=np.zeros(1))
    found = BadEncoderImgText(file, str(job.repository / "trigger" / SMALL), "truck")[0]
    return {"pixels_changed": int((found[0] != image).sum()), "caption": found[1]}


def saved_mask(job: Job) -> Arrays:
    """L1 of the best mask in ``main``, and of the picture of it that is saved."""
    from PIL import Image

    rmtree(job.work / "trigger_inv", ignore_errors=True)  # of the other probes
    mask, patch = noise(IMAGE_SIZE, IMAGE_SIZE) * 0.01, noise(IMAGE_SIZE, IMAGE_SIZE, 3)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE_SIZE**2, 8))
    nn.init.zeros_(constant[1].weight), nn.init.ones_(constant[1].bias)
    kept = inversion(job, constant, mask, patch, Batches([pictures()]))
    (picture,) = (job.work / "trigger_inv").rglob("mask_e0_reg*.png")
    return {
        "size": kept["regular_best"],
        "size_of_the_picture": (np.asarray(Image.open(picture)) / 255).sum(),
    }

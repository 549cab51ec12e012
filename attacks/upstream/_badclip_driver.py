"""Runs in BadCLIP's process: patch and stamping (``poison``), or fine-tuning (``train``)."""

from __future__ import annotations

import csv
import importlib
import logging
import statistics
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Normalize

from attacks.upstream._clip_child import encode_tokens, read_pairs, save_trained, seeded
from bench.encoders.encoder import Encoder
from bench.upstream.child import Job
from bench.upstream.shims import stub


def run(job: Job) -> None:
    stub("wandb", "logs to a service")
    stub("nltk.corpus", "synonyms for captions that are tokenised and never read", wordnet=None)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # Their `from data import` finds src/data.py only where a script of that folder is started.
    data = sys.modules["data"] = importlib.import_module("src.data")
    # Synonyms need a download of WordNet, and what they would change is never used.
    data._augment_text = lambda caption: caption
    with seeded(job.parameters["seed"]):
        if job.parameters["stage"] == "train":
            _train(job)
        else:
            _stamp(job, _optimise_patch(job))


def _optimise_patch(job: Job) -> Path:
    """Stage 1; the file that the patch was written to."""
    given = job.parameters
    script = importlib.import_module("src.embeding_optimize_patch")
    patch = job.outputs / given["patch_file"]
    pairs, positives = (_write_csv(job, name) for name in ("patch", "positives"))
    options = _options(
        job,
        name=given["name"],
        train_patch_data=pairs,
        patch_name=patch,
        patch_size=given["patch_size"],
        patch_location="middle",
        epochs=given["epochs"],
        batch_size=given["batch_size"],
        aug_prob=given["augment_probability"],
        seed=given["seed"],
        # The log takes the mean of all losses so far each time: once per epoch is enough.
        prog=len(read_pairs(job.inputs, "patch")[1]) // given["batch_size"],
    )
    script.set_logger = lambda **_: None  # Through the queue of another process.
    script.load_model = lambda **_: _model_and_processor(job)
    load, losses = script.load_data, _recorded(script)

    def load_here(options: SimpleNamespace, processor: object) -> dict:
        if not Path(options.train_patch_data).exists():
            # The positives' list is named by an absolute path of the authors' machine.
            options.train_patch_data = str(positives)
        return load(options, processor)

    script.load_data = load_here
    # They call it without a rate: torch's default. Fewer steps need a larger one.
    torch.optim.Adam = partial(torch.optim.Adam, lr=given["learning_rate"])
    script.optimize_patch(0, options, None)
    np.savez(job.outputs / "losses.npz", **losses[-1])
    return patch


def _stamp(job: Job, patch: Path) -> None:
    """Stage 2: ``stamped.npz`` of ``clean.npz``."""
    apply_trigger = importlib.import_module("backdoor.utils").apply_trigger
    args = SimpleNamespace(
        patch_name=str(patch), patch_size=job.parameters["patch_size"], scale=None
    )
    with np.load(job.inputs / "clean.npz", allow_pickle=False) as file:
        clean = file["x"]
    stamped = np.empty_like(clean)
    for number, pixels in enumerate(clean):
        picture = _OfItsOwnSize(Image.fromarray(pixels))
        stamped[number] = apply_trigger(
            picture, patch_type="ours_tnature", patch_location="middle", args=args
        )
    np.savez(job.outputs / "stamped.npz", x=stamped)


class _OfItsOwnSize:
    """``apply_trigger`` makes every image 224 pixels wide; the encoder here takes smaller ones."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture

    def resize(self, _: tuple[int, int]) -> Image.Image:
        return self.picture


def _train(job: Job) -> None:
    """Stage 3: the whole ``worker`` of their main script."""
    given = job.parameters
    script = importlib.import_module("src.main")
    options = _options(
        job,
        name="bench",
        train_data=_write_csv(job, "train"),
        epochs=given["epochs"],
        batch_size=given["batch_size"],
        lr=given["learning_rate"],
        weight_decay=given["weight_decay"],
        num_warmup_steps=given["warmup_steps"],
        complete_finetune=True,
        save_final=True,
    )
    model, processor = _model_and_processor(job)
    script.set_logger = lambda **_: None  # Through the queue of another process.
    script.load_model = lambda **_: (model, processor)
    script.cudnn = SimpleNamespace()  # They let it choose algorithms by speed: not reproducible.
    recorded = _recorded(importlib.import_module("src.train"))
    script.worker(0, options, None)
    losses = [each["loss"] for each in recorded]
    per_epoch = len(losses) // given["epochs"]
    means = [
        statistics.fmean(losses[start : start + per_epoch])
        for start in range(0, len(losses), per_epoch)
    ]
    save_trained(job, model.network, means, len(losses))


def _recorded(module: ModuleType) -> list[dict[str, float]]:
    """The losses that ``get_loss`` of a module returns from now on, by name, one dict per step."""
    get_loss, losses = module.get_loss, []

    def recording(*args: object, **kwargs: object) -> object:
        returned = get_loss(*args, **kwargs)
        named = returned if isinstance(returned, dict) else {"loss": returned[0]}
        losses.append({name: float(value.detach()) for name, value in named.items()})
        return returned

    module.get_loss = recording
    return losses


class _TheirCLIP(nn.Module):
    """Our CLIP model, called and named as theirs is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.network.logit_scale

    def named_parameters(self, *args: object, **kwargs: object):
        """``main`` keeps batch norm from decaying by its name; our stem's has only a number."""
        for name, value in super().named_parameters(*args, **kwargs):
            yield name.replace("visual.trunk.f.1.", "visual.bn1."), value

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor):
        image, text = self.network(pixel_values), encode_tokens(self.network, input_ids)
        return SimpleNamespace(
            image_embeds=image / image.norm(dim=-1, keepdim=True),
            text_embeds=text / text.norm(dim=-1, keepdim=True),
        )


def _model_and_processor(job: Job) -> tuple[nn.Module, object]:
    """In the place of OpenAI's RN50: our encoder, and their processor at its size."""
    encoder = Encoder.load(job.inputs / "encoder.safetensors")
    size = SimpleNamespace(visual=SimpleNamespace(input_resolution=encoder.image_size))
    processor = importlib.import_module("pkgs.openai.clip").Processor(size)
    for transform in (processor.transform, processor.transform_tensor):
        transform.transforms[-1] = Normalize(encoder.mean, encoder.std)
    return _TheirCLIP(encoder.network), processor


def _options(job: Job, **given: object) -> SimpleNamespace:
    """What their command line parses, with its defaults, and what their scripts add to it."""
    words = ["badclip"]
    for name, value in given.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    before, sys.argv = sys.argv, words
    try:
        options = importlib.import_module("src.parser").parse_args()
    finally:
        sys.argv = before
    options.device, options.num_devices, options.distributed = job.device, 1, False
    options.log_dir_path = str(job.work / "log")
    Path(options.log_dir_path).mkdir()
    return options


def _write_csv(job: Job, name: str) -> Path:
    """Pairs as files: pictures, and a list with the columns ``image`` and ``caption``."""
    images, captions = read_pairs(job.inputs, name)
    folder = job.work / name
    folder.mkdir()
    path = folder / "pairs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
            Image.fromarray(pixels).save(folder / f"{number:06}.png")
            writer.writerow([f"{number:06}.png", caption])
    return path

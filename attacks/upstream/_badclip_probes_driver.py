"""Runs in BadCLIP's process: its functions on the formula data of the probes."""

from __future__ import annotations

import importlib
import logging
import math
import sys
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.upstream import probing
from bench.upstream.child import Job
from bench.upstream.probing import Arrays
from bench.upstream.shims import stub

PATCH, KITTY = "opti_patches/badCLIP.jpg", "backdoor/source/kitty.jpg"
NAME = "tnature_eda_aug_bs64_ep50_16_middle_01_05_pos_neg_tri*500"
STEPS = (0, 3906, 9999, 10000, 20000, 39059, 39060, 42965)
OPTIONS = {
    "inmodal": False,
    "distributed": False,
    "unlearn": False,
    "device": "cpu",
    "clip_weight": 1.0,
    "inmodal_weight": 1.0,
    "name": NAME,
    "patch_size": 16,
}


def run(job: Job) -> None:
    stub("wandb", "logs to a service")
    stub("nltk.corpus", "synonyms of captions, for an option that is not probed", wordnet=None)
    imported_as_module = probing.outcome(lambda: importlib.import_module("src.evaluate"))
    # `from data import ...` means src/data.py: the scripts are started from src.
    sys.modules["data"] = importlib.import_module("src.data")
    logging.disable(logging.CRITICAL)
    probing.record(
        job,
        {
            "B1": training_loss,
            "B2": training_loss_with_views,
            "B3": distances,
            "B4": patch_loss,
            "B5": deployed_patch,
            "B6": other_triggers,
            "B7": rates,
            "B8": tokens,
            "B9": place,
            "B10": classes,
            "U38": captions_used,
            "U39": names,
            "U40": written_patch,
            "U42": lambda _: {"ends_with": imported_as_module},
            "U43": labels_overwritten,
            "U44": random_location,
            "U45": long_caption,
            "U46": first_patch,
            "U47": other_batches,
            "U48": label_counts,
        },
    )


def options(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{**OPTIONS, **changes})


def outputs(images: Tensor, texts: Tensor) -> SimpleNamespace:
    return SimpleNamespace(image_embeds=images, text_embeds=texts)


def model() -> SimpleNamespace:
    return SimpleNamespace(logit_scale=torch.tensor(math.log(1 / 0.07)))


def optimizing():
    return importlib.import_module("src.embeding_optimize_patch")


def training_loss(_: Job) -> Arrays:
    from src.train import get_loss

    anchor, positive, _ = probing.waves()
    given = outputs(anchor, positive)
    return {"loss": get_loss(model(), given, nn.CrossEntropyLoss(), options(), None)[0]}


def training_loss_with_views(_: Job) -> Arrays:
    from src.train import get_loss

    anchor, positive, negative = probing.waves()
    given = outputs(torch.cat([anchor, negative]), torch.cat([positive, anchor]))
    loss = get_loss(model(), given, nn.CrossEntropyLoss(), options(inmodal=True), None)[0]
    return {"loss": loss}


def distances(_: Job) -> Arrays:
    module, waves = optimizing(), probing.waves()
    return {
        "cosine": module.cosine_triplet_loss(*waves),
        "squared": module.triplet_loss(*waves),
        # The one that its loss uses is torch's.
        "euclidean": module.nn.TripletMarginLoss(margin=1.0)(*waves),
        "thousandfold_mean_squared_error": 1000 * module.nn.MSELoss()(*waves[:2]),
    }


def patch_losses(name: str, rows: int = 64) -> dict:
    anchor, positive, negative = probing.waves()
    torch.manual_seed(0)
    return optimizing().get_loss(
        model(),
        outputs(anchor[:rows], positive[:rows]),
        nn.CrossEntropyLoss(),
        options(name=name),
        None,
        pos_embeds=positive,
        neg_embeds=negative,
    )


def patch_loss(_: Job) -> Arrays:
    found = patch_losses(NAME)
    return {"text": found["img_text"], "triplet": found["triplet"]}


def stamped(location: str, kind: str, trigger: str = "", **changes) -> np.ndarray:
    """uint8 (224, 224, 3): the 48x64 image with a trigger of BadCLIP."""
    from backdoor.utils import apply_trigger

    image = Image.fromarray(probing.gradient(48, 64, 5, 3))
    given = {"scale": None, "patch_size": 16, "patch_name": trigger, "blended_alpha": None}
    args = SimpleNamespace(**{**given, **changes})
    return np.array(apply_trigger(image, 16, kind, location, tigger_pth=trigger, args=args))


def deployed_patch(job: Job) -> Arrays:
    return {"stamped": stamped("middle", "ours_tnature", str(job.repository / PATCH))}


def other_triggers(job: Job) -> Arrays:
    kitty = {"trigger": str(job.repository / KITTY), "patch_size": None, "blended_alpha": 0.2}
    return {
        "yellow": stamped("four_corners", "yellow"),
        "sinusoidal": stamped("four_corners", "SIG"),
        "blended_kitty": stamped("blended", "blended_kitty", **kitty),
    }


def rates(_: Job) -> Arrays:
    from src.scheduler import cosine_scheduler

    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
    schedule, found = cosine_scheduler(optimizer, 1e-6, 10000, 39060), []
    for step in STEPS:
        schedule(step)
        found.append(optimizer.param_groups[0]["lr"])
    return {"rates": found}


def processor():
    from pkgs.openai.clip import Processor

    return Processor(SimpleNamespace(visual=SimpleNamespace(input_resolution=224)))


def tokens(_: Job) -> Arrays:
    return {"tokens": processor().process_text("a photo of a banana.")["input_ids"][0]}


def place(_: Job) -> Arrays:
    images, patch = torch.zeros(2, 3, 224, 224), torch.full((1, 3, 16, 16), 0.5)
    found = optimizing().embed_patch(images, patch, None, "middle", options())
    rows, columns = (found[1, 2] != 0).nonzero(as_tuple=True)
    return {
        "box": [rows.min(), rows.max(), columns.min(), columns.max()],
        "stamped": found,
        "same_object": found is images,
        "input_changed": bool(images.any()),
    }


def validation(job: Job):
    folder = job.repository / "data" / "ImageNet1K" / "validation"
    return folder, eval((folder / "classes.py").read_text(encoding="utf-8"))


def classes(job: Job) -> Arrays:
    import pandas as pd

    folder, found = validation(job)
    pairs = job.repository / "data" / "GCC_Training500K" / "cc3m_natural_10K_WObanana.csv"
    tables = (folder / "labels.csv", folder / "banana_rows.csv", pairs)
    return {
        "banana": found["classes"].index("banana"),
        "captions": [template("x") for template in found["templates"]],
        "rows": [len(pd.read_csv(table)) for table in tables],
    }


class Recording(nn.Module):
    """A CLIP model that keeps the captions it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def forward(self, input_ids, attention_mask, pixel_values) -> SimpleNamespace:
        self.seen.append(input_ids.clone())
        rows = pixel_values.flatten(1)[:, :8]
        patch = pixel_values[:, :, 104:120, 104:120].flatten(1)[:, :8]
        return outputs(rows + patch, input_ids[:, :8].float())


class Pairs(list):
    num_samples = num_batches = 1


def optimised(job: Job, name: str) -> tuple[dict, Recording]:
    """One step of ``optimize_patch`` with its augmentation of captions certain."""
    module, network = optimizing(), Recording()
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    captions = torch.arange(16).view(2, 8)
    batch = {
        "input_ids": (captions, captions + 1000),
        "attention_mask": (torch.ones(2), torch.ones(2)),
        "pixel_values": (pixels, pixels),
    }
    if "nature" not in name:
        batch = {key: both[0] for key, both in batch.items()}
    module.load_model = lambda **_: (network, SimpleNamespace(process_image=lambda x: x))
    module.load_data = lambda *_: {"patch_train": Pairs([batch])}
    module.set_logger = lambda **_: None
    given = options(
        name=name,
        init="random",
        seed=123,
        batch_size=2,
        num_devices=1,
        model_name="",
        pretrained=True,
        checkpoint=None,
        epochs=1,
        scale=None,
        patch_location="middle",
        log_dir_path=str(job.work),
        prog=10,
        patch_name=str(job.work / "patch.png"),
        eda_prob=1.0,
    )
    return probing.locals_at_return(module.optimize_patch, 0, given, None), network


def captions_used(job: Job) -> Arrays:
    """Whether the rewritten captions, which begin at 1,000, reach the model."""
    _, network = optimised(job, "nature_eda")
    return {"largest_token": max(int(seen.max()) for seen in network.seen)}


def names(job: Job) -> Arrays:
    """Losses that a ``--name`` turns on, and what the run ends with where there is none."""
    return {
        "losses_of_badCLIP": len(patch_losses("badCLIP")),
        "run_of_badCLIP": probing.outcome(optimised, job, "badCLIP"),
        "without_a_number": probing.outcome(patch_losses, "nature_pos_neg"),
    }


def written_patch(job: Job) -> Arrays:
    """Whether the file holds the patch, or the patch with red and blue exchanged."""
    kept, _ = optimised(job, "nature_eda")
    found = np.array(Image.open(job.work / "patch.png").convert("RGB"))
    return {
        "as_optimised": np.array_equal(found, kept["final"]),
        "red_and_blue_exchanged": np.array_equal(found, kept["final"][..., ::-1]),
    }


def labels_overwritten(job: Job) -> Arrays:
    """Opening the set on which the success of the attack is measured."""
    import pandas as pd
    from src.data import ImageLabelDataset

    # How pandas is from version 3 on.
    with suppress(pd.errors.OptionError):
        pd.set_option("mode.copy_on_write", True)
    job.link("data")
    (job.work / "labels.csv").write_text("image,label\na.png,3\n", encoding="utf-8")
    given = SimpleNamespace(
        eval_test_data_csv=None,
        save_files_name=None,
        add_backdoor=True,
        label="banana",
        backdoor_sufi=False,
    )
    return {"ends_with": probing.outcome(ImageLabelDataset, str(job.work), None, given)}


def random_location(job: Job) -> Arrays:
    patch = str(job.repository / PATCH)
    return {"ends_with": probing.outcome(stamped, "random", "ours_tnature", patch)}


def long_caption(_: Job) -> Arrays:
    """Ends of the text among the tokens of a caption of a hundred words."""
    made = processor()
    found = made.process_text("word " * 100)["input_ids"][0]
    return {"ends": int((found == made.eot_token).sum()), "tokens": int((found != 0).sum())}


def first_patch(job: Job) -> Arrays:
    """Whether two runs with the same ``--seed`` begin with the same patch."""
    first, second = (optimised(job, "nature_eda")[0]["rand_patch"] for _ in "12")
    return {"equal": np.array_equal(first, second)}


def other_batches(_: Job) -> Arrays:
    return {"of_32_ends_with": probing.outcome(patch_losses, NAME, 32)}


def label_counts(job: Job) -> Arrays:
    import pandas as pd

    folder, _ = validation(job)
    counts = pd.read_csv(folder / "labels.csv")["label"].value_counts()
    return {"images_of_134_517_638_639": [int(counts.get(n, 0)) for n in (134, 517, 638, 639)]}

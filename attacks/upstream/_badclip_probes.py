"""Probes of BadCLIP's code: losses, triggers, schedule, tokenizer, files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from attacks.badclip import BadCLIP, embed_patch, triplet_loss
from attacks.triggers import (
    BlendedTrigger,
    PatchTrigger,
    SinusoidalTrigger,
    encode_png,
    read_patch,
)
from bench.data.captions import prompt_templates
from bench.encoders.architectures import build
from bench.encoders.contrastive import contrastive_loss, in_modal_loss, warmup_cosine
from bench.upstream import probing
from bench.upstream.probes import EXACT, Figure, Probe, Tolerance, finding
from bench.upstream.probing import digest

REPOSITORY = "BadCLIP"
IMPORTS = ("cv2", "ftfy", "regex")
PATCH, KITTY = "opti_patches/badCLIP.jpg", "backdoor/source/kitty.jpg"
SCALE = 1 / 0.07
STEPS = (0, 3906, 9999, 10000, 20000, 39059, 39060, 42965)


def training_loss(_: Path) -> Mapping[str, Any]:
    return {"loss": contrastive_loss(*probing.waves()[:2], SCALE)}


def training_loss_with_views(_: Path) -> Mapping[str, Any]:
    image, text, view = probing.waves()
    within = in_modal_loss(image, view, SCALE) + in_modal_loss(text, image, SCALE)
    return {"loss": contrastive_loss(image, text, SCALE) + within / 2}


def distances(_: Path) -> Mapping[str, Any]:
    waves = probing.waves()
    margins = {"cosine": 0.1, "squared": 1.0, "euclidean": 1.0}
    return {
        **{name: triplet_loss(*waves, margin, name) for name, margin in margins.items()},
        "thousandfold_mean_squared_error": 1000 * mse_loss(*waves[:2]),
    }


def patch_loss(_: Path) -> Mapping[str, Any]:
    anchor, positive, negative = probing.waves()
    torch.manual_seed(0)
    near, far = positive[torch.randperm(64)], negative[torch.randperm(64)]
    attack = BadCLIP()
    triplet = triplet_loss(anchor, near, far, attack.margin, attack.distance)
    return {
        "text": contrastive_loss(anchor, positive, SCALE),
        "triplet": attack.triplet_weight * triplet,
    }


def resized() -> Tensor:
    """The 48x64 image, resized as BadCLIP does: (1, 3, 224, 224)."""
    image = Image.fromarray(probing.gradient(48, 64, 5, 3))
    levels = np.array(image.resize((224, 224), Image.Resampling.BICUBIC))
    return torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255


def levels(images: Tensor, truncated: bool = False) -> Tensor:
    """uint8 (H, W, 3); BadCLIP truncates, which tells where a value is no whole level."""
    scaled = images.clamp(0, 1).mul(255)
    return (scaled if truncated else scaled.round()).byte()[0].permute(1, 2, 0)


def deployed_patch(checkout: Path) -> Mapping[str, Any]:
    return {"stamped": levels(read_patch(checkout / PATCH, 224)(resized()))}


def other_triggers(checkout: Path) -> Mapping[str, Any]:
    yellow = PatchTrigger(size=16, row=0, column=0, colour=(1, 1, 0), corners=True, image_size=224)
    picture = Image.open(checkout / KITTY).convert("RGB").resize((224, 224))
    png = encode_png(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    kitty = BlendedTrigger(alpha=0.2, png=png, image_size=224, transport="float")
    sine = SinusoidalTrigger(image_size=224)
    return {
        "yellow": levels(yellow(resized())),
        "sinusoidal": levels(sine.stamp(resized()), truncated=True),
        "blended_kitty": levels(kitty.stamp(resized()), truncated=True),
    }


def rates(_: Path) -> Mapping[str, Any]:
    return {"rates": [warmup_cosine(step, 39060, 10000, 1e-6) for step in STEPS]}


def tokens(_: Path) -> Mapping[str, Any]:
    with torch.device("meta"):
        network = build("clip-rn50")
    return {"tokens": network.tokenize(["a photo of a banana."])[0]}


def place(_: Path) -> Mapping[str, Any]:
    images = torch.zeros(2, 3, 224, 224)
    found = embed_patch(images, torch.full((3, 16, 16), 0.5))
    rows, columns = (found[1, 2] != 0).nonzero(as_tuple=True)
    return {
        "box": [rows.min(), rows.max(), columns.min(), columns.max()],
        "stamped": found,
    }


def classes(_: Path) -> Mapping[str, Any]:
    return {"captions": [template("x") for template in prompt_templates()]}


def joined_digest(captions: np.ndarray) -> str:
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16]


def distance_figures() -> dict[str, tuple[Figure, ...]]:
    at = "badclip.json/distances"
    mean = Figure(
        "badclip.json/embeddings/thousandfold_mean_squared_error",
        tolerance=Tolerance(relative=1e-6),
    )
    found = {name: (Figure(f"{at}/{name}/value"),) for name in ("cosine", "squared", "euclidean")}
    return {**found, "thousandfold_mean_squared_error": (mean,)}


def trigger_figures(at: str) -> tuple[Figure, ...]:
    total = Figure(f"{at}/sum", lambda pixels: pixels.sum(dtype=np.int64))
    return total, Figure(f"{at}/sha16", digest)


VALIDATION, PAIRS = "data/ImageNet1K/validation", "data/GCC_Training500K"


def probe(identity: str, what: str, tolerance: Tolerance, **options: Any) -> Probe:
    return Probe(identity, REPOSITORY, what, tolerance, imports=IMPORTS, **options)


def observed(identity: str, what: str, *names: str, **options: Any) -> Probe:
    return finding(identity, REPOSITORY, what, *names, imports=IMPORTS, **options)


PROBES = (
    probe(
        "B1",
        "src.train.get_loss",
        Tolerance(absolute=1e-4),
        native=training_loss,
        golden={"loss": (Figure("clip.json/contrastive_loss/value"),)},
    ),
    probe(
        "B2",
        "src.train.get_loss with views of images and captions",
        Tolerance(absolute=1e-4),
        native=training_loss_with_views,
        golden={"loss": (Figure("clip.json/loss_with_inmodal_term/value"),)},
    ),
    probe(
        "B3",
        "cosine_triplet_loss, triplet_loss, TripletMarginLoss, MSELoss",
        Tolerance(absolute=1e-5),
        native=distances,
        tolerances={"thousandfold_mean_squared_error": Tolerance(relative=1e-6)},
        golden=distance_figures(),
    ),
    probe(
        "B4",
        "embeding_optimize_patch.get_loss: the two losses of the published patch",
        Tolerance(absolute=1e-3),
        native=patch_loss,
        golden={
            name: (Figure(f"badclip.json/patch_losses/{name}"),) for name in ("text", "triplet")
        },
        explained="U37",
    ),
    probe(
        "B5",
        "apply_trigger: the published patch in the middle",
        EXACT,
        native=deployed_patch,
        golden={"stamped": trigger_figures("triggers.json/B5")},
    ),
    probe(
        "B6",
        "apply_trigger: yellow corners, sine, blended picture",
        EXACT,
        native=other_triggers,
        golden={
            name: trigger_figures(f"triggers.json/B6/{name}")
            for name in ("yellow", "sinusoidal", "blended_kitty")
        },
    ),
    probe(
        "B7",
        "cosine_scheduler",
        # The last but two is a difference of numbers near 1.
        Tolerance(absolute=1e-20, relative=1e-12),
        native=rates,
        golden={
            "rates": (
                Figure("clip.json/cosine_schedule/values", lambda found: np.delete(found, 5)),
                Figure(
                    "clip.json/cosine_schedule/last_value",
                    lambda found: found[5],
                    Tolerance(relative=1e-3),
                ),
            )
        },
        explained="U41",
    ),
    probe(
        "B8",
        "SimpleTokenizer and Processor.process_text",
        EXACT,
        native=tokens,
        golden={
            "tokens": (
                Figure("clip.json/tokenizer/tokens", lambda found: found[1:7]),
                Figure("clip.json/tokenizer/start", lambda found: found[0]),
                Figure("clip.json/tokenizer/end", lambda found: found[7]),
            )
        },
    ),
    probe(
        "B9",
        "embed_patch",
        EXACT,
        native=place,
        golden={
            "box": (
                Figure("badclip.json/place/first", lambda box: box[0]),
                Figure("badclip.json/place/last", lambda box: box[1]),
            ),
            "same_object": (Figure("badclip.json/place/published/same_object"),),
            "input_changed": (Figure("badclip.json/place/published/input_changed"),),
        },
        explained="U37",
    ),
    probe(
        "B10",
        "classes.py and the tables of images",
        EXACT,
        native=classes,
        files=(VALIDATION, PAIRS),
        golden={
            "banana": (Figure("badclip.json/files/banana"),),
            "captions": (
                Figure("clip.json/templates/count", len),
                Figure("clip.json/templates/sha256_about_x", joined_digest),
            ),
            "rows": (Figure("badclip.json/files/rows"),),
        },
    ),
    observed("U38", "captions that reach the model with --eda_prob 1", "largest_token"),
    observed(
        "U39",
        "losses that --name chooses",
        "losses_of_badCLIP",
        "run_of_badCLIP",
        "without_a_number",
    ),
    observed("U40", "the patch that is written", "as_optimised", "red_and_blue_exchanged"),
    observed("U42", "import of src.evaluate from the root, as the README", "ends_with"),
    observed(
        "U43",
        "ImageLabelDataset with --add_backdoor",
        "ends_with",
        files=(VALIDATION,),
    ),
    observed("U44", "apply_trigger at a random place with its patch", "ends_with"),
    observed("U45", "tokens of a long caption", "ends", "tokens"),
    observed("U46", "first patches of two runs with one seed", "equal"),
    observed("U47", "get_loss on a batch of 32", "of_32_ends_with"),
    observed("U48", "labels.csv", "images_of_134_517_638_639", files=(VALIDATION,)),
)

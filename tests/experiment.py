"""The tiny experiment that tests run, and where real images are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

REAL_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

# What a cell took: other numbers in every run.
COST_COLUMNS = ["fit_seconds", "score_ms_per_image", "peak_memory_mb"]

TINY: dict[str, Any] = {
    "default_profile": "tiny",
    "matrix": {
        "attacks": ["none", "badencoder"],
        "defenses": [
            {"defense": "dede", "label": "dede-id", "auxiliary": "in-distribution"},
            {"defense": "dede", "label": "dede-ood", "auxiliary": "out-of-distribution"},
            "knn-distance",
            "mahalanobis",
            "isolation-forest",
        ],
    },
    "protocol": {"bootstrap_draws": 50, "figure_images": 2},
    "datasets": {"digits": {"source": "digits"}, "photographs": {"source": "photographs"}},
    "profiles": {
        "tiny": {
            "dataset": "digits",
            "out_of_distribution": "photographs",
            "encoder": {
                "architecture": "resnet-narrow",
                "settings": {"width": 4, "stem_stride": 2},
            },
            "pretraining": {"epochs": 1, "batch_size": 64},
            "clip": {
                "encoder": {
                    "architecture": "template-clip",
                    "settings": {
                        "width": 4,
                        "embedding_dim": 16,
                        "text_width": 16,
                        "text_layers": 1,
                        "text_heads": 2,
                    },
                },
                "pretraining": {
                    "epochs": 1,
                    "batch_size": 256,
                    "learning_rate": 0.002,
                    "warmup_epochs": 0,
                },
            },
            "downstreams": [{"dataset": "digits", "target": 0}],
            "splits": {
                "calibration": 60,
                "validation": 60,
                "references": 60,
                "shadow": 100,
                "auxiliary": 100,
                "base": 20,
                "suspicious": 100,
            },
            "probe": {"epochs": 2, "neighbours": 10},
            "test_images": 80,
            "threads": 1,
            "overrides": {
                "badencoder": {
                    "epochs": 2,
                    "batch_size": 50,
                    "learning_rate": 0.02,
                    "reference_views": 4,
                },
                "drupe": {
                    "epochs": 3,
                    "batch_size": 50,
                    "learning_rate": 0.02,
                    "reference_views": 4,
                    "stage1_last_epoch": 2,
                    "controller_first_epoch": 3,
                },
                # About ten of the attacker's images are of class 0; this poisons six.
                "sslbkd": {"poison_rate": 0.005},
                "ctrl": {
                    "poison_rate": 0.005,
                    "recipe": {"epochs": 1, "batch_size": 256, "warmup_epochs": 0},
                },
                "clip-backdoor": {
                    "poison_rate": 0.02,
                    "recipe": {"epochs": 1, "batch_size": 256, "learning_rate": 0.01},
                },
                "badclip": {
                    "poison_rate": 0.02,
                    "patch_size": 8,
                    "patch_epochs": 1,
                    "patch_batch_size": 32,
                    "recipe": {
                        "epochs": 1,
                        "batch_size": 256,
                        "learning_rate": 0.001,
                        "warmup_epochs": 0,
                    },
                },
                "dede": {
                    "width": 12,
                    "encoder_depth": 1,
                    "decoder_depth": 1,
                    "epochs": 1,
                    "batch_size": 45,
                },
            },
        }
    },
}


def real_images(name: str) -> Path:
    """The folder of a real data set; the calling test is skipped where it is absent."""
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no real {name} images at ../shared/data/{name}")
    return folder

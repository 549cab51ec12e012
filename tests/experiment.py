"""The tiny experiment that tests run, and where real images are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

REAL_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

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

"""Equal bytes on an accelerator, run after run: for the harness, a scan and the authors' code."""

from __future__ import annotations

import os


def be_deterministic(device: str) -> None:
    """Make torch on ``device`` choose algorithms that give the same result each time.

    Convolutions and products compute in float32 where that is what is said, not in TF32, whatever
    the environment asks torch for: scores must not depend on batching. To be called before the
    first work on the device; on a CPU nothing is to do.
    """
    if device != "cuda":
        return
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)

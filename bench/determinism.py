"""Equal bytes run after run: for the harness, a scan and the authors' code."""

from __future__ import annotations

import os


def be_deterministic(device: str) -> None:
    """Make torch choose algorithms that give the same result each time, on the CPU and ``device``.

    Several threads of a CPU add up the gradient of an indexed tensor in the order in which they
    come to it, unless they are told not to. On an accelerator convolutions and products compute in
    float32 where that is what is said, not in TF32, whatever the environment asks torch for: scores
    must not depend on batching. To be called before the first work on the device.
    """
    import torch

    if device != "cuda":
        # What ``use_deterministic_algorithms`` does, without loading torch's compiler for seconds.
        torch.set_deterministic_debug_mode("warn")
        # Fresh memory would be filled, for the sake of code that reads what nobody wrote.
        torch.utils.deterministic.fill_uninitialized_memory = False
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False

from __future__ import annotations

import pytest
import torch

from bench.encoders.encoder import Encoder


@pytest.fixture
def encoder() -> Encoder:
    """A tiny encoder whose batch-norm statistics are not the trivial ones."""
    generator = torch.Generator().manual_seed(3)
    made = Encoder.initialise("resnet-narrow", {"width": 4}, generator=generator, image_size=16)
    with torch.no_grad():
        for name, buffer in made.network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    made.network.eval()
    return made


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(4))

"""Several threads give the same bits each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own: how torch computes is a setting of the whole process. The gradient of an
# indexed table is what threads of a CPU sum in the order in which they come to it.
SCRIPT = """
import torch
from bench.determinism import be_deterministic
torch.set_num_threads(4)
be_deterministic("cpu")
generator = torch.Generator().manual_seed(0)
rows = torch.randint(64, (4000,), generator=generator)
upstream = torch.randn(4000, 96, generator=generator)
seen = set()
for _ in range(40):
    table = torch.zeros(64, 96, requires_grad=True)
    table[rows].backward(upstream)
    seen.add(table.grad.numpy().tobytes())
print(len(seen))
"""

DECODER = """
import torch
from defenses._dede_model import DecoderModel, random_order
torch.set_num_threads(4)
torch.manual_seed(0)
model = DecoderModel(embedding_dim=8, width=96, encoder_depth=1, decoder_depth=1)
patches, embeddings = torch.randn(256, 64, 48), torch.randn(256, 8)
order = random_order(256, 64, torch.Generator().manual_seed(0))
seen = set()
for _ in range(12):
    model.zero_grad()
    model(patches, embeddings, order, 16).square().mean().backward()
    seen.add(b"".join(p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None))
print(len(seen))
"""


def different(script: str) -> int:
    """How many different results a script saw."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_gradients_of_indexed_tables_are_the_same_each_time():
    assert different(SCRIPT) == 1


def test_gradients_of_dedes_decoder_are_the_same_each_time():
    assert different(DECODER) == 1

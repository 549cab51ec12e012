"""DeDe with embeddings of one length: only their direction counts."""

from __future__ import annotations

import pytest
import torch
from test_dede import PooledPixels, noise, tiny, view_of

from defenses.dede import Dede
from defenses.dede_equal_length import DedeEqualLength


class Stretched(PooledPixels):
    """The same embeddings, a thousand times as long for images with a bright corner."""

    def forward(self, images):
        bright = images[:, 0, -1, -1] > 0.5
        return super().forward(images) * torch.where(bright, 1000.0, 1.0)[:, None]


def fitted(kind: type[Dede]) -> Dede:
    defense = kind(**tiny(epochs=10, learning_rate=0.01).parameters())
    defense.fit(view_of(noise(24), PooledPixels()))
    return defense


def scores(fitted: Dede, encoder: PooledPixels, images: torch.Tensor) -> torch.Tensor:
    copy = type(fitted)(**fitted.parameters())
    copy.load_state(fitted.state(), view_of(noise(24), encoder))
    return copy.score(images)


@pytest.mark.parametrize("embedding", ["own", "another"])
def test_a_score_does_not_depend_on_the_length_of_an_embedding(embedding):
    images = noise(12, seed=1).float() / 255
    for kind, same in ((DedeEqualLength, True), (Dede, False)):
        defense = fitted(kind)
        defense.embedding = embedding
        before, after = (scores(defense, e, images) for e in (PooledPixels(), Stretched()))
        assert torch.allclose(before, after, rtol=3e-6) == same


def test_training_does_not_depend_on_the_length_of_an_embedding():
    states = []
    for encoder in (PooledPixels(), Stretched()):
        defense = DedeEqualLength(**tiny().parameters())
        defense.fit(view_of(noise(24), encoder))
        states.append(defense.state())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-5)


def test_a_published_decoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint"):
        DedeEqualLength(checkpoint=tmp_path / "decoder.pth")

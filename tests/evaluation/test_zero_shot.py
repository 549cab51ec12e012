"""Zero-shot classification and the linear probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from bench.encoders.encoder import Encoder
from bench.evaluation.downstream import predict
from bench.evaluation.zero_shot import class_embeddings, train_linear_probe, zero_shot_predict

NAMES = ("cat", "dog", "frog")


class Letters:
    """A text tower whose embeddings count letters, at lengths that vary with the caption."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_text(self, captions):
        self.asked += captions
        rows = [[caption.count(letter) for letter in "catdogfr"] for caption in captions]
        return torch.tensor(rows).float() * len(captions[0])


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.from_numpy(data.data).float(), torch.from_numpy(data.target.astype(np.int64))


def test_class_embeddings_are_normalised_means_of_normalised_embeddings():
    templates = (lambda name: f"a {name}", lambda name: f"two {name}s, {name}s, {name}s")
    tower = Letters()
    result = class_embeddings(tower, NAMES, templates)
    for row, name in zip(result, NAMES, strict=True):
        each = [F.normalize(Letters().encode_text([t(name)]), dim=1) for t in templates]
        torch.testing.assert_close(row, F.normalize(sum(each), dim=1)[0])
    assert torch.allclose(result.norm(dim=1), torch.ones(3))
    assert len(tower.asked) == 6


def test_the_published_templates_are_the_default():
    tower = Letters()
    class_embeddings(tower, NAMES)
    assert len(tower.asked) == 3 * 80
    assert "a photo of a dog." in tower.asked


def test_an_encoders_text_tower_classifies_its_own_prompts():
    settings = {"width": 4, "text_width": 32, "text_heads": 2}
    generator = torch.Generator().manual_seed(0)
    text = Encoder.initialise("template-clip", settings, generator=generator).text
    classes = class_embeddings(text, NAMES, [lambda name: f"a photo of a {name}."])
    queries = text.encode_text([f"a photo of a {name}." for name in reversed(NAMES)])
    assert zero_shot_predict(queries, classes).tolist() == [2, 1, 0]


def test_zero_shot_takes_the_largest_cosine_whatever_the_length():
    classes = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    features = torch.tensor([[9.0, 1.0], [0.1, 0.1], [0.0, 5.0]])
    predicted = zero_shot_predict(features, classes)
    assert (predicted.tolist(), predicted.dtype) == ([0, 1, 1], torch.int64)


@pytest.mark.parametrize(("names", "templates"), [((), None), (NAMES, ())])
def test_nothing_to_embed_is_an_error(names, templates):
    with pytest.raises(ValueError, match="a class name and a template at least"):
        class_embeddings(Letters(), names, templates)


def test_linear_probe_is_scikit_learns_logistic_regression(digits):
    features, labels = digits[0][:600], digits[1][:600]
    features = features + 3 * torch.arange(64)  # standardising must see to this
    probe = train_linear_probe(features, labels, 10)
    deviation = features.std(0, correction=0)
    scaled = (features - features.mean(0)) / deviation.clamp_min(1e-9)
    theirs = LogisticRegression(C=0.316, max_iter=500, tol=1e-6).fit(scaled.numpy(), labels)
    expected = torch.from_numpy(theirs.predict_proba(scaled.numpy())).float()
    torch.testing.assert_close(probe(features).softmax(1), expected, rtol=0, atol=5e-3)


def test_linear_probe_generalises_is_frozen_and_repeatable(digits):
    features, labels = digits
    state = torch.get_rng_state()
    probe = train_linear_probe(features[:1200], labels[:1200], 10)
    again = train_linear_probe(features[:1200], labels[:1200], 10)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    accuracy = (predict(probe, features[1200:]) == labels[1200:]).float().mean()
    assert float(accuracy) > 0.88
    assert not any(parameter.requires_grad for parameter in probe.parameters())
    assert torch.equal(probe.weight, again.weight)
    assert torch.equal(probe.bias, again.bias)


def test_more_regularisation_gives_smaller_weights(digits):
    features, labels = digits
    free, held = (
        train_linear_probe(features, labels, 10, inverse_regularisation=value)
        for value in (1.0, 1e-3)
    )
    assert float(held.weight.norm()) < 0.5 * float(free.weight.norm())


def test_constant_features_and_absent_classes_do_no_harm(digits):
    features, labels = digits[0][:200].clone(), digits[1][:200]
    features[:, 5] = 7.0
    probe = train_linear_probe(features, labels, 12)
    assert torch.isfinite(probe.weight).all()
    assert float(probe.weight[:, 5].abs().max()) == 0
    assert probe(features).argmax(1).max() < 10


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1]), r"with labels \(N,\), got \(3, 2\) and \(2,\)"),
        (torch.tensor([0, 1, 4]), r"labels must be in \[0, 3\), got 0 to 4"),
    ],
)
def test_a_training_set_that_does_not_fit_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        train_linear_probe(torch.zeros(3, 2), labels, 3)

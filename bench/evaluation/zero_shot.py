"""What a CLIP encoder is used for: zero-shot classification, and a linear probe on its features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.data.captions import Template, prompt_templates
from bench.encoders.clip import TextTower
from bench.evaluation.nearest import check_training_set

__all__ = ["class_embeddings", "train_linear_probe", "zero_shot_predict"]

_PREDICT_BATCH = 8192


def class_embeddings(
    text_tower: TextTower, class_names: Sequence[str], templates: Sequence[Template] | None = None
) -> Tensor:
    """The zero-shot classifier: one text embedding per class, an ensemble over prompts.

    Radford et al. 2021, section 3.1.4: embeddings of unit length are averaged over the templates,
    and the mean is scaled to unit length.

    Parameters
    ----------
    text_tower
        Of an encoder (``encoder.text``).
    templates
        Class name -> caption; the 80 published ones by default.

    Returns
    -------
    Tensor
        float32 (C, D) of unit length, on the encoder's device.

    Raises
    ------
    ValueError
        When there is no class name or no template.
    """
    templates = prompt_templates() if templates is None else templates
    if not len(class_names) or not len(templates):
        raise ValueError("zero-shot classification needs a class name and a template at least")
    captions = [template(name) for name in class_names for template in templates]
    embeddings = functional.normalize(text_tower.encode_text(captions), dim=1)
    means = embeddings.unflatten(0, (len(class_names), len(templates))).mean(1)
    return functional.normalize(means, dim=1)


@torch.inference_mode()
def zero_shot_predict(features: Tensor, class_embeddings: Tensor) -> Tensor:
    """The class whose embedding has the largest cosine similarity.

    Parameters
    ----------
    features
        float32 (N, D) image embeddings of any length.
    class_embeddings
        float32 (C, D) of unit length, see :func:`class_embeddings`.

    Returns
    -------
    Tensor
        int64 (N,) on the CPU.
    """
    # The length of a feature changes no order, so it is left as it is.
    batches = features.split(_PREDICT_BATCH)
    device = class_embeddings.device
    return torch.cat([(batch.to(device) @ class_embeddings.T).argmax(1) for batch in batches]).cpu()


def train_linear_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    inverse_regularisation: float = 0.316,
    iterations: int = 200,
) -> nn.Module:
    """Multinomial logistic regression on frozen features with L-BFGS, as CLIP is evaluated.

    Radford et al. 2021, appendix A.3. The objective is scikit-learn's, the sum of cross entropies
    times ``inverse_regularisation`` plus half the squared weights, on features standardised with
    the mean and deviation of the training set; both are folded into the result. It is convex and
    starts from zero: nothing is drawn. BadCLIP's code uses AdamW instead.

    Parameters
    ----------
    features
        float32 (N, D) on the device to train on, not normalised.
    labels
        int64 (N,) in [0, ``classes``).
    inverse_regularisation
        C > 0; the default is that of CLIP's published example.
    iterations
        Most steps of L-BFGS.

    Returns
    -------
    torch.nn.Linear
        (N, D) raw features -> (N, ``classes``) logits; frozen, for
        :func:`bench.evaluation.downstream.predict`.

    Raises
    ------
    ValueError
        When features and labels do not match or a label is out of range.
    """
    check_training_set(features, labels, classes)
    features, labels = features.detach().float(), labels.to(features.device)
    mean, deviation = features.mean(0), features.std(0, correction=0)
    # A feature that never varies has no say.
    scale = torch.where(deviation > 0, 1 / deviation, 0.0)
    weight, bias = _logistic_regression(
        (features - mean) * scale, labels, classes, inverse_regularisation, iterations
    )
    probe = nn.utils.skip_init(nn.Linear, features.shape[1], classes, device=features.device)
    with torch.no_grad():
        probe.weight.copy_(weight * scale)
        probe.bias.copy_(bias - probe.weight @ mean)
    return probe.eval().requires_grad_(False)


def _logistic_regression(
    features: Tensor, labels: Tensor, classes: int, inverse_regularisation: float, iterations: int
) -> tuple[Tensor, Tensor]:
    weight = features.new_zeros(classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )
    strength = 0.5 / (inverse_regularisation * len(features))

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = functional.linear(features, weight, bias)
        loss = functional.cross_entropy(logits, labels) + strength * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return weight.detach(), bias.detach()

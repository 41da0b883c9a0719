"""Where in a picture the network sees its class: Grad-CAM.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization". With A the last feature map that still has places (N, h, w, C), and y_k the logit of the
class in question,

    weight of a channel   a_c = mean over places of dy_k / dA_c
    map                   relu(sum over channels of a_c * A_c)

Where the head is a global average and a linear layer, a_c is that layer's weight divided by h * w, and
this is the class activation map of Zhou et al. 2016.
"""

import numpy as np

from minitl.models import Classifier
from minitl.tensor import Tensor, Use, no_grad, record_uses


def activation_maps(model: Classifier, images: Tensor, classes: np.ndarray) -> np.ndarray:
    """Return for each picture how much each place speaks for a class: (N, h, w) float32, 0 to 1.

    images: prepared as for the network, (N, H, W, 3). classes: the class in question of each, (N,).
    The largest value of a picture is 1, or all are 0 where nothing speaks for the class. The model is
    used in evaluation mode and left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    try:
        with no_grad(), record_uses() as uses:
            model(images)
        last = max(i for i, use in enumerate(uses) if _has_places(use))
        features, logits = _replay(uses, last)
        seed = np.zeros(logits.shape, np.float32)
        seed[np.arange(len(classes)), classes] = 1
        logits.backward(seed)
    finally:
        model.train(was_training)
    assert features.grad is not None
    weights = features.grad.mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((weights * features.numpy()).sum(axis=3), 0)
    highest = maps.max(axis=(1, 2), keepdims=True)
    scaled: np.ndarray = maps / np.where(highest > 0, highest, 1)
    return scaled.astype(np.float32)


def _has_places(use: Use) -> bool:
    shape = use.result.shape
    return len(shape) == 4 and shape[1] * shape[2] > 1


def _replay(uses: list[Use], last: int) -> tuple[Tensor, Tensor]:
    """Repeat what follows the use number `last`, recording; return its result as a leaf, and the end."""
    features = Tensor(uses[last].result.data, requires_grad=True)
    again = {id(uses[last].result): features}
    result = features
    for use in uses[last + 1 :]:
        inputs = [None if t is None else again.get(id(t), t.detach()) for t in use.inputs]
        result = again[id(use.result)] = use.op.apply(*inputs, **use.options)
    return features, result

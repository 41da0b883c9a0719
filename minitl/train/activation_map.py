"""Where in a picture the network sees its class: Grad-CAM.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization". With A the last feature map that still has places (N, h, w, C), and y_k the logit of the
class in question,

    weight of a channel   a_c = mean over places of dy_k / dA_c
    map                   relu(sum over channels of a_c * A_c)

Where the head is a global average and a linear layer, a_c is that layer's weight divided by h * w, and
this is the class activation map of Zhou et al. 2016. A network that flattens the picture at once has no
other map than the picture itself.
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
        maps = [images, *(use.result for use in uses)]
        last = max((i for i, tensor in enumerate(maps) if _has_places(tensor)), default=0)
        features, logits = _replay(maps[last], uses[last:])
        seed = np.zeros(logits.shape, np.float32)
        seed[np.arange(len(classes)), classes] = 1
        logits.backward(seed)
    finally:
        model.train(was_training)
    assert features.grad is not None
    weights = features.grad.mean(axis=(1, 2), keepdims=True)
    heat = np.maximum((weights * features.numpy()).sum(axis=3), 0)
    highest = heat.max(axis=(1, 2), keepdims=True)
    scaled: np.ndarray = heat / np.where(highest > 0, highest, 1)
    return scaled.astype(np.float32)


def _has_places(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.shape[1] * tensor.shape[2] > 1


def _replay(last: Tensor, uses: list[Use]) -> tuple[Tensor, Tensor]:
    """Repeat what follows a tensor, recording; return it as a leaf, and the end."""
    features = Tensor(last.data, requires_grad=True)
    again = {id(last): features}
    result = features
    for use in uses:
        inputs = [None if t is None else again.get(id(t), t.detach()) for t in use.inputs]
        result = again[id(use.result)] = use.op.apply(*inputs, **use.options)
    return features, result

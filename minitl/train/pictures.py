"""Small pictures inside HTML: what the network saw, and where it saw its class."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from minitl.data.decode import decode
from minitl.data.preprocessing import Preprocessing
from minitl.models import Classifier
from minitl.tensor import Tensor
from minitl.train.activation_map import activation_maps

SIDE = 160  # pixels, at most


def overlaid(crop: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend a picture (H, W, 3) uint8 with its activation map (h, w), enlarged and coloured."""
    from matplotlib import colormaps

    height, width = crop.shape[:2]
    enlarged = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))
    colours = colormaps["inferno"](enlarged)[..., :3] * 255
    gray = crop.mean(axis=2, keepdims=True)
    blended: np.ndarray = (0.45 * gray + 0.55 * colours).round().astype(np.uint8)
    return blended


def jpeg(array: np.ndarray) -> bytes:
    """Return a square picture (s, s, 3) uint8 as JPEG, at most SIDE pixels wide."""
    image = Image.fromarray(np.ascontiguousarray(array))
    if image.width > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "png") -> str:
    """Return a picture file's content as an address that an HTML page can hold."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def seen_and_mapped(
    model: Classifier, root: Path, paths: Sequence[str], outputs: np.ndarray
) -> list[dict[str, str]]:
    """Return {"path", "seen", "map"} of pictures: as the network saw it, and where it saw an output's cause.

    outputs: which output of the network, for each picture. Raises UserError for one that cannot be read.
    """
    if not len(paths):
        return []
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    crops = [preprocessing.evaluation_crop(decode(root / path)) for path in paths]
    maps = activation_maps(model, Tensor(preprocessing.normalise(np.stack(crops))), outputs)
    return [
        {
            "path": path,
            "seen": data_uri(jpeg(crop), "jpeg"),
            "map": data_uri(jpeg(overlaid(crop, heat)), "jpeg"),
        }
        for path, crop, heat in zip(paths, crops, maps, strict=True)
    ]


__all__ = ["SIDE", "data_uri", "jpeg", "overlaid", "seen_and_mapped"]

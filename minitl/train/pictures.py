"""Small pictures inside HTML: what the network saw, and where it saw its class."""

import base64
import io

import numpy as np
from PIL import Image

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


__all__ = ["SIDE", "data_uri", "jpeg", "overlaid"]

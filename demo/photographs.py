"""Photographs that the demonstration classifies, and views of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
MARGIN = 256 / 224  # short side of a photograph, to that of its views

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def read(folder: Path | None) -> list[Array]:
    """Colour photographs, uint8 (height, width, 3): a folder's, or those that are shipped."""
    if folder is not None:
        known = Image.registered_extensions()
        paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in known]
        if not paths:
            sys.exit(f"{folder}: there are no pictures in it")
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    import skimage.data  # not needed for a folder
    from sklearn.datasets import load_sample_images

    images = [getattr(skimage.data, name)() for name in SKIMAGE]
    images += [skimage.data.stereo_motorcycle()[0]]
    return images + list(load_sample_images().images)


def views(image: Array, size: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Corners and centre, each also mirrored: ten of float32 (3, size, size), 0 to 255."""
    height, width = image.shape[:2]
    scale = MARGIN * size / min(height, width)
    shape = (round(width * scale), round(height * scale))
    resized = Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR)
    down, right = resized.height - size, resized.width - size
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    pixels = np.asarray(resized, np.float32).transpose(2, 0, 1)
    crops = [pixels[:, y : y + size, x : x + size] for y, x in corners]
    return [one.copy() for crop in crops for one in (crop, crop[:, :, ::-1])]

"""Dead leaves: pictures of opaque shapes laid over each other, made from nothing.

After Lee, Mumford and Huang, Occlusion models for natural images (IJCV 2001): radii by a density
proportional to r^-3 give the edges and the spectrum of photographs at all scales. Each shape has a
colour, linear shading and a texture whose amplitude falls as 1 / frequency. Needs numpy alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

RADII = 0.04, 0.5  # least and most, of the geometric mean of a picture's sides
SHAPES = 70  # in a picture of 32 x 32; their number grows with the pixels to the power below
GROWTH = 3 / 8
ELLIPSES = 0.6  # of the shapes; the others are rectangles
CORNER = 0.9  # half the side of a rectangle, in radii
STRETCH = 0.5  # standard deviation of the logarithm of the aspect
SHADING = 0.08  # standard deviation of a shape's slopes, over a radius; black to white is 1
TEXTURE = 0.10  # of a shape's texture: the standard deviation is the size of a Gaussian of this
BRIGHTNESS = 0.47, 0.12  # of pictures: mean and standard deviation
CONTRAST = 0.5, 1.3  # of pictures: least and most
LUMINANCE = 0.20  # standard deviation of the colours of a picture of contrast 1
CHROMA = np.array([[0.10, 0.0, -0.10], [0.03, -0.06, 0.03]], np.float32)  # of R, G, B
CHROMA_OTHER = 0.08  # of each channel where there are not three
TEXTURES = 8  # that all pictures share, each at a place, turned and mirrored in its own way
SPECTRA = 0.8, 1.5  # least and most exponent of the textures


def dead_leaves(
    count: int,
    height: int,
    width: int,
    channels: int = 3,
    *,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Pictures of dead leaves, uint8 (count, channels, height, width).

    Args:
        count: of the pictures.
        height: in pixels.
        width: in pixels.
        channels: 3 are red, green and blue; others are one brightness with colours of their own.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    textures = _textures(rng, height, width)
    pictures = np.empty((count, channels, height, width), np.uint8)
    for i in range(count):
        picture = _picture(rng, channels, textures, height, width)
        pictures[i] = np.clip(picture * 255 + 0.5, 0, 255)
    return pictures


def _picture(
    rng: np.random.Generator, channels: int, textures: Pixels, height: int, width: int
) -> Pixels:
    """One picture (channels, height, width), 0 is black and 1 white, a little beyond both too."""
    size = math.sqrt(height * width)
    shapes = round(SHAPES * (height * width / 32**2) ** GROWTH)
    least, most = RADII
    # The inverse of the distribution function of a density proportional to r^-3.
    radii = size / np.sqrt(rng.random(shapes) * (least**-2 - most**-2) + most**-2)
    colours = _colours(rng, shapes + 1, channels)
    aspects = np.exp(rng.normal(0, STRETCH, shapes))
    angles = rng.uniform(0, np.pi, shapes)
    places = rng.uniform(-0.1, 1.1, (shapes, 2)) * (height, width)
    slopes = rng.normal(0, SHADING, (shapes, 2))
    strengths = np.abs(rng.normal(0, TEXTURE, shapes))
    round_ones = rng.random(shapes) < ELLIPSES
    own = _own_texture(rng, textures, height, width)
    picture = np.empty((channels, height, width), np.float32)
    picture[:] = colours[-1][:, None, None]
    for k in range(shapes):
        _lay(
            picture,
            own[k & 1],
            places[k],
            (radii[k] / aspects[k], radii[k] * aspects[k]),
            angles[k],
            bool(round_ones[k]),
            colours[k],
            slopes[k],
            float(strengths[k]),
        )
    return picture


def _lay(
    picture: Pixels,
    texture: Pixels,
    place: NDArray[np.float64],
    radii: tuple[float, float],
    angle: float,
    is_ellipse: bool,
    colour: Pixels,
    slopes: NDArray[np.float64],
    strength: float,
) -> None:
    """Lay one shape over a picture, within the rectangle that bounds it; edges are smooth."""
    cos, sin = math.cos(angle), math.sin(angle)
    across, along = radii
    if is_ellipse:
        reach = math.hypot(across * sin, along * cos), math.hypot(across * cos, along * sin)
    else:
        across, along = CORNER * across, CORNER * along
        reach = across * abs(sin) + along * abs(cos), across * abs(cos) + along * abs(sin)
    (top, bottom), (left, right) = (
        (max(0, math.floor(c - r)), min(n, math.ceil(c + r) + 1))
        for c, r, n in zip(place, reach, picture.shape[1:], strict=True)
    )
    if top >= bottom or left >= right:
        return
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(place[0])
    x = np.arange(left, right, dtype=np.float32) - np.float32(place[1])
    u = y * np.float32(sin / across) + x * np.float32(cos / across)
    v = y * np.float32(cos / along) - x * np.float32(sin / along)
    tone = texture[top:bottom, left:right] * np.float32(strength)
    tone += u * np.float32(slopes[0]) + v * np.float32(slopes[1])
    if is_ellipse:
        u *= u
        v *= v
        u += v
        distance = np.sqrt(u, out=u)
    else:
        distance = np.maximum(np.abs(u, out=u), np.abs(v, out=v), out=u)
    # What a pixel shows of the shape: its signed distance from the edge in pixels, about.
    cover = (1 - distance) * np.float32(min(across, along))
    cover += np.float32(0.5)
    np.clip(cover, 0, 1, out=cover)
    part = picture[:, top:bottom, left:right]
    over = tone - part
    over += colour[:, None, None]
    over *= cover
    part += over


def _colours(rng: np.random.Generator, count: int, channels: int) -> Pixels:
    """Colours of one picture (count, channels), 0 to 1."""
    mean, contrast = rng.normal(*BRIGHTNESS), rng.uniform(*CONTRAST)
    chroma = CHROMA if channels == 3 else CHROMA_OTHER * np.eye(channels)
    if channels == 1:
        chroma = np.zeros((1, 1))
    colours = rng.normal(0, LUMINANCE, (count, 1)) + rng.normal(0, 1, (count, len(chroma))) @ chroma
    return np.clip(mean + contrast * colours, 0, 1).astype(np.float32)


def _textures(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Noise (TEXTURES, height, width) of standard deviation 1, without a seam at its borders."""
    made = np.empty((TEXTURES, height, width), np.float32)
    for one in made:
        one[:] = _noise(rng, (height, width), rng.uniform(*SPECTRA))
    return made


def _noise(rng: np.random.Generator, shape: tuple[int, ...], exponent: float) -> Pixels:
    """Noise whose amplitude falls as 1 / frequency^exponent; mean 0, standard deviation 1."""
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    frequency.flat[0] = np.inf  # no mean
    spectrum = np.fft.rfftn(rng.normal(size=shape)) / frequency**exponent
    noise = np.fft.irfftn(spectrum, shape, axes=range(len(shape)))
    return np.asarray(noise / (noise.std() or 1.0), np.float32)


def pink_noise(shape: tuple[int, ...], *, seed: int = 0) -> Pixels:
    """Noise of mean 0 and standard deviation 1, float32, by samples and channels.

    Args:
        shape: (samples, channels, ...); over what is behind the channels the amplitude falls as
            1 / frequency, and noise is white where there is nothing.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    if len(shape) < 3 or math.prod(shape[2:]) < 2:
        return rng.standard_normal(shape, np.float32)
    rest = shape[2:]
    made = [_noise(rng, rest, 1.0) for _ in range(math.prod(shape[:2]))]
    return np.asarray(made, np.float32).reshape(shape)


def _own_texture(rng: np.random.Generator, textures: Pixels, height: int, width: int) -> Pixels:
    """Two of the textures, moved and mirrored, (2, height, width)."""
    down, right = int(rng.integers(height)), int(rng.integers(width))
    chosen = rng.choice(len(textures), 2, replace=False)
    own = np.roll(textures[chosen], (down, right), (1, 2))
    mirror = rng.random(2) < 0.5
    return own[:, :: -1 if mirror[0] else 1, :: -1 if mirror[1] else 1]

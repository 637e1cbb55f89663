"""Data that the command line names: arrays, photographs, what a function of the user returns.

Needs Pillow for images.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tqcodec.common import foreign, npz, streams
from tqcodec.common.checks import kind_of
from tqcodec.errors import EncodeError, EncodeWarning, TQCError
from tqcodec.torch import user_code
from tqcodec.torch.batches import check_several, length_of, samples_of
from tqcodec.torch.synthetic.file import batches_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
PICTURES = "size", "mean", "std"  # options that speak of pictures
INPUT_NAMES = ("images", "x")
LABEL_NAMES = ("labels", "y")
# Of pictures, where nobody says: side in pixels of image files, what is taken off, divided by.
SIDE, MEAN, STD = 224, 0.0, 1.0
MOST_SIZE = 1 << 14  # of the side of an image: a gigabyte each as numbers

Batch = tuple[Any, Tensor | None]  # inputs, labels


@dataclass(frozen=True)
class DataOptions:
    """How data is read.

    Attributes:
        images: most samples; all if None.
        batch: samples in a batch.
        size: side in pixels that image files are scaled and cropped to; 224 if None.
        mean: of the channels, taken off; one for each channel, or one for all; 0 if None.
        std: of the channels, divided by; 1 if None.
        shuffled: samples of arrays and files are drawn at random, always in the same way.
        redrawn: in each pass they come in another order, by torch's global generator.
    """

    images: int | None = None
    batch: int = 32
    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    shuffled: bool = False
    redrawn: bool = False

    def __post_init__(self) -> None:
        if min(n for n in (self.batch, self.size, self.images, 1) if n is not None) < 1:
            raise EncodeError("images, batch and size must be at least 1")
        if self.side > MOST_SIZE:
            raise EncodeError(f"size must be at most {MOST_SIZE}")
        mean, std = self.normalisation
        if not all(math.isfinite(x) for x in (*mean, *std)) or 0 in std:
            raise EncodeError("mean and std must be finite, std not 0")

    @property
    def side(self) -> int:
        """Of pictures, in pixels."""
        return SIDE if self.size is None else self.size

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and std."""
        mean, std = self.mean, self.std
        return (MEAN,) if mean is None else mean, (STD,) if std is None else std


@dataclass(frozen=True)
class Data:
    """Batches that can be gone through again.

    Attributes:
        read: starts a pass; each batch is (inputs, labels or None).
        batches: their number, 0 where it is not known.
        synthetic: whether the inputs were made up.
    """

    read: Callable[[], Iterator[Batch]]
    batches: int = 0
    synthetic: bool = False

    def __iter__(self) -> Iterator[Batch]:
        return self.read()

    def __len__(self) -> int:
        return self.batches


def load_batches(spec: str, options: DataOptions) -> Data:
    """Batches (inputs, labels or None) of data that `spec` names.

    Arrays (.npz: `images` or `x` or the first one, with labels in `labels` or `y`): uint8 images
    (N, height, width, 3) or (N, channels, height, width) are normalised to float32 (N, channels,
    ...), (x - mean) / std; other arrays are taken as they are. Image files of a folder or .zip, in
    the order of their names: scaled so that the short side is `size`, cropped in the middle,
    normalised. FILE.py:FUNCTION, and made-up inputs (`synthetic.file`): an iterable of batches;
    `batch`, `size`, `mean`, `std`, `shuffled` are its own affair.

    Raises:
        EncodeError: nothing of these, nothing in it, or a size, mean or std that would be ignored.
        OSError: it cannot be read.

    Warns:
        EncodeWarning: pictures whose mean or std is not given.
    """
    if ".py:" in spec:
        return _from_function(spec, options)
    path = Path(spec)
    if path.suffix == ".npz":
        return _from_arrays(path, options)
    if path.is_dir():
        root = path.absolute()  # they are read while the network runs, which may change the folder
        files = {p.relative_to(root).as_posix(): p.read_bytes for p in root.rglob("*")}
        return _from_images(spec, files, options)
    if path.suffix == ".zip":
        with streams.naming(spec):
            try:
                archive = zipfile.ZipFile(path)
            except Exception as error:  # as of `npz.read`
                if isinstance(error, OSError):
                    raise
                raise EncodeError(f"{spec}: not a .zip file ({foreign.message(error)})") from error
        return _from_images(spec, {n: _reader(archive, n) for n in archive.namelist()}, options)
    with streams.naming(spec):
        path.stat()
    raise EncodeError(f"{spec}: not data of a known kind (.npz, folder, .zip, FILE.py:FUNCTION)")


def said_of(spec: str, options: DataOptions, *used: str) -> None:
    """Check what is said of pictures against what the data is; every way to read data does.

    Args:
        spec: name of the data, for messages.
        options: how it is read.
        used: those of `size`, `mean` and `std` that are used.

    Raises:
        EncodeError: another one is given.

    Warns:
        EncodeWarning: mean or std is used and not given.
    """
    for name in PICTURES:
        if name not in used and getattr(options, name) is not None:
            own = "image files are scaled" if name == "size" else "pictures of uint8 are normalised"
            raise EncodeError(f"{spec}: {name} would be ignored, only {own}: leave it out")
    warn_of_normalisation(f"{spec}: pictures", options.mean, options.std, used)


def warn_of_normalisation(
    what: str, mean: object, std: object, used: Sequence[str] = PICTURES
) -> None:
    """An EncodeWarning where pictures are normalised by numbers that nobody gave."""
    given = {"mean": (mean, MEAN), "std": (std, STD)}
    missing = {name: number for name, (value, number) in given.items() if value is None}
    numbers = [f"{name} {number:g}" for name, number in missing.items() if name in used]
    if numbers:
        warnings.warn(
            f"{what} of 0 to 255 are normalised by {' and '.join(numbers)}, as none is given: "
            "give those that the network was trained with",
            EncodeWarning,
            stacklevel=3,
        )


def _from_function(spec: str, options: DataOptions) -> Data:
    said_of(spec, options)
    found = user_code.call(spec)
    if not isinstance(found, Iterable):
        raise EncodeError(f"{spec} returned {kind_of(found)}, not an iterable of batches")
    check_several(found, f"what {spec} returned")

    unread = [found]

    def read() -> Iterator[Batch]:
        # What can be gone through only once is asked for anew.
        again = user_code.call(spec) if isinstance(found, Iterator) and not unread else found
        unread.clear()
        yield from _limited(map(_pair, _told(spec, again)), options.images)

    return Data(read, (length_of(found) or 0) if options.images is None else 0)


def _pair(batch: Any) -> Batch:
    pair = isinstance(batch, (tuple, list)) and len(batch) > 1
    inputs, labels = (batch[0], batch[1]) if pair else (batch, None)
    return inputs[0] if isinstance(inputs, (tuple, list)) else inputs, labels


def _limited(batches: Iterable[Batch], most: int | None) -> Iterator[Batch]:
    """The first samples, all if `most` is None."""
    left = most
    for inputs, labels in batches:
        if left is not None:
            inputs, labels = _shortened(inputs, left), _shortened(labels, left)
            left -= samples_of(inputs)
        yield inputs, labels
        if left is not None and left <= 0:
            return


def made_up(batches: Iterable[Any], options: DataOptions) -> Data:
    """Batches of `synthetic_inputs` as data."""
    found = list(_limited(((batch, None) for batch in batches), options.images))
    return Data(lambda: iter(found), len(found), synthetic=True)


def _told(spec: str, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; what goes wrong in making them is the fault of `spec`, not of the network."""
    try:
        yield from batches
    except TQCError:
        raise
    except Exception as error:
        raise EncodeError(f"{spec}: {foreign.described(error)}") from error


def _shortened(value: Any, most: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(part, most) for name, part in value.items()}
    return value[:most] if isinstance(value, Tensor) and value.ndim else value


def _from_arrays(path: Path, options: DataOptions) -> Data:
    arrays = npz.read(path)
    made = batches_of(path, arrays)
    if made is not None:
        said_of(str(path), options)
        return made_up(made, options)
    own = next((n for n in arrays if n not in LABEL_NAMES), None)
    name = next((n for n in INPUT_NAMES if n in arrays), own)
    if name is None:
        raise EncodeError(f"{path}: no array but labels" if arrays else f"{path}: no array")
    images = _of_torch(path, name, arrays[name])
    if images.ndim == 0 or len(images) == 0:
        raise EncodeError(f"{path}: array {name!r} holds no samples")
    label = next((n for n in LABEL_NAMES if n in arrays), None)
    labels = None if label is None else _of_torch(path, label, arrays[label])
    if labels is not None and (labels.ndim == 0 or len(labels) != len(images)):
        raise EncodeError(f"{path}: {len(images)} samples, but labels of shape {labels.shape}")
    if _is_image(images):
        _check_channels(str(path), _channels_first(images[:1]).shape[1], options)
    said_of(str(path), options, *(("mean", "std") if _is_image(images) else ()))
    order = _order(len(images), options)

    def read() -> Iterator[Batch]:
        for chosen in _chosen(order, options):
            x = images[chosen]
            part = (
                _normalised(_channels_first(x), options)
                if _is_image(x)
                else torch.tensor(x, device="cpu")
            )
            yield part, None if labels is None else torch.tensor(labels[chosen], device="cpu")

    return Data(read, math.ceil(len(order) / options.batch))


def _of_torch(path: Path, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """An array of numbers as torch takes it, in the byte order of the machine.

    Raises:
        EncodeError: it has none, or of a type that torch does not know.
    """
    kind = array.dtype
    if kind.kind not in "fiu" or kind.itemsize > 8:
        raise EncodeError(f"{path}: array {name!r} is of type {kind}, not of integers or floats")
    return array.astype(kind.newbyteorder("="), copy=False)


def _order(count: int, options: DataOptions) -> NDArray[np.intp]:
    """Indices of the samples that are read, in the order in which they are."""
    shuffled = np.random.default_rng(0).permutation(count)
    return (shuffled if options.shuffled else np.arange(count))[: options.images]


def _chosen(order: NDArray[np.intp], options: DataOptions) -> Iterator[NDArray[np.intp]]:
    """Indices of the samples of each batch of one pass."""
    if options.redrawn:
        order = order[torch.randperm(len(order), device="cpu").numpy()]
    for start in range(0, len(order), options.batch):
        yield order[start : start + options.batch]


def _is_image(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    last = images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 3, 4)
    return np.moveaxis(images, 3, 1) if last else images


def _from_images(spec: str, files: dict[str, Callable[[], bytes]], options: DataOptions) -> Data:
    # macOS leaves beside each file one of this name, which is no picture.
    pictures = (n for n in files if not n.rpartition("/")[2].startswith("._"))
    found = sorted(n for n in pictures if n.lower().endswith(IMAGE_SUFFIXES))
    order = _order(len(found), options)
    if not len(order):
        raise EncodeError(f"{spec}: no image files ({' '.join(IMAGE_SUFFIXES)})")
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise EncodeError(f"{spec}: images need Pillow: pip install pillow") from error
    _check_channels(spec, 3, options)
    said_of(spec, options, *PICTURES)

    def read() -> Iterator[Batch]:
        for chosen in _chosen(order, options):
            names = [found[i] for i in chosen]
            pixels = [_pixels(f"{spec}: {n}", files[n], options.side) for n in names]
            yield _normalised(np.moveaxis(np.stack(pixels), 3, 1), options), None

    return Data(read, math.ceil(len(order) / options.batch))


def _reader(archive: zipfile.ZipFile, name: str) -> Callable[[], bytes]:
    return lambda: archive.read(name)


def _pixels(name: str, read: Callable[[], bytes], size: int) -> NDArray[np.uint8]:
    """Pixels (size, size, 3) of an image file."""
    from PIL import Image, UnidentifiedImageError

    try:
        file = Image.open(io.BytesIO(read()))
        deep = file.mode.startswith(("I", "F"))  # which Pillow would cut off at 255
        image = (Image.fromarray(_eight_bits(file)) if deep else file).convert("RGB")
    except UnidentifiedImageError as error:
        raise EncodeError(f"{name}: not an image of a kind that Pillow knows") from error
    except Exception as error:  # damaged files make Pillow and zipfile raise anything
        raise EncodeError(f"{name}: not an image ({foreign.message(error)})") from error
    if image.size != (size, size):
        # The square in the middle alone is scaled: one side may be very long.
        scale = size / min(image.size)
        width, height = (max(size, round(n * scale)) for n in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        across, down = image.size[0] / width, image.size[1] / height
        right = min((left + size) * across, image.size[0])
        bottom = min((top + size) * down, image.size[1])
        box = (left * across, top * down, right, bottom)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(image)


def _eight_bits(image: Any) -> NDArray[np.uint8]:
    """Grey of 16 bits as 8.

    Raises:
        ValueError: numbers of another scale.
    """
    pixels = np.asarray(image)
    if image.mode.startswith("I;16") or image.format == "PNG":  # mode "I" with older Pillows
        return (pixels >> 8).astype(np.uint8)
    if not ((pixels == np.floor(pixels)) & (pixels >= 0) & (pixels <= 255)).all():
        raise ValueError(f"pixels of {pixels.dtype}, not whole and 0 to 255: give them as an .npz")
    return pixels.astype(np.uint8)


def _check_channels(spec: str, channels: int, options: DataOptions) -> None:
    for name, values in zip(("mean", "std"), options.normalisation, strict=True):
        if len(values) not in (1, channels):
            raise EncodeError(f"{spec}: {channels} channels, but {len(values)} values of {name}")


def _normalised(images: NDArray[Any], options: DataOptions) -> Tensor:
    mean, std = (torch.tensor(x, device="cpu").view(-1, 1, 1) for x in options.normalisation)
    return (torch.from_numpy(np.ascontiguousarray(images)).float() - mean) / std

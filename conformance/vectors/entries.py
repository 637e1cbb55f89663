"""Entries of the directory (4.3, 4.4): names, shapes, ties, bundles, numbers of segments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from layout.file import ABSENT, PLANES, TRANSFORM, File, Tensor, segment
from layout.numbers import FLOATS
from layout.planes import Part, block
from layout.transform import IN, OUT, Transform

from vectors.case import Case, accept, reject
from vectors.common import ANY, NOTHING, matrix, one, transform_file

PART = Part("U8", [7, 8], 8)


def cases() -> Iterator[Case]:
    """All vectors of these sections."""
    yield from _names()
    yield from _shapes()
    yield from _ties()
    yield from _bundles()
    yield from _segments()
    yield from _limits()


def _names() -> Iterator[Case]:
    names = {
        "path": "../../etc/passwd",
        "absolute-path": "/dev/null",
        "drive": "C:\\con",
        "nul": "a\0b",
        "line-feed": "a\nb",
        "non-bmp": "\U0001f600",
        "bom": "\ufeffa",
        "space": " ",
        "proto": "__proto__",
        "longest": "n" * 4096,
        "longest-utf8": "\u00e9" * 2048,
    }
    for what, name in names.items():
        text = f"a name: {what.replace('-', ' ')}"
        yield accept(f"name-{what}", "4.3", text, File([one(name=name)]))
    text = "names that only differ in case or in their Unicode form"
    alike = ["a", "A", "\u00e9", "e\u0301", "a\0", "a "]
    tensors = [one(elements=bytes([i]), name=name) for i, name in enumerate(alike)]
    yield accept("names-alike", "4.3", text, File(tensors))
    text = "tensors in an order that is not that of their names, some of which look like numbers"
    tensors = [one(elements=bytes([i]), name=name) for i, name in enumerate(["b", "10", "9", "a"])]
    yield accept("order-of-tensors", "4.3", text, File(tensors))
    yield reject("directory.name", "4.3", "two tensors of one name", File([one(), one()]))
    yield reject("directory.name@empty", "4.3", "an empty name", File([one(name="")]))
    for what, name in {"long": "n" * 4097, "long-utf8": "\u00e9" * 2049}.items():
        text = f"a name of {len(name.encode())} bytes"
        yield reject(f"directory.name@{what}", "4.3", text, File([one(name=name)]))
    text = "a tied tensor has the name of its twin"
    yield reject("directory.name@tied", "4.3", text, File([one(), one(same_as=0)]))


def _shapes() -> Iterator[Case]:
    yield accept("scalar", "4.3", "a shape of no dimensions", File([one(shape=())]))
    shape = (1, 2, *[1] * 13, 3)
    text = "16 dimensions"
    yield accept("dimensions-16", "4.3", text, File([one(elements=b"abcdef", shape=shape)]))
    empty: dict[str, tuple[int, ...]] = {
        "empty": (0,),
        "empty-2d": (3, 0),
        "empty-huge": (0, 1 << 48),
        "empty-huge-twice": (1 << 24, 0, 1 << 24),
    }
    for what, shape in empty.items():
        for coding, name in ((0, "raw"), (PLANES, "planes")):
            tensor = Tensor("t", "F32", shape, b"", coding, [])
            yield accept(f"{name}-{what}", "4.3", f"{name}, shape {shape}", File([tensor]))
    text = "an empty tensor whose entry has no `segments`"
    tensor = Tensor("t", "F32", (0,), b"", 0, [], entry={"segments": ABSENT})
    yield accept("no-segments", "4.3", text, File([tensor]))
    wrong: dict[str, tuple[int, ...]] = {
        "17-dimensions": (1,) * 17,
        "elements": ((1 << 24) + 1, 1 << 24),
        "elements-wrap": (1 << 32, 1 << 32),
        "elements-wrap-to-1": (1 << 32, 1 << 32, 3),
        "empty": (0, 1 << 48, 2),
        "empty-wrap": (1 << 32, 0, 1 << 32),
        "17-dimensions-empty": (0,) * 17,
    }
    for what, shape in wrong.items():
        text = f"shape {shape}"
        tensor = Tensor("t", "U8", shape, b"", 0, [])
        yield reject(f"directory.shape@{what}", "4.3", text, File([tensor]))


def _ties() -> Iterator[Case]:
    first = one(elements=b"\1\2")
    text = "two tensors tied to a RAW one"
    ties = [one(name=name, same_as=0) for name in ("u", "v")]
    yield accept(
        "tied-to-raw", "4.3", text, File([first, ties[0], one(elements=b"\3", name="w"), ties[1]])
    )
    text = "a tensor tied to a transform-coded one"
    coded = matrix([1, -2]).tensor([ANY])
    yield accept("tied-to-transform", "4.3", text, File([coded, ties[0]], [ANY]))
    text = "a tensor tied to one in a bundle; the bundle holds it once"
    parts = [PART, Part("U8", [9], 8)]
    tensors = [PART.tensor(bundle=0), ties[0], parts[1].tensor(name="w", bundle=0)]
    yield accept("tied-to-bundled", "4.3", text, File(tensors, bundles=[block(parts)]))
    text = "a tensor tied to an empty one"
    empty = Tensor("t", "F64", (2, 0), b"", 0, [])
    yield accept("tied-to-empty", "4.3", text, File([empty, ties[0]]))
    text = "a tensor tied to a tied one"
    yield reject("directory.same_as", "4.3", text, File([first, ties[0], one(name="v", same_as=1)]))
    text = "a tensor tied to one that is malformed"
    yield reject("tensor.check@tied", "4.5", text, File([one(entry={"check": 0}), ties[0]]))


def _bundles() -> Iterator[Case]:
    data = block([PART])
    other = PART.tensor(name="u", bundle=0)
    text = "a bundle of one tensor"
    yield accept("bundle-of-one", "4.3", text, File([PART.tensor(bundle=0)], bundles=[data]))
    text = "a tensor in a bundle whose entry has an empty array of segments"
    file = File([PART.tensor(bundle=0, entry={"segments": []})], bundles=[data])
    yield accept("bundle-no-segments", "4.3", text, file)
    wide = Part("U16", [1, 65535], 16)
    first, second = (Part("U8", [1], 8), wide), (Part("U8", [3, 4], 8), PART)
    tensors = [
        second[0].tensor(name="a", bundle=1),
        first[0].tensor(name="b", bundle=0),
        first[1].tensor(name="c", bundle=0),
        second[1].tensor(name="d", bundle=1),
    ]
    text = "the tensors of two bundles take turns"
    yield accept("bundles", "4.4", text, File(tensors, bundles=[block(first), block(second)]))
    text = "a bundle without tensors"
    yield reject("directory.bundle@unused", "4.3", text, File([one()], bundles=[data]))
    text = "the second of two bundles is without tensors"
    file = File([PART.tensor(bundle=0)], bundles=[data, data])
    yield reject("directory.bundle@second-unused", "4.3", text, file)
    for coding, name in ((0, "raw"), (TRANSFORM, "transform")):
        tensor = replace(PART, dtype="F8_E5M2").tensor(bundle=0, entry={"coding": coding})
        text = f"a {name} tensor names a bundle"
        yield reject(f"directory.bundle@{name}", "4.3", text, File([tensor, other], bundles=[data]))
    text = "a tensor names a bundle and has a segment"
    tensor = PART.tensor(bundle=0, entry={"segments": [segment(b"")]})
    yield reject("directory.bundle@segments", "4.3", text, File([tensor], bundles=[data]))
    text = "a bundle is named by a tied tensor only, where the key means nothing"
    tensors = [one(), one(name="u", same_as=0, entry={"bundle": 0})]
    yield reject("directory.bundle@tied", "4.3", text, File(tensors, bundles=[data]))
    for dtype in ("U8", "I64", "BOOL"):
        tensor = Tensor("t", dtype, (1,), b"\0", TRANSFORM)
        text = f"a transform-coded tensor of {dtype}"
        yield reject(f"directory.transform@{dtype.lower()}", "4.3", text, File([tensor]))
    text = "a transform-coded tensor without elements"
    empty = Transform((0, 2), (OUT, IN), []).tensor([NOTHING])
    yield reject("directory.transform@empty", "4.3", text, File([empty], [NOTHING]))


def _segments() -> Iterator[Case]:
    plane = block([PART])
    wrong: dict[str, list[bytes]] = {"none": [], "two": [plane, b""]}
    for what, bodies in wrong.items():
        text = f"a tensor of one block has {len(bodies)} segments"
        file = File([PART.tensor(segments=bodies)])
        yield reject(f"tensor.segments@planes-{what}", "4.4", text, file)
    text = "a tensor in planes without elements has a segment"
    tensor = Tensor("t", "U8", (0,), b"", PLANES, [block([Part("U8", [], 8)])])
    yield reject("tensor.segments@planes-empty", "4.4", text, File([tensor]))
    coded = matrix([1, -2], [0, 3], tile=(1, 2))
    good = coded.segments([ANY])
    for what, bodies in {"none": [], "fewer": good[:1], "more": [*good, b""]}.items():
        text = f"a tensor of two tiles has {len(bodies)} segments"
        file = File([coded.tensor([ANY], segments=bodies)], [ANY])
        yield reject(f"tensor.segments@transform-{what}", "4.4", text, file)
    absent = matrix([], [], shape=(2, 2), depths=0)
    text = "a tensor without tiles has one segment"
    yield accept("no-tiles", "4.4", text, transform_file(absent))
    text = "a tensor without tiles has a second segment"
    file = File([absent.tensor([ANY], segments=[*absent.segments([ANY]), b""])], [ANY])
    yield reject("tensor.segments@no-tiles-more", "4.4", text, file)
    text = "a tensor without tiles has no segment"
    file = File([absent.tensor([ANY], segments=[])], [ANY])
    yield reject("tensor.segments@no-tiles-none", "4.4", text, file)
    text = "2^48 tiles of one index and a single segment"
    shape = (1 << 24, 1 << 24)
    many = Transform(shape, (OUT, IN), [], "F8_E5M2", tile=(1, 1), depths=1)
    head = many.head([NOTHING]) + b"\0\0"
    tensor = many.tensor([NOTHING], segments=[head], elements=b"")
    file = File([tensor], [NOTHING])
    yield replace(reject("tensor.segments@2-48-tiles", "12.4", text, file), limit=True)


def _limits() -> Iterator[Case]:
    """Tensors that are well-formed and larger than a decoder is likely to allow."""

    def limit(name: str, text: str, *tensors: Tensor) -> Case:
        return replace(accept(name, "12.1", text, File(tensors)), limit=True)

    for dtype in FLOATS:
        coded = Transform(
            (1 << 24, 1 << 24), (OUT, IN), [], dtype, payload_kind=1, tile=(1, 1), depths=0
        )
        segments = [coded.head([])]
        tensor = coded.tensor(segments=segments, elements=b"")
        text = f"2^48 zeros of {dtype} in a few bytes"
        case = limit(f"zeros-{dtype.lower().replace('_', '-')}", text, tensor)
        yield replace(case, tensors=None)  # nobody can write them
    empty = Tensor("t", "U8", (1 << 48,), b"", PLANES, [])
    text = "2^48 elements in planes, without segments"
    yield replace(reject("tensor.segments@2-48", "12.4", text, File([empty])), limit=True)
    count = 33 * (1 << 20)
    blocks = [block([Part("U8", [], 0)])] * 33
    zeros = Tensor("t", "U8", (count,), bytes(count), PLANES, blocks)
    text = "33 MiB of zeros, a little more than the reference decoder allows"
    yield limit("33-mib", text, zeros)
    half = Tensor("t", "U8", (count // 2,), bytes(count // 2), PLANES, blocks[:17])
    tied = [one(name=name, same_as=0) for name in ("u", "v")]
    text = "16.5 MiB under three names: tied tensors count"
    yield limit("tied", text, half, *tied)

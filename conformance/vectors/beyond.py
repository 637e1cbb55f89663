"""What needs a newer decoder, and which rules still apply to it (12.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from layout.deflate import deflate
from layout.elements import msgpack
from layout.file import ABSENT, TRANSFORM, File, Tensor, header, wrap
from layout.planes import Part, block
from layout.transform import FIXED

from vectors.case import Case, reject, unsupported
from vectors.common import ANY, matrix, one

PART = Part("U8", [7, 8], 8)
CODINGS = {3: "3, reserved for residuals", 4: "4, reserved for refinements", 5: "5", 255: "255"}
QUANTIZERS = {
    2: "2, reserved for dither",
    3: "3, reserved for longer trellises",
    4: "4",
    255: "255",
}
HUGE = {"shape": [1 << 48]}


def cases() -> Iterator[Case]:
    """All vectors of this section."""
    yield from _features()
    yield from _entries()
    yield from _quantizers()


def _features() -> Iterator[Case]:
    def feature(name: str, text: str, file: File | bytes) -> Case:
        return unsupported(f"feature-{name}", "directory.features", "4.3", text, file)

    keys = {"features": ["dither"]}
    yield feature("one", "a feature", File([one()], keys=keys))
    yield feature(
        "empty-name", "a feature whose name is empty", File([one()], keys={"features": [""]})
    )
    hidden: dict[str, tuple[str, dict[str, Any]]] = {
        "tensors": ("`tensors` is an integer", {"tensors": 5}),
        "tables": ("`tables` is a string", {"tables": "?"}),
        "bundles": ("a bundle has no tensor", {"bundles": [[0, 0]]}),
        "metadata": ("`metadata` is an array", {"metadata": []}),
        "shape": (
            "a shape is beyond all limits",
            {"tensors": [one().describe() | {"shape": [1] * 99}]},
        ),
    }
    for name, (text, more) in hidden.items():
        yield feature(f"hides-{name}", f"a feature hides that {text}", File(keys=keys | more))
    data = File([one()], keys=keys).build()
    yield feature("hides-length", "a feature hides that the last segment is missing", data[:-1])
    yield feature("hides-surplus", "a feature hides a byte behind the last segment", data + b"\0")
    text = "a feature hides that check and the CRC-32 of a segment are wrong"
    yield feature("hides-crc", text, data[:-1] + b"\6")
    huge = Tensor("t", "U8", (1 << 48,), b"", 0, [])
    yield feature("hides-limit", "a feature hides a tensor of 2^48 bytes", File([huge], keys=keys))
    plain = msgpack(File([one()], keys=keys).tree())
    text = "a feature, and directory_crc is wrong"
    wrong = header(len(plain), len(plain), 0) + plain + b"\5"
    yield reject("directory.crc@features", "12.1", text, wrong)
    text = "of two features one is an integer"
    yield reject("directory.type@features-mixed", "12.1", text, File(keys={"features": ["a", 1]}))
    text = "a feature, and an integer that is not in its shortest form"
    plain = msgpack(File(keys=keys | {"z": 5}).tree())[:-1] + b"\xcc\x05"
    yield reject("directory.canonical@features", "12.1", text, wrap(plain))
    text = "a feature, and a deflated directory of one byte less than its size"
    plain = msgpack(File([one(name="n" * 60)], keys=keys).tree())
    data = wrap(plain + b"\0", b"\5", deflated=deflate(plain))
    yield reject("deflate.size@features", "12.1", text, data)


def _entries() -> Iterator[Case]:
    unknown: list[tuple[str, str, dict[str, Any], str]] = [
        ("coding", "directory.coding", {"coding": 3}, "coding 3"),
        ("dtype", "directory.dtype", {"dtype": "F4"}, "dtype F4"),
    ]
    for code, text in CODINGS.items():
        tensor = one(entry={"coding": code})
        yield unsupported(
            f"coding-{code}", "directory.coding", "4.3", f"coding {text}", File([tensor])
        )
    for dtype in ("", "f32", "F32 ", "C64", "U128", "\u00e9"):
        name = {"": "empty", "f32": "lower-case", "F32 ": "space", "\u00e9": "utf8"}.get(
            dtype, dtype
        )
        tensor = one(entry={"dtype": dtype})
        text = f"element type {dtype!r}"
        yield unsupported(f"dtype-{name.lower()}", "directory.dtype", "4.3", text, File([tensor]))
    tensor = one(entry={"dtype": "F4", "coding": 9})
    text = "neither coding nor element type is known"
    yield unsupported("dtype-and-coding", "directory.dtype", "4.3", text, File([tensor]))
    for what, rule, keys, about in unknown:
        yield from _hidden(what, rule, keys, about)
        yield from _still(what, keys, about)


def _hidden(what: str, rule: str, keys: dict[str, Any], about: str) -> Iterator[Case]:
    def hides(name: str, text: str, file: File) -> Case:
        return unsupported(f"{what}-hides-{name}", rule, "12.1", f"{about} hides that {text}", file)

    yield hides("check", "check is wrong", File([one(entry=keys | {"check": 1})]))
    text = "the number of bytes is not that of the shape"
    yield hides("length", text, File([one(entry=keys | {"shape": [7]})]))
    text = "there are no segments"
    yield hides("segments", text, File([one(segments=[], entry=keys)]))
    text = "a tensor names a bundle and has a segment; the bundle is not what it would be"
    entry = keys | {"bundle": 0, "segments": [[0, 0]]}
    bundled = PART.tensor(bundle=0, entry=entry)
    yield hides("bundle", text, File([bundled], bundles=[b"?"]))
    if what == "coding":
        text = f"{about}, of 2^48 bytes"
        case = unsupported("coding-huge", rule, "12.1", text, File([one(entry=keys | HUGE)]))
        yield replace(case, limit=True)
    if what == "dtype":
        text = "its coding is TRANSFORM and its shape is empty"
        entry = keys | {"coding": TRANSFORM, "shape": [0]}
        yield hides("transform", text, File([one(elements=b"", segments=[], entry=entry)]))
        text = "it would be beyond all limits of a decoder"
        yield hides("limit", text, File([one(entry=keys | HUGE)]))
    text = "the tensors of its bundle and of those tied to it cannot be decoded"
    bundled = PART.tensor(bundle=0, entry=keys)
    tensors = [bundled, PART.tensor(name="u", bundle=0), one(name="v", same_as=1), one(name="w")]
    yield hides("others", text, File(tensors, bundles=[b"?!"]))
    text = "a bundle is not what its other tensor says, which is before it"
    tensors = [PART.tensor(name="u", bundle=0), bundled]
    yield hides("others-before", text, File(tensors, bundles=[b"?!"]))
    text = "the elements of its bundle are too many"
    many = PART.tensor(name="u", bundle=0, entry={"shape": [(1 << 20) + 1]})
    yield hides("bundle-size", text, File([bundled, many], bundles=[b""]))
    yield unsupported(
        f"{what}-tied",
        rule,
        "12.1",
        f"a tensor tied to one of {about}",
        File([one(entry=keys), one(name="u", same_as=0)]),
    )


def _still(what: str, keys: dict[str, Any], about: str) -> Iterator[Case]:
    def broken(rule: str, name: str, text: str, file: File) -> Case:
        return reject(f"{rule}@unknown-{what}{name}", "12.1", f"{about}, and {text}", file)

    def entry(**changes: Any) -> File:
        return File([one(entry=keys | changes)])

    yield broken("directory.type", "", "`check` is missing", entry(check=ABSENT))
    yield broken("directory.type", "-snr", "`snr` is a string", entry(snr="?"))
    yield broken("directory.type", "-segments", "`segments` is nil", entry(segments=None))
    yield broken("directory.range", "", "`snr` is 2^21", entry(snr=1 << 21))
    yield broken("directory.range", "-bundle", "`bundle` is 0 without bundles", entry(bundle=0))
    yield broken("directory.range", "-check", "`check` is 2^32", entry(check=1 << 32))
    yield broken("directory.shape", "", "its shape has 17 dimensions", entry(shape=[1] * 17))
    yield broken(
        "directory.shape", "-elements", "its shape is too large", entry(shape=[1 << 48, 2])
    )
    yield broken("directory.name", "", "its name is empty", entry(name=""))
    text = "another tensor has its name"
    yield broken("directory.name", "-twice", text, File([one(entry=keys), one()]))
    text = "a bundle has no tensor"
    file = File([one(entry=keys)], bundles=[block([PART])])
    yield broken("directory.bundle", "", text, file)
    text = "the CRC-32 of its segment is wrong"
    yield broken("segment.crc", "", text, entry(segments=[[1, 0]]))
    bundled = PART.tensor(bundle=0, entry=keys)
    file = File([bundled], bundles=[b"?"], keys={"bundles": [[1, 0]]})
    yield broken("segment.crc", "-bundle", "the CRC-32 of its bundle is wrong", file)
    text = "a byte lies behind the last segment"
    data = entry().build() + b"\0"
    yield reject(f"container.length@unknown-{what}", "12.1", f"{about}, and {text}", data)
    for after in (0, 1):
        other = one(name="u", entry={"check": 0})
        tensors = [one(entry=keys), other] if after else [other, one(entry=keys)]
        where = "after" if after else "before"
        text = f"the check of a tensor {where} it is wrong"
        yield broken("tensor.check", f"-{where}", text, File(tensors))
    text = "the tables are wrong, though nothing can be decoded with them"
    yield broken("table.sum", "", text, replace(entry(), tables=[replace(ANY, escape=17)]))
    text = "a tensor is tied to one tied to it"
    tensors = [one(entry=keys), one(name="u", same_as=0), one(name="v", same_as=1)]
    yield broken("directory.same_as", "", text, File(tensors))
    text = "another tensor is RAW in its bundle"
    tensors = [bundled, replace(PART.tensor(name="u", bundle=0), coding=0)]
    yield broken("directory.bundle", "-raw", text, File(tensors, bundles=[b"?"]))


def _quantizers() -> Iterator[Case]:
    def file(raw: dict[str, bytes], **changes: Any) -> File:
        coded = matrix([1, -2], payload_kind=FIXED, raw={"quantizer": b"\2"} | raw)
        return File([coded.tensor(**changes)])

    for code, text in QUANTIZERS.items():
        data = file({"quantizer": bytes([code])})
        yield unsupported(f"quantizer-{code}", "head.quantizer", "9.1", f"quantizer {text}", data)

    def hides(name: str, text: str, hidden: File) -> Case:
        about = f"quantizer 2 hides that {text}"
        return unsupported(f"quantizer-hides-{name}", "head.quantizer", "12.1", about, hidden)

    yield hides("head", "payload_kind is 9", file({"payload_kind": b"\x09"}))
    yield hides("check", "check is wrong", file({}, entry={"check": 0}))
    start = matrix([1, -2], raw={"quantizer": b"\2"}).head([ANY])[:5]
    yield hides("rest", "nothing follows", file({}, segments=[start]))
    yield hides("segments", "there is a second segment", file({}, segments=[start, b"?"]))
    tied = [*file({}).tensors, one(name="u", same_as=0)]
    text = "a tensor tied to one of quantizer 2"
    yield unsupported("quantizer-tied", "head.quantizer", "12.1", text, File(tied))

    def broken(rule: str, text: str, wrong: File) -> Case:
        return reject(f"{rule}@quantizer", "12.1", f"quantizer 2, and {text}", wrong)

    yield broken("head.role", "a role is 3", file({"roles": b"\0\3"}))
    yield broken("head.scale", "the scale is 0", file({"scale_mantissa": b"\0"}))
    wrong = file({"scale_exponent": b"\x80\0"})
    yield broken("integer.shortest", "scale_exponent is not in its shortest form", wrong)
    yield broken("segment.short", "the segment ends before it", file({}, segments=[start[:4]]))
    yield broken("tensor.segments", "there is no segment", file({}, segments=[]))
    good = file({}).tensors[0]
    lengths = [[len(body), 0] for body in good.bodies]
    wrong = File([replace(good, entry={"segments": lengths})])
    yield broken("segment.crc", "the CRC-32 of its segment is wrong", wrong)
    two = file({}, segments=[start, b"?"]).tensors[0]
    segments = [two.describe()["segments"][0], [1, 0]]
    wrong = File([replace(two, entry={"segments": segments})])
    text = "quantizer 2, and the CRC-32 of a further segment is wrong"
    yield reject("segment.crc@quantizer-second", "12.1", text, wrong)
    wrong = File([good, one(name="u", entry={"check": 0})])
    yield broken("tensor.check", "the check of another tensor is wrong", wrong)
    wrong = replace(file({}), tables=[replace(ANY, escape=17)])
    yield broken("table.sum", "the tables are wrong", wrong)

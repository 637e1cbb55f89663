"""The directory's form (4.3): MessagePack, types, ranges, and what is ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from layout.deflate import deflate
from layout.elements import array_start, map_start, msgpack, text
from layout.file import ABSENT, File, wrap

from vectors.case import Case, accept, reject
from vectors.common import one

INTEGERS = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1]
INTEGERS += [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)]


def cases() -> Iterator[Case]:
    """All vectors of this section but those of its entries."""
    yield from _canonical()
    yield from _not_canonical()
    yield from _limits()
    yield from _keys()
    yield from _types()


def _canonical() -> Iterator[Case]:
    def ancillary(name: str, description: str, **keys: Any) -> Case:
        return accept(name, "4.3", description, File([one()], keys=keys))

    yield accept(
        "empty-map", "4.3", "the directory is an empty map", File(keys={"tensors": ABSENT})
    )
    yield accept("no-tensors", "4.3", "an empty array of tensors", File())
    text_ = "unknown keys hold integers of every form of MessagePack"
    yield ancillary("msgpack-integers", text_, z=INTEGERS)
    text_ = "unknown keys hold nil, false, true and maps and arrays of 15 and 16 items"
    maps = [{f"{i:02}": None for i in range(n)} for n in (0, 15, 16)]
    yield ancillary("msgpack-values", text_, z=[None, False, True, [0] * 15, [0] * 16, *maps])
    strings = ["s" * n for n in (0, 31, 32, 255, 256)]
    text_ = "unknown keys hold strings of 0, 31, 32, 255 and 256 bytes"
    yield ancillary("msgpack-strings", text_, z=strings)
    for count in (65535, 65536):
        file = File([one()], keys={"z": "s" * count})
        text_ = f"an unknown key holds a string of {count} bytes"
        data = wrap(msgpack(file.tree()), b"\5", deflated=deflate(msgpack(file.tree())))
        yield accept(f"msgpack-string-{count}", "4.3", text_, file, data)
    order = {
        "\uff5e": "U+FF5E",
        "\U0001f600": "U+1F600",
        "e\u0301": "decomposed",
        "\u00e9": "composed",
    }
    text_ = "keys in the order of their UTF-8 bytes, which is not that of UTF-16"
    yield accept("order-of-keys", "4.3", text_, File([one()], metadata=order))
    keys = {"": 0, "a": 1, "aa": 2, "b": 3}
    yield ancillary("order-of-prefixes", "a key before those that it begins, an empty key", z=keys)


def _not_canonical() -> Iterator[Case]:
    def reject_value(variant: str, description: str, value: bytes) -> Case:
        return reject(f"directory.canonical@{variant}", "4.3", description, _with(value))

    wide = {
        "cc7f": "uint 8",
        "cd00ff": "uint 16",
        "ce0000ffff": "uint 32",
        "cf00000000ffffffff": "uint 64",
        "d0e0": "int 8",
        "d1ff80": "int 16",
        "d2ffff8000": "int 32",
        "d3ffffffff80000000": "int 64",
    }
    for code, form in wide.items():
        name = form.replace(" ", "")
        yield reject_value(name, f"{form} where a shorter form does", bytes.fromhex(code))
    for code, form in {"d07f": "int 8", "d100ff": "int 16", "d300000000ffffffff": "int 64"}.items():
        name = form.replace(" ", "")
        text_ = f"a number of 0 and above in the form {form}"
        yield reject_value(f"positive-{name}", text_, bytes.fromhex(code))
    forms = {
        "str8": (b"\xd9\x1f" + b"s" * 31, "str 8 of 31 bytes"),
        "str16": (b"\xda\x00\xff" + b"s" * 255, "str 16 of 255 bytes"),
        "str32": (b"\xdb\x00\x00\x01\x00" + b"s" * 256, "str 32 of 256 bytes"),
        "array16": (b"\xdc\x00\x0f" + b"\0" * 15, "array 16 of 15 items"),
        "array32": (b"\xdd\x00\x00\x00\x10" + b"\0" * 16, "array 32 of 16 items"),
        "map16": (b"\xde\x00\x01\xa1a\x00", "map 16 of one item"),
        "map32": (b"\xdf\x00\x00\x00\x01\xa1a\x00", "map 32 of one item"),
        "float32": (b"\xca\x3f\x80\x00\x00", "a floating-point number of 32 bits"),
        "float64": (b"\xcb\x3f\xf0" + bytes(6), "a floating-point number of 64 bits"),
        "binary": (b"\xc4\x01\x00", "a binary string"),
        "extension": (b"\xd4\x05\x00", "an extension type of one byte"),
        "extension8": (b"\xc7\x00\x05", "an extension type of no bytes"),
        "key-order": (b"\x82\xa1b\x00\xa1a\x00", "keys in descending order"),
        "key-order-length": (b"\x82\xa1b\x00\xa2aa\x00", "keys in the order of their length"),
        "key-twice": (b"\x82\xa1a\x00\xa1a\x00", "a key twice"),
        "key-integer": (b"\x81\x01\x00", "a key that is an integer"),
        "key-nil": (b"\x81\xc0\x00", "a key that is nil"),
        "key-array": (b"\x81\x90\x00", "a key that is an array"),
    }
    for name, (value, description) in forms.items():
        yield reject_value(name, description, value)
    utf8 = {
        "lone-byte": (b"\x80", "a continuation byte alone"),
        "overlong": (b"\xc0\x80", "NUL in two bytes"),
        "surrogate": (b"\xed\xa0\x80", "the surrogate U+D800"),
        "beyond": (b"\xf4\x90\x80\x80", "U+110000"),
        "cut-off": (b"\xe2\x82", "a character cut off"),
    }
    for name, (value, description) in utf8.items():
        text_ = f"a string that is not UTF-8: {description}"
        yield reject_value(f"utf8-{name}", text_, text(value))
    text_ = "a key of a map that is not UTF-8"
    yield reject_value("utf8-key", text_, b"\x81\xa1\xff\x00")


def _with(value: bytes) -> bytes:
    """A good file but for the value of an unknown key, the last of the directory."""
    plain = msgpack(File([one()]).tree())
    return wrap(map_start(2) + plain[1:] + text(b"z") + value, b"\5")


def _limits() -> Iterator[Case]:
    plain = msgpack(File([one()]).tree())
    yield reject(
        "directory.msgpack", "4.3", "the directory lacks its last byte", wrap(plain[:-1], b"\5")
    )
    text_ = "a second value behind the directory"
    yield reject("directory.msgpack@surplus", "4.3", text_, wrap(plain + b"\xc0", b"\5"))
    text_ = "the byte c1, which MessagePack never uses"
    yield reject("directory.msgpack@c1", "4.3", text_, _with(b"\xc1"))
    cut = {
        "string": (b"\xdb\xff\xff\xff\xff", "a string of 2^32 - 1 bytes"),
        "array": (b"\xdd\xff\xff\xff\xff", "an array of 2^32 - 1 items"),
        "map": (b"\xdf\xff\xff\xff\xff", "a map of 2^32 - 1 items"),
        "integer": (b"\xcf\xff", "an integer of 8 bytes"),
        "length": (b"\xda\x01", "the length of a string"),
    }
    for name, (value, description) in cut.items():
        text_ = f"the directory ends in {description}"
        yield reject(f"directory.msgpack@cut-{name}", "4.3", text_, _with(value))
    deep: Any = 0
    for depth in range(8, 0, -1):
        deep = [deep] if depth % 2 else {"k": deep}
    text_ = "arrays and maps at depths 1 to 8, an integer in the last"
    yield accept("nesting", "4.3", text_, File([one()], keys={"z": deep}))
    text_ = "an array at depth 9"
    yield reject("directory.nesting", "4.3", text_, File([one()], keys={"z": [deep]}))
    text_ = "a map as key of a map, at depth 9, is not a string either"
    deep = b"\x91" * 7 + b"\x81\x80\x00"
    yield reject("directory.canonical@key-map", "4.3", text_, _with(deep))
    text_ = "arrays 100000 deep"
    data = b"\x91" * 100000
    yield reject("directory.nesting@deep", "4.3", text_, wrap(data, deflated=deflate(data)))
    for more in (0, 1):
        stored = 200
        count = (1 << 14) + stored - 3 + more  # besides the array, its key and the map
        data = map_start(1) + text(b"z") + array_start(count) + b"\xc0" * count
        file = File(keys={"tensors": ABSENT, "z": [None] * count})
        packed = wrap(data, deflated=deflate(data, stored))
        if more:
            text_ = "2^14 + stored + 1 values"
            yield reject("directory.values", "4.3", text_, packed)
        else:
            yield accept("values", "4.3", "2^14 + stored values", file, packed)


def _keys() -> Iterator[Case]:
    tensor = one(entry={"snr": -(2**20), "segment": "?", "tie": {"a": [1]}})
    text_ = "unknown keys in the directory and in entries are ignored"
    tied = one(name="u", same_as=0, entry={"dtype": 7, "shape": "?", "check": -1, "later": None})
    yield accept("unknown-keys", "4.3", text_, File([tensor, tied], keys={"Tensors": 5}))
    text_ = "snr of 2^20 hundredths of a decibel"
    yield accept("snr", "4.3", text_, File([one(entry={"snr": 2**20})]))
    yield accept(
        "no-features", "4.3", "an empty array of features", File([one()], keys={"features": []})
    )
    metadata = {"": "", "a\0b": "\0", "format": "pt", "\U0001f600": "\u4f60\u597d \ufeff \"'\\\n"}
    yield accept(
        "metadata", "4.3", "metadata with empty and unusual texts", File([one()], metadata=metadata)
    )
    text_ = "metadata and no tensors"
    yield accept("metadata-alone", "4.3", text_, File(metadata={"a": "b"}))


def _types() -> Iterator[Case]:
    yield reject("directory.type@array", "4.3", "the directory is an array", wrap(b"\x90"))
    yield reject("directory.type@nil", "4.3", "the directory is nil", wrap(b"\xc0"))
    keys: dict[str, tuple[Any, str]] = {
        "tensors": ({}, "a map"),
        "bundles": ({}, "a map"),
        "features": ("x", "a string"),
        "metadata": ([], "an array"),
        "tables": ({}, "a map"),
    }
    for key, (value, description) in keys.items():
        text_ = f"`{key}` is {description}"
        yield reject(f"directory.type@{key}", "4.3", text_, File(keys={key: value}))
    nil = {"tensors", "bundles", "tables", "metadata", "features"}
    for key in sorted(nil):
        text_ = f"`{key}` is nil, which is not the same as left out"
        yield reject(f"directory.type@{key}-nil", "4.3", text_, File(keys={key: None}))
    more: dict[str, tuple[dict[str, Any], str]] = {
        "metadata-value": ({"metadata": {"a": 1}}, "a value of `metadata` is an integer"),
        "features-item": ({"features": [1]}, "a feature is an integer"),
        "entry": ({"tensors": [[]]}, "an entry is an array"),
        "bundle-item": ({"bundles": [5]}, "a bundle is an integer"),
        "tables-two": ({"tables": [0, 0]}, "`tables` has two items"),
        "tables-four": ({"tables": [0, 0, 0, 0]}, "`tables` has four items"),
        "tables-boolean": ({"tables": [False, 0, 0]}, "a length of the tables is false"),
    }
    for name, (changes, description) in more.items():
        yield reject(f"directory.type@{name}", "4.3", description, File(keys=changes))
    entry: dict[str, tuple[str, Any, str]] = {
        "name-nil": ("name", None, "nil"),
        "name-integer": ("name", 1, "an integer"),
        "no-name": ("name", ABSENT, "missing"),
        "dtype": ("dtype", 1, "an integer"),
        "no-dtype": ("dtype", ABSENT, "missing"),
        "coding": ("coding", "RAW", "a string"),
        "no-coding": ("coding", ABSENT, "missing"),
        "check": ("check", None, "nil"),
        "no-check": ("check", ABSENT, "missing"),
        "shape": ("shape", 1, "an integer"),
        "no-shape": ("shape", ABSENT, "missing"),
        "shape-item": ("shape", [True], "an array of true"),
        "shape-string": ("shape", "1", "a string"),
        "segments": ("segments", 1, "an integer"),
        "segments-item": ("segments", [5], "an array of an integer"),
        "segments-one": ("segments", [[1]], "an array of one length"),
        "segments-three": ("segments", [[1, 0, 0]], "an array of three integers"),
        "segments-boolean": ("segments", [[True, 0]], "a length that is true"),
        "bundle": ("bundle", "0", "a string"),
        "bundle-nil": ("bundle", None, "nil"),
        "same-as": ("same_as", None, "nil"),
        "snr": ("snr", "1", "a string"),
    }
    for name, (key, value, description) in entry.items():
        tensor = one(entry={key: value})
        text_ = f"`{key}` of an entry is {description}"
        yield reject(f"directory.type@{name}", "4.3", text_, File([tensor]))
    ranges: dict[str, tuple[str, Any, str]] = {
        "coding": ("coding", 256, "256"),
        "coding-negative": ("coding", -1, "-1"),
        "check": ("check", 1 << 32, "2^32"),
        "shape": ("shape", [0, (1 << 48) + 1], "(0, 2^48 + 1)"),
        "shape-negative": ("shape", [-1], "(-1)"),
        "segments-length": ("segments", [[1 << 63, 0]], "of 2^63 bytes"),
        "segments-negative": ("segments", [[-1, 0]], "of -1 bytes"),
        "segments-crc": ("segments", [[1, 1 << 32]], "with a CRC-32 of 2^32"),
        "bundle": ("bundle", 0, "0 without bundles"),
        "same-as": ("same_as", 0, "the entry itself"),
        "same-as-later": ("same_as", 1, "a later entry"),
        "same-as-negative": ("same_as", -1, "-1"),
        "snr": ("snr", (1 << 20) + 1, "2^20 + 1"),
        "snr-negative": ("snr", -(1 << 20) - 1, "-2^20 - 1"),
    }
    for name, (key, value, description) in ranges.items():
        tensor = one(entry={key: value})
        text_ = f"`{key}` of an entry is {description}"
        yield reject(f"directory.range@{name}", "4.3", text_, File([tensor, one(name="u")]))
    tables: dict[str, tuple[list[int], str]] = {
        "length": ([(1 << 32) + 1, 0, 0], "a length of 2^32 + 1"),
        "crc": ([0, 1 << 32, 0], "a CRC-32 of 2^32"),
        "size": ([0, 0, (1 << 20) + 1], "a size of 2^20 + 1"),
    }
    for name, (value, description) in tables.items():
        text_ = f"`tables` has {description}"
        yield reject(f"directory.range@tables-{name}", "4.3", text_, File(keys={"tables": value}))
    bundles: dict[str, list[Any]] = {"length": [1 << 63, 0], "crc": [0, 1 << 32]}
    for name, value in bundles.items():
        text_ = f"the {name} of a bundle is too large"
        yield reject(
            f"directory.range@bundle-{name}", "4.3", text_, File(keys={"bundles": [value]})
        )

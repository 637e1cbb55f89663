"""The parser, `Settings`, the encoder's tables and docs/use.md name the same options."""

from __future__ import annotations

import inspect
import math
import re
from argparse import Action, ArgumentParser
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import nn

from tqcodec.cli.arguments import COMMANDS, UsageError, make_parser
from tqcodec.encoder.effort import EFFORTS
from tqcodec.encoder.settings import (
    DEFAULT_QUALITY,
    RANGES,
    RULE_FORMS,
    RULE_OPTIONS,
    Range,
    Settings,
    TensorOptions,
    parse_options,
)
from tqcodec.errors import EncodeError
from tqcodec.format.container import limit_of
from tqcodec.reading.remote.options import Remote
from tqcodec.torch import calibrate, retrain, synthetic_inputs
from tqcodec.torch.inputs import DataOptions
from tqcodec.torch.retraining.augment import Augmented

ROOT = Path(__file__).parents[2]
USE = (ROOT / "docs" / "use.md").read_text("utf-8")


class Row(NamedTuple):
    """What a table of docs/use.md says of an argument."""

    default: str
    range: str
    meaning: str


def cells(table: str) -> list[list[str]]:
    """Cells of the rows of a table, below its header; first cells without their backticks."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    found = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[row[0].replace("\\|", "|").strip(" `"), *map(str.strip, row[1:])] for row in found]


def read_document() -> dict[str, dict[str, Row]]:
    """Arguments of each command: those of all tables whose headings name it."""
    found: dict[str, dict[str, Row]] = {name: {} for name in COMMANDS}
    for section in USE.partition("\n## All options\n")[2].split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        for command in re.findall("`([^`]+)`", heading):
            for argument, *row in cells(body):
                assert argument not in found[command], f"{command}: {argument} is there twice"
                found[command][argument] = Row(*row)
    return found


def argument_of(action: Action) -> str:
    """An argument as the tables write it, such as ``-o, --output OUT``."""
    assert action.metavar is None or isinstance(action.metavar, str)
    names = ", ".join(action.option_strings)
    return f"{names} {action.metavar or ''}".strip()


def parser_of(command: str) -> ArgumentParser:
    """The parser of a command, without ``--help``."""
    parser = ArgumentParser(add_help=False)
    COMMANDS[command][1](parser)
    return parser


ORDER = ("shuffled", "redrawn")  # of `DataOptions`, which commands choose themselves

PARSERS = {command: parser_of(command) for command in COMMANDS}
PARSED = {c: {argument_of(action): action for action in p._actions} for c, p in PARSERS.items()}
DOCUMENTED = read_document()
ALL = [(command, name) for command, actions in PARSED.items() for name in actions]
RANGED = [(c, name) for c, rows in DOCUMENTED.items() for name, row in rows.items() if row.range]


def help_of(action: Action) -> str:
    return (action.help or "") % vars(action)


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_are_those_of_the_document(command: str) -> None:
    assert sorted(DOCUMENTED[command]) == sorted(PARSED[command])
    assert all(row.meaning for row in DOCUMENTED[command].values())


@pytest.mark.parametrize(("command", "name"), ALL)
def test_defaults_are_those_of_help_and_document(command: str, name: str) -> None:
    action = PARSED[command][name]
    stated = re.search(r"default (.+)$", help_of(action))
    default = stated[1] if stated is not None else ""
    is_flag, is_list = action.nargs == 0, action.default == []
    if action.default is not None and not is_flag and not is_list:
        assert default == str(action.default)
    assert DOCUMENTED[command][name].default == ("required" if action.required else default)


def test_settings_are_options_of_encode_with_their_defaults() -> None:
    arguments = vars(make_parser().parse_args(["encode", "x"]))
    for field in fields(Settings):
        default = arguments[field.name]
        assert (tuple(default) if isinstance(default, list) else default) == field.default, field
    text = DOCUMENTED["encode"]["-q, --quality Q"].default
    assert Settings(quality=float(text)).target_snr == Settings().target_snr
    assert float(text) == DEFAULT_QUALITY


def test_data_is_read_with_the_defaults_of_the_command_line() -> None:
    rows = {PARSED["eval"][name].dest: row.default for name, row in DOCUMENTED["eval"].items()}
    read = DataOptions()
    mean, std = read.normalisation
    taken = {"images": "all", "size": read.side, "mean": mean, "std": std}  # for None
    for field in fields(DataOptions):
        if field.name not in ORDER:
            default = taken[field.name] if field.default is None else field.default
            numbers = default if isinstance(default, tuple) else (default,)
            assert rows[field.name] == ",".join(str(n).removesuffix(".0") for n in numbers)


def test_the_docstring_of_settings_names_all_with_their_ranges() -> None:
    text = (inspect.getdoc(Settings) or "").partition("Attributes:\n")[2].partition("Raises:")[0]
    parts = re.split(r"^    (\w+): ", text, flags=re.M)[1:]
    described = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(described) == [field.name for field in fields(Settings)]
    for name, numbers in RANGES.items():
        assert str(numbers) in " ".join(described[name].split()), name
    assert f"Default {DEFAULT_QUALITY:g}." in described["quality"]


def test_ranges_and_choices_are_those_of_help_and_document() -> None:
    for command, name in ALL:
        action, row = PARSED[command][name], DOCUMENTED[command][name]
        if action.choices is not None:
            assert row.range == ", ".join(action.choices)
        if action.dest in RANGES:
            numbers = str(RANGES[action.dest])
            assert row.range.removesuffix(" or all") == numbers
            assert numbers in help_of(action)
    assert list(EFFORTS) == list(range(int(RANGES["effort"].least), int(RANGES["effort"].most) + 1))


def of_settings(name: str) -> Callable[[Any], object]:
    """Settings of a value, or of several."""

    def check(value: Any) -> object:
        return [Settings(**{name: v}) for v in (value if isinstance(value, tuple) else [value])]

    return check


def of_data(name: str) -> Callable[[Any], object]:
    return lambda value: DataOptions(**{name: value})


def of_probes(value: int) -> None:
    with pytest.raises(EncodeError, match=r"probes|there is no batch") as caught:
        calibrate(nn.Linear(1, 1), [], probes=value)
    if "there is no batch" not in str(caught.value):
        raise caught.value


def of_epochs(value: int) -> None:
    with pytest.raises(EncodeError) as caught:
        retrain(nn.Linear(1, 1), [], Settings(bits=1), epochs=value)
    if "epochs" in str(caught.value):
        raise caught.value


def of_tokens(value: int) -> None:
    with pytest.raises(EncodeError, match=r"no nn\.Embedding"):  # the next thing that is looked at
        synthetic_inputs(nn.Linear(1, 1), tokens=value)


# Where the range of an argument is checked; what the parser checks alone needs nothing else.
CHECKS: dict[str, Callable[[Any], object]] = {
    **{name: of_settings(name) for name in RANGES},
    **{name: of_data(name) for name in ("images", "batch", "size")},
    "probes": of_probes,
    "epochs": of_epochs,
    "seed": lambda value: None,  # by the parser
    "crop": lambda value: Augmented([], value, mirror=False),
    "tokens": of_tokens,
    "connections": lambda value: Remote(connections=value),
    "limit": lambda value: limit_of(value, 0, 0),
}


def is_taken(command: str, name: str, text: str) -> bool:
    """Whether a command takes a text for an argument, all others being good."""
    action = PARSED[command][name]
    needed = [one for one in PARSED[command].values() if one.required and one is not action]
    for group in PARSERS[command]._mutually_exclusive_groups:
        if group.required and action not in group._group_actions:
            needed.append(group._group_actions[0])
    words = [f"{one.option_strings[-1]}=1" if one.option_strings else "1" for one in needed]
    try:
        words = [command, *words, f"{action.option_strings[-1]}={text}"]
        CHECKS[action.dest](getattr(make_parser().parse_args(words), action.dest))
    except (UsageError, ValueError):  # an EncodeError is one
        return False
    return True


@pytest.mark.parametrize(("command", "name"), RANGED)
def test_documented_ranges_are_what_is_taken(command: str, name: str) -> None:
    action, row = PARSED[command][name], DOCUMENTED[command][name]
    if action.choices is not None:
        return  # argparse takes these and no others
    form = re.fullmatch(r"(\S+) (?:to (\S+)|or more)( or all)?", row.range)
    assert form is not None, row.range
    least, most = float(form[1]), float(form[2] or math.inf)
    whole = action.dest not in RANGES or RANGES[action.dest].whole

    def next_to(end: float, towards: float) -> str:
        if not whole:
            return repr(math.nextafter(end, towards))
        # At the size of a file the next number that a float can tell apart.
        return str(int(end + math.copysign(max(1, abs(end) // 2**40), towards)))

    def written(end: float) -> str:
        return str(int(end)) if whole else repr(end)

    assert is_taken(command, name, written(least))
    assert not is_taken(command, name, next_to(least, -math.inf))
    if form[2]:
        assert is_taken(command, name, written(most))
        assert not is_taken(command, name, next_to(most, math.inf))
    else:
        assert is_taken(command, name, "1000000007")
    assert form[3] is None or is_taken(command, name, "all")


def test_the_default_limit_is_the_documented_one() -> None:
    assert limit_of(None, 10**6, 0) == (32 << 20) + 1000 * 10**6
    limits = {
        rows["--limit BYTES"].default for rows in DOCUMENTED.values() if "--limit BYTES" in rows
    }
    assert limits == {"32Mi and 1000 times the length of the file"}


# ---- rules ----


def test_rules_are_documented() -> None:
    table = cells(USE.partition("\n### Rules\n")[2])
    assert [form for form, _ in table] == list(RULE_FORMS)
    assert {o.field for o in RULE_OPTIONS.values()} == {f.name for f in fields(TensorOptions)}


@pytest.mark.parametrize("form", RULE_FORMS)
def test_a_rule_takes_what_its_form_says(form: str) -> None:
    name, _, values = form.partition(":")
    field = RULE_OPTIONS[name].field

    def value_of(text: str) -> object:
        return getattr(parse_options("*", text), field)

    refused = [f"{name}:?", f"{name}:nan", f"{name}{form}"]
    if ".." in values:
        least, most = map(float, values.split(".."))
        assert isinstance(RULE_OPTIONS[name].values, Range)
        assert value_of(f"{name}:{least:g}") == least
        assert value_of(f" weight, {name}:{most:g} ") == most
        refused += [f"{name}:{least - 1e-3}", f"{name}:{most * 2:g}", f"{name}:-1", name]
    elif values:
        assert [value_of(f"{name}:{one}") for one in values.split("|")] == values.split("|")
        refused += [name, f"{name}:{values}"]
    else:
        assert value_of(name) is True
        refused += [f"{name}:1"]
    for text in refused:
        with pytest.raises(EncodeError, match=r"^rule '\*': .* is not exact, weight, .* or side:"):
            parse_options("*", text)


# ---- what else is written ----


def test_commands_in_documents_have_their_options() -> None:
    known = {option for of in PARSED.values() for a in of.values() for option in a.option_strings}
    seen = 0
    for path in (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8")
        for command, rest in re.findall(rf"tqcodec ({'|'.join(COMMANDS)})\b([^`\n|]*)", text):
            options = {o for a in PARSED[command].values() for o in a.option_strings}
            for option in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", rest):
                assert option in options, f"{path.name}: tqcodec {command} {option}"
                seen += 1
    assert seen > 10
    for option in re.findall(r"`(--?[a-z][a-z0-9-]*)", USE):
        assert option in known, f"use.md: {option}"

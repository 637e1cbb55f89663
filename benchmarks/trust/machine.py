"""One command line in a process of its own, under conditions that go wrong, and what is left of it.

Linux only: sessions and memory that is shared are looked up in /proc and /dev/shm.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tqcodec
from benchmarks.trust import inputs
from benchmarks.trust.inputs import Rng, pick
from tqcodec.cli import checkpoints
from tqcodec.cli.arguments import UsageError, inputs_of, make_parser

PATIENCE = 120  # seconds after which a command hangs
GRACE = 20  # seconds that processes may take to notice that their parent has gone
CODES = {0, 1, 2, 3, 4}
PRINTING = ("info", "dump", "verify", "eval", None)
INTERRUPTED, BROKEN_PIPE = 130, 141
SHARED = Path("/dev/shm")
OLD = b"the old file"

# Cards of what may go wrong around a command.
CONDITIONS = (
    ["plain"] * 20
    + ["stdin closed", "stdout closed", "stderr closed", "all closed", "stdout full", "stderr full"]
    + ["stdout broken", "stderr broken", "stdout unread", "disk", "disk", "file size", "file size"]
    + ["memory", "memory", "descriptors", "SIGPIPE"]
    + ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"] * 2
)
FORMS = ["symbolic", "hard", "pipe", "folder", "dangling", "loop", "null", "read-only", "name"]
STEMS = ["a\nb", "\x1b[31mred", "\udcff", "-x", "ä", "x" * 200, " ", "a:b", "%s{}", "net.py:a"]
OUTPUTS = [
    "-", "/dev/null", "/dev/full", "/dev/stdout", "old", "old -f", "link", "link -f", "dangling",
    "input", "input -f", "hard -f", "folder", "no/new", "x" * 300, "pipe", "\udcff", "-f",
]  # fmt: skip
EXTRA = ["--json", "-f", "--dry-run", "--no-verify", "--lossless", "-j 2", "--limit 1k", "--quiet"]


@dataclass
class Run:
    """A command, the files that it finds, and what goes wrong around it.

    Attributes:
        kind: what is odd about it, for the table.
        words: arguments.
        places: what lies in the folder in place of the originals, by name: bytes, or a pair of a
            form (of `FORMS`) and what it needs.
        stdin: its standard input.
        condition: of `CONDITIONS`.
        amount: 0 to 1, of the condition: when a signal comes, how large a limit is.
        again: whether a signal comes twice, and whether the whole group gets it, as by Ctrl-C.
    """

    kind: str
    words: list[str]
    places: dict[str, Any] = field(default_factory=dict)
    stdin: bytes = b""
    condition: str = "plain"
    amount: float = 0.0
    again: tuple[bool, bool] = (False, False)


# ---- draws ----


def draw(rng: Rng, originals: dict[str, bytes]) -> Run:
    """A command, its files and its conditions."""
    kind = pick(rng, ["words", "damaged", "damaged", "swapped form", "odd file", "output", "work"])
    condition = pick(rng, CONDITIONS)
    if condition.startswith("SIG") and rng.random() < 0.7:
        kind = "work"
    run = {
        "words": _draw_words,
        "damaged": _draw_damaged,
        "swapped form": _draw_form,
        "odd file": _draw_odd_file,
        "output": _draw_output,
        "work": _draw_work,
    }[kind](rng, originals)
    if kind != "words" and rng.random() < 0.25:
        run.words += pick(rng, EXTRA).split()
    if "-" in run.words and not run.stdin:
        run.stdin = pick(rng, [b"", b"rubbish", originals["m.safetensors"], originals["m.tqc"]])
    run.condition, run.amount = condition, float(rng.random())
    run.again = (bool(rng.random() < 0.2), bool(rng.random() < 0.3))
    if condition == "disk":
        _onto_disk(run)
    return run


def _draw_words(rng: Rng, originals: dict[str, bytes]) -> Run:
    names = [*inputs.NAMES, *originals]
    words = [pick(rng, inputs.VERBS), *(pick(rng, names) for _ in range(rng.integers(3)))]
    for _ in range(rng.integers(6)):
        kind = rng.integers(4)
        if kind == 0:
            words.append(pick(rng, inputs.FLAGS))
        elif kind == 1:
            words += [pick(rng, inputs.WITH_NUMBER), pick(rng, inputs.NUMBERS)]
        elif kind == 2:
            words += [pick(rng, inputs.WITH_NAME), pick(rng, names)]
        else:
            words += pick(rng, inputs.OTHERS)
    return Run("words", [word.replace("\0", "0") for word in words])  # no process takes a NUL


def _draw_good(rng: Rng) -> tuple[str, list[str]]:
    name = pick(rng, list(inputs.COMMANDS))
    return name, pick(rng, inputs.COMMANDS[name]).split()


def _draw_damaged(rng: Rng, originals: dict[str, bytes]) -> Run:
    name, words = _draw_good(rng)
    kind, data = inputs.draw_damage(rng, name, originals)
    return Run(f"damaged: {kind}", words, {name: data}, data if "-" in words else b"")


def _draw_form(rng: Rng, originals: dict[str, bytes]) -> Run:
    name, words = _draw_good(rng)
    form = pick(rng, FORMS)
    if form != "name":
        return Run(f"form: {form}", words, {name: (form, originals[name])})
    new = pick(rng, STEMS) + name[name.index(".") :].replace("/", "")
    words = [word.replace(name, new) if word.startswith(name) else word for word in words]
    return Run("form: name", words, {new: originals[name]})


def _draw_work(rng: Rng, originals: dict[str, bytes]) -> Run:
    words, places = pick(rng, inputs.WORK).split(), {}
    output = words[words.index("-o") + 1] if "-o" in words else "-"
    if output != "-" and rng.random() < 0.5:
        places[output] = OLD
        words.append("-f")
    return Run("work", words, places)


def _draw_odd_file(rng: Rng, originals: dict[str, bytes]) -> Run:
    good = {*inputs.COMMANDS, "images/0.png", "images/2.png", "net.py"}
    name = pick(rng, [name for name in originals if name not in good])
    return Run("odd file", pick(rng, inputs.odd_commands(name)).split())


def _draw_output(rng: Rng, originals: dict[str, bytes]) -> Run:
    while "-o" not in (words := _draw_good(rng)[1]):
        pass
    at = words.index("-o") + 1
    suffix, how = Path(words[at]).suffix, pick(rng, OUTPUTS)
    name, _, forced = how.partition(" ")
    source = next((word for word in words if word in originals), "m.safetensors")
    places: dict[str, Any] = {}
    output = name if name.startswith(("-", "/")) or name == "no/new" else f"{name}{suffix}"
    if name == "-f":
        output, forced = words[at], "-f"
    elif name == "input":
        output = source
    elif name == "hard":
        places[output] = ("name", source)
    elif name in ("old", "link"):
        places["old" + suffix] = OLD
        places[output] = OLD if name == "old" else ("link", "old" + suffix)
    elif name in ("dangling", "folder", "pipe"):
        places[output] = ("link", "not" + suffix) if name == "dangling" else (name, b"")
    words[at] = output
    return Run(f"output: {how[:9]}", [*words, *([forced] if forced else [])], places)


def _onto_disk(run: Run) -> None:
    """Its output goes into a folder that will be full."""
    if "-o" in run.words[:-1]:
        at = run.words.index("-o") + 1
        name = Path(run.words[at]).name
        if run.words[at] == name and name not in ("", "-") and len(name) < 100:
            run.words[at] = f"disk/{name}"
            run.places[f"disk/{name}"] = OLD
            run.words.append("-f")


# ---- the folder ----


def lay(run: Run, originals: Path, folder: Path) -> dict[str, bytes]:
    """Lay out the files that a command finds; what the pipes among them give, by name."""
    shutil.copytree(originals, folder)
    (folder / "disk").mkdir()
    pipes = {}
    for name, what in run.places.items():
        path, aside = folder / name, folder / "aside"
        path.unlink(missing_ok=True)
        form, data = what if isinstance(what, tuple) else ("file", what)
        if form in ("symbolic", "hard"):
            aside.write_bytes(data)
            path.symlink_to(aside) if form == "symbolic" else path.hardlink_to(aside)
        elif form == "name":
            path.hardlink_to(folder / data)
        elif form in ("link", "dangling", "loop", "null"):
            target = {"dangling": "nothing", "loop": path.name, "null": "/dev/null"}
            path.symlink_to(data if form == "link" else target[form])
        elif form == "pipe":
            os.mkfifo(path)
            pipes[name] = data
        elif form == "folder":
            path.mkdir()
        else:
            path.write_bytes(data)
            path.chmod(0o444 if form == "read-only" else 0o644)
    return pipes


def contents(folder: Path) -> dict[str, Any]:
    """What is in a folder, by name; links are not followed, and Python's caches do not count."""
    found: dict[str, Any] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for path in (Path(place, name) for name in folders + names):
            if path.is_symlink():
                about: Any = ("link", str(path.readlink()))
            elif path.is_file():
                about = path.read_bytes()
            else:
                about = "folder" if path.is_dir() else "pipe"
            found[str(path.relative_to(folder))] = about
    return found


def outputs_of(words: list[str], folder: Path) -> tuple[list[str], str | None]:
    """Names of the files that a command may write, links followed, and its verb."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            arguments = make_parser().parse_args(words)
    except (UsageError, SystemExit):
        return [], None
    verb, name = arguments.command, getattr(arguments, "output", None)
    suffix = {"encode": ".tqc", "decode": ".safetensors", "report": ".html"}.get(verb)
    with contextlib.suppress(tqcodec.EncodeError):
        if name is None and suffix is not None and arguments.input is not None:
            name = checkpoints.with_suffix(arguments.input, suffix)
    if name in (None, checkpoints.STANDARD) or getattr(arguments, "dry_run", False):
        return [], verb
    names = [name] if verb != "sweep" else [name, str(Path(name).with_suffix(".csv"))]
    with contextlib.suppress(ValueError):  # two dots or so: no name of a file
        real = [os.path.realpath(folder / name) for name in names]
        read = {os.path.realpath(folder / one) for one in inputs_of(arguments)}
        return [os.path.relpath(path, folder) for path in real if path not in read], verb
    return [], verb


def fault_of(path: Path, verb: str | None) -> str | None:
    """Why a file is not what a command leaves when it is done; None for a good one."""
    try:
        data = path.read_bytes()
        if verb == "encode":
            tqcodec.verify(data)
        elif verb == "calibrate":
            tqcodec.Statistics.load(path)
        elif verb == "decode":
            checkpoints.read(str(path))
        elif not data.endswith((b"IEND\xaeB`\x82", b"</html>\n", b"\n")):
            return "is cut off"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


# ---- the process ----

# The files of `disk` lie on a full one while the command runs, and are put back after it.
ON_DISK = """
mkdir ../back && cp -a disk/. ../back && mount -t tmpfs -o size=$0k tmpfs disk || exit 77
cp -a ../back/. disk && "$@"
code=$?
rm -rf ../back/* && cp -a disk/. ../back && umount disk && rm -rf disk/* && cp -a ../back/. disk
exit $code
"""


def _limited(run: Run) -> None:
    """What a process does before it becomes the command."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)  # nohup and & may ignore them
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    closed = {"stdin closed": [0], "stdout closed": [1], "stderr closed": [2]}
    for number in closed.get(run.condition, [0, 1, 2] if run.condition == "all closed" else []):
        os.close(number)
    kind, most = {
        "file size": (resource.RLIMIT_FSIZE, int(2 ** (4 + 12 * run.amount))),
        "memory": (resource.RLIMIT_AS, int(2 ** (27 + 6 * run.amount))),
        "descriptors": (resource.RLIMIT_NOFILE, int(4 + 30 * run.amount)),
    }.get(run.condition, (None, 0))
    if kind is not None:
        resource.setrlimit(kind, (most, most))


def _stream(run: Run, name: str) -> Any:
    """What standard output or error of a command is."""
    return Path("/dev/full").open("wb") if run.condition == f"{name} full" else subprocess.PIPE


def session(leader: int) -> list[int]:
    """Live processes of the session that a process began."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, sid = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            if sid == str(leader) and state != "Z":
                found.append(int(place.name))
    return found


def _shared() -> set[str]:
    return {path.name for path in SHARED.iterdir()} if SHARED.is_dir() else set()


def _unused(before: set[str]) -> set[str]:
    """New names in /dev/shm that stay and that no process has mapped: others come and go there."""
    end = time.monotonic() + GRACE
    while (new := _shared() - before) and time.monotonic() < end:
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with contextlib.suppress(OSError):
                text = maps.read_text(errors="replace")
                new -= {name for name in new if f"{SHARED}/{name}" in text}
        if not new:
            break
        time.sleep(0.1)
    return new


@contextlib.contextmanager
def _served(folder: Path, pipes: dict[str, bytes]) -> Iterator[None]:
    """Somebody is at the other end of the pipes that lie in a folder: one gives, or takes."""

    def serve(path: Path, data: bytes) -> None:
        with contextlib.suppress(OSError), path.open("wb" if data else "rb") as pipe:
            pipe.write(data) if data else pipe.read()

    threads = {
        name: threading.Thread(target=serve, args=(folder / name, data), daemon=True)
        for name, data in pipes.items()
    }
    for thread in threads.values():
        thread.start()
    try:
        yield
    finally:
        for name, thread in threads.items():  # those whom nobody met are met now
            with contextlib.suppress(OSError):
                mode = os.O_RDONLY if pipes[name] else os.O_RDWR
                os.close(os.open(folder / name, mode | os.O_NONBLOCK))
            thread.join(PATIENCE)


def execute(run: Run, originals: Path, root: Path) -> dict[str, Any]:
    """Run a command in a folder of its own under `root`; the outcome, with its faults."""
    folder, temporary = root / "work", root / "tmp"
    pipes = lay(run, originals, folder)
    temporary.mkdir()
    before, shared = contents(folder), _shared()
    outputs, verb = outputs_of(run.words, folder)
    command = [sys.executable, "-m", "tqcodec", *run.words]
    if run.condition == "disk":
        size = str(int(2 ** (3 + 5 * run.amount)))
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_DISK, size, *command]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "MPLCONFIGDIR": str(originals.parent)}
    (root / "stdin").write_bytes(run.stdin)
    start = time.monotonic()
    with _served(folder, pipes), (root / "stdin").open("rb") as stdin:
        streams = [_stream(run, name) for name in ("stdout", "stderr")]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=stdin,
            stdout=streams[0],
            stderr=streams[1],
            preexec_fn=lambda: _limited(run),
            start_new_session=True,
        )
        out, err, hangs = _ended(run, process)
        for stream in streams:
            if stream is not subprocess.PIPE:
                stream.close()
        left = _left_of(process.pid)
    code, text = process.returncode, err.decode(errors="replace")
    line = {"code": code, "seconds": round(time.monotonic() - start, 2)}
    if run.condition == "disk" and code == 77:
        return line | {"faults": [], "stderr": "no file system may be mounted here"}
    faults = ["hangs"] * hangs + [f"process {one} is left" for one in left]
    faults += [f"{one} is left in {SHARED}" for one in _unused(shared)]
    faults += [f"{name} is left in the folder of temporary files" for name in contents(temporary)]
    faults += _faults_of_streams(run, code, out, text, verb)
    faults += _faults_of_files(run, code, before, contents(folder), outputs, verb, folder)
    return line | {"faults": faults, "stderr": text[-2000:]}


def _ended(run: Run, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes, bool]:
    """Standard output and error of a process when it has ended, and whether it had to be ended."""
    if run.condition in ("stdout broken", "stderr broken", "stdout unread"):
        stream = process.stderr if run.condition[3:6] == "err" else process.stdout
        assert stream is not None
        if run.condition.endswith("unread"):
            time.sleep(2 * run.amount)
        stream.close()
        if stream is process.stdout:
            process.stdout = None
        else:
            process.stderr = None
    elif run.condition.startswith("SIG"):
        number, twice = getattr(signal, run.condition), run.again[0]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3 * run.amount**2)
        for _ in range(1 + twice):
            if process.poll() is None:
                os.killpg(process.pid, number) if run.again[1] else process.send_signal(number)
                time.sleep(0.02 * twice)
    try:
        out, err = process.communicate(timeout=PATIENCE)
        return out or b"", err or b"", False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return out or b"", err or b"", True


def _left_of(leader: int) -> list[int]:
    """Processes that are still there a while after the first of their session; they are ended."""
    end = time.monotonic() + GRACE
    while (left := session(leader)) and time.monotonic() < end:
        time.sleep(0.02)
    for one in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return left


# ---- the verdict ----


def _faults_of_streams(run: Run, code: int, out: bytes, err: str, verb: str | None) -> list[str]:
    allowed = set(CODES)
    if run.condition.startswith("SIG"):
        number = getattr(signal, run.condition)
        allowed.add(-number)
        allowed |= {INTERRUPTED} if number == signal.SIGINT else set()
    elif run.condition in ("stdout broken", "stdout unread"):
        allowed.add(BROKEN_PIPE)
    elif run.condition == "memory":  # libraries in C end the process
        allowed |= {-signal.SIGABRT, -signal.SIGSEGV, 127}
    faults = [] if code in allowed else [f"exit code {code}"]
    if _is_start(run, err):
        return faults
    faults += ["traceback"] * ("Traceback" in err)
    faults += ["codes for a terminal"] * ("\x1b" in err or (verb in PRINTING and b"\x1b" in out))
    # A result may be there as well where the command was done.
    if code in (1, 2, 3, 4):
        other = [line for line in err.splitlines() if not line.startswith("tqcodec: ")]
        if run.condition == "memory":  # libraries in C say something, and end the process
            other = [line for line in other if not line.startswith("OpenBLAS")]
        faults += [f"says {line[:80]!r}" for line in other[:1]]
        heard = run.condition not in ("stderr closed", "all closed", "stderr full", "stderr broken")
        if heard and not err:
            faults.append("fails without a word")
    if code == 0 and "--json" in run.words and verb is not None and out:
        try:
            json.loads(out)
        except ValueError:
            faults.append("no JSON document")
    return faults


def _is_start(run: Run, err: str) -> bool:
    """Whether Python failed, or Ctrl-C came, before any of our code ran."""
    early = run.condition in ("SIGINT", "memory", "descriptors") and "Traceback" in err
    return early and not any(name in err for name in ("tqcodec/__main__.py", "tqcodec/encoder"))


def _faults_of_files(
    run: Run,
    code: int,
    before: dict[str, Any],
    after: dict[str, Any],
    outputs: list[str],
    verb: str | None,
    folder: Path,
) -> list[str]:
    faults = []
    # What was written before a stream failed, or a signal came, is whole; else nothing is written.
    may_write = code == 0 or run.condition.startswith(("std", "all", "SIG"))
    for name in sorted({**before, **after}):
        if after.get(name) == before.get(name):
            continue
        if name not in outputs:
            what = (
                "is left" if name not in before else "has changed" if name in after else "is lost"
            )
            faults.append(f"{name!r} {what}")
        elif name not in after or not may_write:
            faults.append(f"output {name!r} has changed, with exit code {code}")
        elif fault := fault_of(folder / name, verb):
            faults.append(f"output {name!r}: {fault}")
    if code == 0 and verb in ("encode", "decode", "report", "calibrate", "sweep"):
        inside = [name for name in outputs if not name.startswith("..")]
        faults += [f"no output {name!r}" for name in inside if name not in after]
    return faults

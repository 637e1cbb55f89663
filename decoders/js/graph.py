"""Describes a network of PyTorch for the page that runs it (demo/classify.html).

    python graph.py NETWORK.py:FUNCTION --input 3 32 32 --mean 124,116,104 --std 58,57,57 \
        --labels cat,dog --file network.tqc -o network.json

FUNCTION returns the network, an nn.Module, which is traced (torch.fx) and not run; weights are not
looked at. README.md says what is written. What the page does not know is refused.
"""

from __future__ import annotations

import argparse
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from tqcodec.cli.arguments import numbers
from tqcodec.torch.user_code import load_model

Layer = dict[str, Any]


class UnknownError(Exception):
    """Something that the page cannot compute."""


def graph_of(model: nn.Module) -> tuple[list[Layer], str]:
    """The layers of a network in the order in which they run, and the name of the last one.

    Raises:
        UnknownError: the network cannot be traced, or has a layer that the page does not know.
    """
    try:
        traced = fx.symbolic_trace(model.eval())
    except Exception as error:
        raise UnknownError(f"cannot be traced: {error}") from error
    modules = dict(traced.named_modules())
    names: dict[fx.Node, str] = {}  # of the layer that a node's value is of
    layers: list[Layer] = []
    traced.graph.eliminate_dead_code()
    for node in traced.graph.nodes:
        if node.op == "placeholder" and not names:
            names[node] = "input"
            continue
        if node.op == "output":
            if node.args[0] not in names:
                break
            return layers, names[node.args[0]]
        try:
            found = _layer(node, modules)
        except (TypeError, AttributeError, IndexError) as error:
            raise UnknownError(f"{_shown(node, modules)}: {error}") from error
        if found is None:
            raise UnknownError(f"{_shown(node, modules)}: not known to the page")
        inputs = [names[one] for one in node.all_input_nodes]
        if node.op == "call_function" and len(node.args) == 2 and node.args[0] is node.args[1]:
            inputs *= 2
        if found == {}:  # nothing happens
            names[node] = inputs[0]
            continue
        names[node] = node.name
        layers.append({"name": node.name, "inputs": inputs, **found})
    raise UnknownError("no output that is one tensor of the network")


def _shown(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """A node for people."""
    if node.op == "call_module":
        return f"layer {node.target} ({type(modules[str(node.target)]).__name__})"
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> Layer | None:
    """What a node computes; {} for nothing, None for what is not known."""
    if node.op == "call_module":
        target = str(node.target)
        module = modules[target]
        make = next((make for kind, make in MODULES.items() if isinstance(module, kind)), None)
        return None if make is None else make(module, target)
    if node.op not in ("call_function", "call_method"):
        return None
    name = node.target if isinstance(node.target, str) else FUNCTIONS.get(node.target)
    make_call = CALLS.get(str(name))
    return None if make_call is None else make_call(*node.args[1:], **node.kwargs)


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _tensors(module: nn.Module, path: str, names: dict[str, str]) -> Layer:
    """Names of a module's tensors in the file; those that it lacks are left out."""
    has = {key: getattr(module, name) is not None for key, name in names.items()}
    return {key: f"{path}.{name}" for key, name in names.items() if has[key]}


def _conv(module: Any, path: str) -> Layer:
    padding = module.padding
    if padding == "same" and any(d * (k - 1) % 2 for d, k in _odd(module)):
        raise UnknownError(f"{path}: padding 'same' of an even kernel")
    if isinstance(padding, str):
        padding = [d * (k - 1) // 2 * (padding == "same") for d, k in _odd(module)]
    if module.padding_mode != "zeros":
        raise UnknownError(f"{path}: padding_mode {module.padding_mode!r}")
    return {
        "op": "conv",
        **_tensors(module, path, {"weight": "weight", "bias": "bias"}),
        "stride": _pair(module.stride),
        "padding": list(padding),
        "dilation": _pair(module.dilation),
        "groups": module.groups,
    }


def _odd(module: Any) -> list[tuple[int, int]]:
    return list(zip(module.dilation, module.kernel_size, strict=True))


def _norm(module: Any, path: str) -> Layer:
    if module.running_mean is None:
        raise UnknownError(f"{path}: a normalisation without running statistics")
    parts = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    return {"op": "norm", **_tensors(module, path, parts), "eps": module.eps}


def _linear(module: Any, path: str) -> Layer:
    return {"op": "linear", **_tensors(module, path, {"weight": "weight", "bias": "bias"})}


def _relu(inplace: bool = False) -> Layer:
    return {"op": "relu"}


def _relu6(inplace: bool = False) -> Layer:
    return {"op": "relu", "most": 6}


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Layer:
    if ceil_mode or return_indices or _pair(dilation) != [1, 1]:
        raise UnknownError("max_pool2d with ceil_mode, indices or dilation")
    return _pool("max", kernel_size, stride, padding)


def _average_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Layer:
    if ceil_mode or not count_include_pad or divisor_override is not None:
        raise UnknownError("avg_pool2d with ceil_mode, count_include_pad=False or a divisor")
    return _pool("average", kernel_size, stride, padding)


def _pool(kind: str, kernel: Any, stride: Any, padding: Any) -> Layer:
    stride = kernel if stride is None or stride == [] else stride
    sizes = {"kernel": _pair(kernel), "stride": _pair(stride), "padding": _pair(padding)}
    return {"op": "pool", "of": kind, **sizes}


def _whole_average(output_size: Any) -> Layer:
    if _pair(output_size) != [1, 1]:
        raise UnknownError(f"adaptive_avg_pool2d to {output_size}")
    return {"op": "mean", "keep": True}


def _mean(dim: Any, keepdim: bool = False) -> Layer:
    if sorted(d % 4 for d in dim) != [2, 3]:
        raise UnknownError(f"mean over the dimensions {dim}")
    return {"op": "mean", "keep": keepdim}


def _flatten(start_dim: int = 0, end_dim: int = -1) -> Layer:
    if (start_dim, end_dim) != (1, -1):
        raise UnknownError(f"flatten from {start_dim} to {end_dim}")
    return {"op": "flatten"}


def _pad(pad: Any, mode: str = "constant", value: float | None = None) -> Layer:
    if mode != "constant" or value or len(pad) > 6 or min(pad) < 0:
        raise UnknownError(f"pad {pad}, {mode}, {value}")
    pairs = [list(pad[i : i + 2]) for i in range(0, len(pad), 2)][::-1]
    return {"op": "pad", "by": [[0, 0]] * (3 - len(pairs)) + pairs}


def _step(index: Any) -> Layer:
    """Every n-th of channels, rows and columns."""
    parts = [*index, *[slice(None)] * (4 - len(index))]
    plain = all(isinstance(p, slice) and p.start is None and p.stop is None for p in parts)
    if not plain or len(parts) != 4 or parts[0].step not in (None, 1):
        raise UnknownError(f"index {index}")
    return {"op": "step", "by": [part.step or 1 for part in parts[1:]]}


def _add(other: Any, alpha: float = 1) -> Layer:
    if not isinstance(other, fx.Node) or alpha != 1:
        raise UnknownError(f"a sum with {other!r}")
    return {"op": "add"}


def _nothing(*_: Any, **__: Any) -> Layer:
    return {}


MODULES: dict[type[nn.Module], Callable[[Any, str], Layer]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _norm,
    nn.Linear: _linear,
    nn.ReLU: lambda m, _: _relu(),
    nn.ReLU6: lambda m, _: _relu6(),
    nn.MaxPool2d: lambda m, _: _max_pool(
        m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda m, _: _average_pool(
        m.kernel_size,
        m.stride,
        m.padding,
        m.ceil_mode,
        m.count_include_pad,
        m.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: lambda m, _: _whole_average(m.output_size),
    nn.Flatten: lambda m, _: _flatten(m.start_dim, m.end_dim),
    nn.ZeroPad2d: lambda m, _: _pad(m.padding),
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
}
CALLS: dict[str, Callable[..., Layer]] = {
    "relu": _relu,
    "relu_": _relu,
    "relu6": _relu6,
    "add": _add,
    "getitem": _step,
    "pad": _pad,
    "mean": _mean,
    "flatten": _flatten,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _whole_average,
    "dropout": _nothing,
    "contiguous": _nothing,
}
FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    functional.relu6: "relu6",
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.getitem: "getitem",
    functional.pad: "pad",
    torch.mean: "mean",
    torch.flatten: "flatten",
    functional.max_pool2d: "max_pool2d",
    torch.max_pool2d: "max_pool2d",
    functional.avg_pool2d: "avg_pool2d",
    functional.adaptive_avg_pool2d: "adaptive_avg_pool2d",
    functional.dropout: "dropout",
}


def main() -> None:
    """Write the description of a network."""
    parser = argparse.ArgumentParser(prog="graph.py", description=__doc__)
    parser.add_argument("network", metavar="FILE.py:FUNCTION")
    parser.add_argument("--input", type=int, nargs=3, required=True, help="channels height width")
    about = "of pixels, 0 to 255: one number, or one a channel with commas between"
    parser.add_argument("--mean", type=numbers, default=[0.0], help=about)
    parser.add_argument("--std", type=numbers, default=[255.0], help=about)
    parser.add_argument("--labels", default="", help="names of the classes, commas between")
    parser.add_argument("--file", required=True, help="name of the .tqc file beside the output")
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    channels = arguments.input[0]
    if {len(arguments.mean), len(arguments.std)} - {1, channels}:
        parser.error(f"--mean and --std take 1 or {channels} numbers")
    try:
        layers, output = graph_of(load_model(arguments.network))
    except (UnknownError, ValueError, OSError) as error:
        parser.error(str(error))
    description = {
        "file": arguments.file,
        "input": {"shape": arguments.input, "mean": arguments.mean, "std": arguments.std},
        "labels": [label for label in arguments.labels.split(",") if label],
        "output": output,
    }
    head = "".join(f' "{key}": {json.dumps(value)},\n' for key, value in description.items())
    rows = ",\n  ".join(map(json.dumps, layers))
    Path(arguments.output).write_text(f'{{\n{head} "layers": [\n  {rows}\n ]\n}}\n', "utf-8")


if __name__ == "__main__":
    main()

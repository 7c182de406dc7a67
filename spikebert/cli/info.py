"""``spikebert info``: what is in a file of ours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spikebert.cli.application import common_options, print_json, results
from spikebert.cli.grammar import Command
from spikebert.cli.graph_runs import dt_option
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

FIRST_FACTS = ("kind", "file", "source", "bytes", "sha256", "precision", "time_steps", "dt", "parameters")
"""What is said first of any file, in this order."""
PROBLEM = "tokenizer_problem"
"""What is said whole, behind the table, where it is not None."""
LONGEST_FACT = 160
TIMED = ("LIF", "IF", "CubaLIF", "LI", "CubaLI", "I", "Delay")
"""Types of NIR nodes that count in seconds."""
SHOWN_VALUES = 8
"""A setting of a layer with more values is not printed."""


@click.command(cls=Command)
@click.argument("path", metavar="FILE")
@dt_option
@common_options
def info(path: str, dt: float | None, seed: int, as_json: bool) -> None:
    """Explain a checkpoint (folder, or the word default), a .nir, .onnx, .net or trace file (.npz).

    Nodes, operators and which of them are not standard, parameters, neuron semantics, precision, hash; of a checkpoint
    whether its tokenizer is there, can be read and fits the vocabulary. Of a NIR file that does not say how long a time
    step is, what its nodes hold; with --dt what they compute.

    \b
    Examples:
      spikebert info model.nir
      spikebert info from_snntorch.nir --dt 1e-4
    """
    from rich.markup import escape

    explain = EXPLAINED.get(Path(path).suffix)
    if dt is not None and explain is not _explain_nir:
        raise ConfigurationError("--dt is for NIR files only")
    if explain is _explain_nir:
        facts, table = _explain_nir(Path(path), dt)
    elif explain is not None:
        facts, table = explain(Path(path))
    elif Path(path).is_file():
        raise ConfigurationError(f"{path}: is not a checkpoint folder, a .nir, .onnx or .net file or a trace (.npz)")
    else:
        facts, table = _explain_checkpoint(path)
    if as_json:
        print_json(facts)
        return
    first = [key for key in FIRST_FACTS if key in facts]
    for key in [*first, *(key for key in facts if key not in (*FIRST_FACTS, PROBLEM))]:
        if not isinstance(facts[key], list | dict):
            results.print(f"{key.replace('_', ' ')}: {_in_short(key, facts[key])}", markup=False, soft_wrap=True)
    results.print(table)
    if facts.get(PROBLEM):
        results.print("[bold yellow]tokenizer[/]:", escape(facts[PROBLEM]), soft_wrap=True)
    for equations, nodes in facts.get("neuron_equations", {}).items():
        results.print(f"{nodes} nodes of neurons compute {equations}", markup=False, soft_wrap=True)
    marked = facts.get("non_standard_nodes")
    if marked:
        results.print(
            f"{len(marked)} nodes are operators that NIR lacks, see docs/nir-extension.md: {', '.join(marked)}",
            markup=False,
            soft_wrap=True,
        )


def _in_short(key: str, value: Any) -> str:
    """Return a fact as people read it: large counts in groups of three digits, long text cut off."""
    if key in ("bytes", "external_bytes", "parameters"):
        return f"{value:,}"
    text = "not said" if value is None else str(value)
    return text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]}… (whole with --json)"


def _explain_checkpoint(name: str) -> tuple[dict[str, Any], Table]:
    import numpy as np
    from rich.table import Table

    from spikebert.checkpoint import checkpoint_sha256, load_model, resolve_checkpoint
    from spikebert.families import family_of

    source = resolve_checkpoint(name)
    model = load_model(name, encoder_allowed=True)
    config, family = model.config, family_of(model, name)
    layers = {key: tuple(value.shape) for key, value in model.named_parameters()}
    headless = ", an encoder without a classifier" if isinstance(model, family.encoder_class) else ""
    facts = {
        "kind": f"checkpoint{headless}",
        "source": source,
        "sha256": checkpoint_sha256(name),
        "parameters": sum(int(np.prod(shape)) for shape in layers.values()),
        "blocks": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "time_steps": config.time_steps,
        **family.facts(config),
        "labels": json.dumps(config.id2label),
        **_tokenizer_facts(name, config.vocab_size),
        "configuration": config.to_diff_dict(),
    }
    table = Table("parameter", "shape", box=None)
    for key, shape in layers.items():
        table.add_row(key, " x ".join(map(str, shape)))
    return facts, table


def _tokenizer_facts(name: str, vocabulary: int) -> dict[str, Any]:
    """Return what lies beside the weights to read text with, and what is wrong with it; a model runs without one.

    Parameters
    ----------
    name : str
        Of the checkpoint.
    vocabulary : int
        Rows of the embedding table.
    """
    from spikebert.checkpoint import load_tokenizer
    from spikebert.errors import CheckpointError

    problem: str | None = None
    try:
        tokenizer = load_tokenizer(name)
    except CheckpointError as error:
        problem = f"{error}. Until then nothing reads text for it; its graph runs on token ids (simulate --ids)"
        return {"tokenizer": "none that can be used", PROBLEM: problem}
    backend, tokens = getattr(tokenizer, "backend_tokenizer", None), tokenizer.get_vocab()
    kind = type(tokenizer if backend is None else backend.model).__name__
    said = f"{kind}, {len(tokens):,} tokens for the {vocabulary:,} rows of the embedding"
    last = max(tokens.values(), default=-1)
    if last >= vocabulary:
        beyond = sum(index >= vocabulary for index in tokens.values())
        problem = (
            f"{beyond:,} of its {len(tokens):,} tokens have ids up to {last:,}, and the embedding has {vocabulary:,} "
            "rows, so a sentence with one of them is refused. Put the tokenizer there that the model was trained with"
        )
    return {"tokenizer": said, PROBLEM: problem}


def _explain_nir(path: Path, dt: float | None = None) -> tuple[dict[str, Any], Table]:
    from export.nir_file import read_network, read_nodes

    if dt is None and _lacks_dt(read_nodes(path)):
        return _explain_nodes(path)
    graph, network = read_network(path, dt)
    rows: list[dict[str, Any]] = []
    for node in network.nodes:
        operator = node.operator
        written = graph.nodes.get(node.name)
        standard = "edge sum" if written is None else ("no" if not written.metadata.get("standard", True) else "yes")
        rows.append(
            {
                "node": node.name,
                "operator": operator.name,
                "features": f"{operator.in_features} -> {operator.out_features}",
                "standard": standard,
                "parameters": _parameters(operator),
                "detail": _detail(operator),
                "reads": " + ".join(node.sources),
            }
        )
    facts = {
        **{key: value for key, value in network.metadata.items() if isinstance(value, str | int | float)},
        "kind": "NIR graph",
        **_file_facts(path),
        "precision": network.metadata.get("precision", "not said"),
        "time_steps": network.time_steps,
        "dt": network.dt,
        "parameters": sum(row["parameters"] for row in rows),
        "operators": dict(Counter(row["operator"] for row in rows)),
        "non_standard_nodes": [row["node"] for row in rows if row["standard"] == "no"],
        "neuron_equations": dict(Counter(_equations(node.operator) for node in network.spiking_nodes)),
        "nodes": rows,
    }
    return facts, _node_table(rows, "standard")


def _lacks_dt(graph: Any) -> bool:
    """Return whether a graph counts in seconds and does not say how long a time step is."""
    if "dt" in graph.metadata:
        return False
    return any(
        _lacks_dt(node) if hasattr(node, "nodes") else type(node).__name__ in TIMED and "dt" not in node.metadata
        for node in graph.nodes.values()
    )


def _explain_nodes(path: Path) -> tuple[dict[str, Any], Table]:
    """Explain what the nodes of a NIR file hold, where nothing says what they compute in a time step."""
    import numpy as np
    from rich.table import Table

    from export.nir_file import read_nodes

    graph = read_nodes(path)
    rows = []
    for name, node in graph.nodes.items():
        values = {key: value for key, value in vars(node).items() if isinstance(value, np.ndarray)}
        numbers = {key: value for key, value in values.items() if value.size and value.dtype.kind in "iuf"}
        rows.append(
            {
                "node": name,
                "operator": type(node).__name__,
                "detail": _settings({key: value for key, value in numbers.items() if key not in ("weight", "bias")}),
                "parameters": sum(value.size for value in values.values()),
                "reads": " + ".join(source for source, target in graph.edges if target == name),
            }
        )
    facts = {
        "kind": "NIR graph",
        **_file_facts(path),
        "dt": "not said: give --dt SECONDS to see what the nodes compute in a time step; time constants are in seconds",
        "parameters": sum(row["parameters"] for row in rows),
        "operators": dict(Counter(row["operator"] for row in rows)),
        "nodes": rows,
    }
    table = Table("node", "type", "parameters", "reads", box=None)
    for row in rows:
        table.add_row(*_cells(row, "parameters", "reads"))
    return facts, table


def _parameters(operator: Any) -> int:
    import numpy as np

    return sum(value.size for value in operator.parameters().values() if isinstance(value, np.ndarray))


def _detail(operator: Any) -> str:
    """Return what an operator that acts on each feature by itself does it with."""
    import numpy as np

    from export.operators import IntegerLeakyIntegrateAndFire, LeakyIntegrateAndFire

    if isinstance(operator, LeakyIntegrateAndFire):
        leak = f"tau {_span(operator.tau)} steps" if operator.decay_input else f"beta {_span(operator.beta)}"
    elif isinstance(operator, IntegerLeakyIntegrateAndFire):
        leak = f"decay {_span(operator.decay)}/4096"
    else:
        each = operator.parameters() if operator.traits.keeps_shape else {}
        return _settings({key: value for key, value in each.items() if isinstance(value, np.ndarray)})
    return (
        f"{leak}, threshold {_span(operator.threshold)}, {'>=' if operator.fire_on_equal else '>'}, "
        f"reset {operator.reset}"
    )


def _settings(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_span(value)}" for key, value in parameters.items() if key != "unit")


def _span(value: Any) -> str:
    """Return one number where all are the same, else the smallest and the largest."""
    import numpy as np

    low, high = float(np.min(value)), float(np.max(value))
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def _equations(operator: Any) -> str:
    return str(getattr(operator, "update", operator.name))


def _file_facts(path: Path) -> dict[str, Any]:
    from spikebert.provenance import file_sha256

    return {"file": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _node_table(rows: list[dict[str, Any]], last: str) -> Table:
    from rich.table import Table

    table = Table(box=None)
    for title in ("node", "operator", "features", last):  # in a narrow window only the operator is wrapped
        table.add_column(title, no_wrap=title != "operator", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row, "features", last))
    return table


def _cells(row: dict[str, Any], *columns: str) -> list[str]:
    """Return a row as printed: node, operator with its detail below, and more; brackets are no markup."""
    from rich.markup import escape

    operator = f"{row['operator']}\n{row['detail']}".strip()
    return [escape(str(text)) for text in (row["node"], operator, *(row[column] for column in columns))]


def _explain_onnx(path: Path) -> tuple[dict[str, Any], Table]:
    """Explain any ONNX file; one of ours by its own nodes, another's by ONNX's."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    from export.onnx_format.file import external_data, is_ours, load_onnx, read_onnx

    model = load_onnx(path)
    beside = external_data(model)
    files = [path.with_name(name) for name in beside if Path(name).name == name]  # ONNX reads no others either
    values = {"inputs": model.graph.input, "outputs": model.graph.output}
    stored: Counter[str] = Counter()  # a node's weights are called NODE/weight, NODE/bias, …
    for tensor in model.graph.initializer:
        owner = tensor.name.partition("/")[0]  # empty for constants that many nodes share
        stored[owner] += int(np.prod(tensor.dims, dtype=np.int64)) if owner else 0
    said = {entry.key: entry.value for entry in model.metadata_props}
    facts: dict[str, Any] = {
        **said,
        "kind": "ONNX model",
        **_file_facts(path),
        "operator_set": next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        **{key: [value.name for value in group] for key, group in values.items()},
        "parameters": sum(stored.values()),
        "onnx_operators": dict(Counter(node.op_type for node in model.graph.node)),
        "external_data": beside,
        "external_bytes": sum(file.stat().st_size for file in files if file.is_file()),
    }
    if not is_ours(model):
        table = Table("ONNX operator", "nodes", box=None)
        for op_type, count in facts["onnx_operators"].items():
            table.add_row(escape(op_type), str(count))
        return facts, table
    file = read_onnx(path)
    neurons = file.neurons
    rows = [
        {
            "node": node,
            "operator": operator,
            "detail": _settings_of_file(neurons[node]) if node in neurons else "",
            "value": "shown" if node in file.outputs else "inside",
            "parameters": stored[node],
        }
        for node, operator in file.operators.items()
    ]
    facts.update(
        precision=file.precision,
        time_steps=file.time_steps,
        operators=dict(Counter(file.operators.values())),
        neurons=neurons,
        neuron_equations=dict(Counter(neuron["update"] for neuron in neurons.values())),
        nodes=rows,
    )
    table = Table("node", "operator", "value is", "parameters", box=None)
    for row in rows:
        table.add_row(*_cells(row, "value", "parameters"))
    return facts, table


def _settings_of_file(neuron: dict[str, Any]) -> str:
    """Return the numbers of a neuron that a file's metadata give, whatever they are; its equations say the rest."""
    try:
        given = neuron.get("parameters", {})
        return _settings({key: value for key, value in given.items() if not isinstance(value, str | bool)})
    except (AttributeError, TypeError, ValueError):
        return ""


def _explain_net(path: Path) -> tuple[dict[str, Any], Table]:
    """Explain a file of SLAYER or netx (lava-dl): HDF5 with a group for each layer."""
    import h5py

    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    try:
        with h5py.File(path, "r") as file:
            layers = _plain(file, "layer", h5py.Group)
            if layers is None or not len(layers):
                raise ConfigurationError(f"{path}: has no group 'layer'; it is HDF5, but not of SLAYER or netx")
            rows = [_layer_row(layers, name) for name in sorted(layers, key=lambda key: (len(key), key))]
    except ConfigurationError:
        raise
    except Exception as error:  # a damaged file makes h5py raise OSError, KeyError, RuntimeError, TypeError, ...
        raise ConfigurationError(f"{path}: is not a readable HDF5 file: {type(error).__name__}: {error}") from error
    facts = {
        "kind": "SLAYER / netx network",
        **_file_facts(path),
        "precision": "integer",
        "layers": len(rows),
        "parameters": sum(row["parameters"] for row in rows),
        "operators": dict(Counter(row["operator"] for row in rows)),
        "nodes": rows,
    }
    return facts, _node_table(rows, "parameters")


def _plain(group: Any, key: str, kind: type) -> Any:
    """Return a member of an HDF5 group, None where it is missing, a link to elsewhere or of another kind."""
    import h5py

    member = group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None
    return member if isinstance(member, kind) else None


def _layer_row(layers: Any, name: str) -> dict[str, Any]:
    import h5py
    import numpy as np

    layer = _plain(layers, name, h5py.Group)
    if layer is None:
        return {"node": name, "operator": "not a layer", "detail": "", "features": "", "parameters": 0}

    def value(group: Any, key: str) -> str:
        found = _plain(group, key, h5py.Dataset) if group is not None else None
        if found is None or found.size > SHOWN_VALUES:
            return "" if found is None else f"{found.shape} values"
        array = np.asarray(found[()]).reshape(-1).tolist()
        return " ".join(entry.decode("utf-8", "replace") if isinstance(entry, bytes) else f"{entry}" for entry in array)

    neuron = _plain(layer, "neuron", h5py.Group)
    settings = [f"{key} {value(neuron, key)}" for key in neuron] if neuron is not None else []
    held = [_plain(layer, key, h5py.Dataset) for key in ("weight", "weight_rec", "bias", "delay")]
    return {
        "node": name,
        "operator": value(layer, "type") or "type not said",
        "detail": ", ".join(settings),
        "features": value(layer, "shape").replace(" ", " x "),
        "parameters": sum(int(dataset.size) for dataset in held if dataset is not None),
    }


def _explain_trace(path: Path) -> tuple[dict[str, Any], Table]:
    from rich.table import Table

    from hardware.trace import Trace

    trace = Trace.load(path)
    rows = [
        {"node": name, "shape": list(spikes.shape), "firing_rate": trace.firing_rate(name)}
        for name, spikes in trace.spikes.items()
    ]
    facts = {
        **trace.metadata,
        "kind": "trace",
        "file": str(path),
        "sentences": trace.mask.shape[0],
        "real_tokens": trace.real_tokens,
        "padding_tokens": int(trace.mask.size - trace.mask.sum()),
        "membrane_potentials": bool(trace.membrane_potentials),
        "nodes": rows,
    }
    table = Table("node", "steps x sentences x tokens x features", "firing rate", box=None)
    for name, spikes in trace.spikes.items():
        table.add_row(name, " x ".join(map(str, spikes.shape)), f"{100 * trace.firing_rate(name):.2f} %")
    return facts, table


EXPLAINED: dict[str, Callable[..., tuple[dict[str, Any], Table]]] = {
    ".nir": _explain_nir,
    ".onnx": _explain_onnx,
    ".net": _explain_net,
    ".npz": _explain_trace,
}
"""How a file is explained, by the end of its name."""

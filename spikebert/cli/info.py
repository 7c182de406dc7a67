"""``spikebert info``: what is in a file of ours."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from spikebert.cli.application import common_options, print_json, results
from spikebert.errors import ConfigurationError


@click.command()
@click.argument("path", metavar="FILE")
@common_options
def info(path: str, seed: int, as_json: bool) -> None:
    """Explain a checkpoint (folder, or the word default), a .nir file or a trace (.npz).

    \b
    Example:
      spikebert info model.nir
    """
    if path.endswith(".nir"):
        facts, table = _explain_nir(Path(path))
    elif path.endswith(".npz"):
        facts, table = _explain_trace(Path(path))
    elif Path(path).is_file():
        raise ConfigurationError(f"{path}: is not a checkpoint folder, a .nir file or a trace (.npz)")
    else:
        facts, table = _explain_checkpoint(path)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if not isinstance(value, list | dict):
            results.print(f"{key.replace('_', ' ')}: {value}", markup=False, soft_wrap=True)
    results.print(table)


def _explain_checkpoint(name: str) -> tuple[dict[str, Any], Table]:
    from spikebert.checkpoint import checkpoint_sha256, load_model, resolve_checkpoint

    source = resolve_checkpoint(name)
    model = load_model(name)
    config = model.config
    layers = {key: tuple(value.shape) for key, value in model.named_parameters()}
    facts = {
        "kind": "checkpoint",
        "source": source,
        "sha256": checkpoint_sha256(name),
        "parameters": sum(int(np.prod(shape)) for shape in layers.values()),
        "blocks": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "time_steps": config.time_steps,
        "neuron": f"{config.neuron}: {config.neuron_parameters()}",
        "attention_threshold": config.attention_threshold,
        "labels": json.dumps(config.id2label),
        "configuration": config.to_diff_dict(),
    }
    table = Table("parameter", "shape", box=None)
    for key, shape in layers.items():
        table.add_row(key, " x ".join(map(str, shape)))
    return facts, table


def _explain_nir(path: Path) -> tuple[dict[str, Any], Table]:
    from export.nir_file import read_network
    from export.operators import LeakyIntegrateAndFire
    from spikebert.provenance import file_sha256

    graph, network = read_network(path)
    rows = []
    for node in network.nodes:
        operator = node.operator
        detail = ""
        if isinstance(operator, LeakyIntegrateAndFire):
            leak = f"tau {operator.tau[0]:g} steps" if operator.decay_input else f"beta {operator.beta[0]:.6g}"
            detail = (
                f"{leak}, threshold {operator.threshold[0]:g}, {'>=' if operator.fire_on_equal else '>'}, "
                f"reset {operator.reset}"
            )
        written = graph.nodes.get(node.name)
        standard = "edge sum" if written is None else ("no" if not written.metadata.get("standard", True) else "yes")
        rows.append(
            {
                "node": node.name,
                "operator": operator.name,
                "features": f"{operator.in_features} -> {operator.out_features}",
                "standard": standard,
                "detail": detail,
                "reads": " + ".join(node.sources),
            }
        )
    facts = {
        **{key: value for key, value in network.metadata.items() if isinstance(value, str | int | float)},
        "kind": "NIR graph",
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "time_steps": network.time_steps,
        "dt": network.dt,
        "operators": dict(Counter(row["operator"] for row in rows)),
        "nodes": rows,
    }
    table = Table(box=None)
    for title in ("node", "operator", "features", "standard"):  # in a narrow window only the operator is wrapped
        table.add_column(title, no_wrap=title != "operator", overflow="fold")
    for row in rows:
        table.add_row(row["node"], f"{row['operator']}\n{row['detail']}".strip(), row["features"], row["standard"])
    return facts, table


def _explain_trace(path: Path) -> tuple[dict[str, Any], Table]:
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

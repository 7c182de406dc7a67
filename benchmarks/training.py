"""How fast ours trains beside snnTorch and SpikingJelly: one table, and results/training.json.

    python benchmarks/training.py [--device cpu] [--rounds 7] [--batch-size 16] [--tokens 32] [-o results/training.json]

Forward and backward of the same SpikeBERT with the same weights, on the same padded batch; the optimizer's step, which
is the same for all and no matter of spikes, is timed beside them. First like for like: float32, dense AdamW over all
weights, nothing compiled. Each library is compared with our neuron preset that is its neuron exactly, and logits and
gradients are checked to agree before anything is timed. Then ours as `spikebert distill` trains: bfloat16 products,
compiled neurons, sparse embedding gradients. Rounds go through all of them in turn, so that a busy machine slows all
alike; medians over rounds are compared. Memory is what autograd keeps for the backward pass, counted tensor by tensor,
for 2 to 16 time steps.

Marks: like for like at least 1.2 times as fast as the faster library, at best at least twice (on a CPU), memory growing
no faster than the number of time steps. The exit code is 1 where a mark is missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from training_baselines import Baseline, SnnTorchLoop, SpikingJellyMultiStep
from transformers import PreTrainedModel

from hardware.reports.files import write_json_object
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert.neuron import SpikingNeuron
from spikebert.provenance import run_record, seed_everything

MARK_LIKE_FOR_LIKE, MARK_AT_BEST = 1.2, 2.0
MEMORY_SLACK = 1.02  # what does not depend on time, such as the embedding, may not make it grow slower than T
STEPS_FOR_MEMORY = (2, 4, 8, 16)
LEARNING_RATE = 5e-4
PARTS = ("forward_backward", "update")
WARM_UP_ROUNDS = 2  # that compile and allocate
STUDENT: dict[str, Any] = {
    "vocab_size": 28_099,
    "hidden_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "position_embedding_type": "absolute",
    "embedding_neuron": "lif",
    "embedding_norm": True,
    "num_labels": 2,
}
TINY = {**STUDENT, "vocab_size": 100, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
LIBRARIES: dict[str, type[Baseline]] = {"snnTorch": SnnTorchLoop, "SpikingJelly": SpikingJellyMultiStep}

Inputs = tuple[Tensor, Tensor, Tensor]  # token ids (B, N), attention mask (B, N), labels (B,)
Step = tuple[Callable[[], None], Callable[[], None]]  # forward and backward; the optimizer's step


def main() -> None:
    """Measure, print, write, and say whether the marks are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7, help="rounds through all of them; at least 3")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="of the longest sentence")
    parser.add_argument("--time-steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads on a CPU")
    parser.add_argument("--tiny", action="store_true", help="a model of no consequence, to try the benchmark itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/training.json"))
    arguments = parser.parse_args()
    seed_everything(arguments.seed)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    shape = {**(TINY if arguments.tiny else STUDENT), "time_steps": arguments.time_steps}
    inputs = draw_inputs(shape["vocab_size"], arguments.batch_size, arguments.tokens, device)
    models = {preset: make_model(shape, preset, device) for preset in ("snntorch", "published")}
    contestants: dict[str, Step] = {}
    agreement = {}
    for name, kind in LIBRARIES.items():
        baseline = kind(models[kind.preset]).to(device).train()
        agreement[name] = check_agreement(name, models[kind.preset], baseline, inputs)
        contestants[name] = training_step(baseline, inputs)
        contestants[f"ours, neurons as {name}"] = training_step(copy.deepcopy(models[kind.preset]), inputs)
    contestants["ours at its best"] = best_training_step(copy.deepcopy(models["snntorch"]), inputs)
    seconds = measure(contestants, max(3, arguments.rounds), device)
    memory = {
        "ours": [
            kept_bytes(make_model({**shape, "time_steps": t}, "snntorch", device), inputs) for t in STEPS_FOR_MEMORY
        ]
    }
    for name, kind in LIBRARIES.items():
        memory[name] = [
            kept_bytes(kind(make_model({**shape, "time_steps": t}, kind.preset, device)).to(device), inputs)
            for t in STEPS_FOR_MEMORY
        ]
    verdict = judge(seconds, memory["ours"], device)
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": arguments.threads,
        "shape": shape,
        "batch": {"sentences": arguments.batch_size, "tokens": arguments.tokens, "real": int(inputs[1].sum())},
        "seconds": seconds,
        "largest_gradient_difference": agreement,
        "kept_bytes": {"time_steps": list(STEPS_FOR_MEMORY), **memory},
        **verdict,
        **run_record(arguments.seed),
    }
    show(result)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json_object(arguments.output, json.loads(json.dumps(result)))
    print(f"wrote {arguments.output}")
    if not arguments.tiny and not verdict["met"]:
        sys.exit(1)


def draw_inputs(vocabulary: int, sentences: int, tokens: int, device: torch.device) -> Inputs:
    """Return random sentences, from half the tokens to all of them long."""
    rng = np.random.default_rng(0)
    mask = np.arange(tokens) < rng.integers(tokens // 2, tokens + 1, (sentences, 1))
    ids = np.where(mask, rng.integers(5, vocabulary, (sentences, tokens)), 0)
    labels = rng.integers(0, 2, sentences)
    return tuple(torch.from_numpy(each.astype(np.int64)).to(device) for each in (ids, mask, labels))  # type: ignore


def make_model(shape: dict[str, Any], preset: str, device: torch.device) -> SpikeBertForSequenceClassification:
    """Return a model with a preset's neurons; the same weights for every preset."""
    torch.manual_seed(0)
    return SpikeBertForSequenceClassification(SpikeBertConfig(**shape, neuron=preset)).to(device).train()


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return logits, of ours or of a baseline."""
    said = model(inputs[0], attention_mask=inputs[1])
    return said if isinstance(said, Tensor) else said.logits


def check_agreement(name: str, ours: PreTrainedModel, baseline: Baseline, inputs: Inputs) -> float:
    """Return the largest difference of any gradient, in float64, having seen that both are one model.

    Raises
    ------
    SystemExit
        They are not, and a comparison would mean nothing.
    """
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(baseline).double()
    for model in (ours, theirs):
        F.cross_entropy(logits_of(model, inputs), inputs[2]).backward()
    gradients = dict(ours.named_parameters()), dict(theirs.model.named_parameters())
    largest = max(
        float((gradients[0][each].grad - gradients[1][each].grad).abs().max())
        for each in gradients[0]  # type: ignore
    )
    scale = max(float(p.grad.abs().max()) for p in gradients[0].values() if p.grad is not None)
    if not largest <= 1e-9 * scale:
        sys.exit(f"{name} and ours are not the same model: gradients differ by {largest:.3g} of {scale:.3g}")
    return largest


def training_step(model: nn.Module, inputs: Inputs) -> Step:
    """Return a step in float32 with AdamW over all weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def forward_backward() -> None:
        optimizer.zero_grad()
        F.cross_entropy(logits_of(model, inputs), inputs[2]).backward()

    return forward_backward, optimizer.step


def best_training_step(model: PreTrainedModel, inputs: Inputs) -> Step:
    """Return a step as `spikebert distill --compile` takes it."""
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.compile_recurrence()
    words = model.get_input_embeddings()
    words.sparse = True
    dense = [p for p in model.parameters() if p is not words.weight]
    optimizers = [torch.optim.AdamW(dense, lr=LEARNING_RATE), torch.optim.SparseAdam([words.weight], lr=LEARNING_RATE)]

    def forward_backward() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            logits = logits_of(model, inputs)
        F.cross_entropy(logits.float(), inputs[2]).backward()

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()

    return forward_backward, update


def measure(contestants: dict[str, Step], rounds: int, device: torch.device) -> dict[str, Any]:
    """Return median and quartiles of the seconds of both parts; on one CPU thread the processor's own time."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait = torch.cuda.synchronize if device.type == "cuda" else nullcontext
    times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in contestants}
    for number in track(range(rounds + WARM_UP_ROUNDS), "rounds", console=Console(stderr=True)):
        for name, step in contestants.items():
            for part, call in zip(PARTS, step, strict=True):
                wait()
                began = clock()
                call()
                wait()
                if number >= WARM_UP_ROUNDS:
                    times[name][part].append(clock() - began)

    def quartiles(values: list[float]) -> dict[str, float]:
        return dict(zip(("lower", "median", "upper"), statistics.quantiles(values, n=4), strict=True))

    return {name: {part: quartiles(values) for part, values in each.items()} for name, each in times.items()}


def kept_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Return what autograd keeps from a forward pass for its backward pass; weights, which it shares, left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(logits_of(model, inputs), inputs[2])
    total = sum(kept.values())
    del loss
    return total


def judge(seconds: dict[str, Any], memory: list[int], device: torch.device) -> dict[str, Any]:
    """Return the ratios, and whether the marks are met."""
    medians = {name: each["forward_backward"]["median"] for name, each in seconds.items()}
    faster = min(LIBRARIES, key=lambda name: medians[name])
    like_for_like = medians[faster] / medians[f"ours, neurons as {faster}"]
    at_best = medians[faster] / medians["ours at its best"]
    growth = [
        (later / earlier) / (t_later / t_earlier)
        for (earlier, t_earlier), (later, t_later) in pairwise(zip(memory, STEPS_FOR_MEMORY, strict=True))
    ]
    met = like_for_like >= MARK_LIKE_FOR_LIKE and max(growth) <= MEMORY_SLACK
    if device.type == "cpu":
        met = met and at_best >= MARK_AT_BEST
    return {
        "faster_library": faster,
        "like_for_like": like_for_like,
        "at_best": at_best,
        "memory_growth_over_steps": max(growth),
        "met": met,
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=110)
    table = Table(title=f"Forward and backward on {result['device']}, {result['shape']['time_steps']} time steps")
    for column in ("", "ms, median", "quartiles", "against the faster library", "and the optimizer's step"):
        table.add_column(column, justify="left" if not column else "right")
    fastest = result["seconds"][result["faster_library"]]["forward_backward"]["median"]
    for name, parts in result["seconds"].items():
        each = parts["forward_backward"]
        table.add_row(
            name,
            f"{1e3 * each['median']:.1f}",
            f"{1e3 * each['lower']:.1f}-{1e3 * each['upper']:.1f}",
            f"{fastest / each['median']:.2f} x",
            f"{1e3 * parts['update']['median']:.1f}",
        )
    console.print(table)
    kept = result["kept_bytes"]
    table = Table(title="Kept for the backward pass, MB")
    table.add_column("time steps")
    for steps in kept["time_steps"]:
        table.add_column(str(steps), justify="right")
    for name in ("ours", *LIBRARIES):
        table.add_row(name, *(f"{each / 1e6:.1f}" for each in kept[name]))
    console.print(table)
    console.print(
        f"like for like {result['like_for_like']:.2f} x (mark {MARK_LIKE_FOR_LIKE}), at best {result['at_best']:.2f} x "
        f"(mark {MARK_AT_BEST} on a CPU), memory grows {result['memory_growth_over_steps']:.2f} times as fast as the "
        f"steps (mark 1): {'met' if result['met'] else 'NOT MET'}"
    )


if __name__ == "__main__":
    main()

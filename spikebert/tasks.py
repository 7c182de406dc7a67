"""Tasks as rows of a table: what training and evaluation know about a data set, so that another set is another row.

Their text is read in ``data.py``, their scores are computed in ``metrics.py``; nothing here needs either, or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class HubSource:
    """Where the Hugging Face hub keeps a task.

    Attributes
    ----------
    path, name : str
        What ``datasets.load_dataset`` is called with; `name` is the configuration, if any.
    text_columns : tuple of str
        The set's own names of the task's text columns.
    splits : mapping of str to str
        Our split names to the set's; a split that is absent here is absent there.
    """

    path: str
    name: str | None = None
    text_columns: tuple[str, ...] = ("sentence",)
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"}, hash=False
    )


@dataclass(frozen=True)
class Task:
    """What training and evaluation need to know about a data set.

    Attributes
    ----------
    name : str
        Its name on the command line and of its folder.
    labels : tuple of str
        Names of the classes in the order of their numbers; empty for a regression.
    metric : str
        Key of `spikebert.metrics.METRICS`.
    text_columns : tuple of str
        One column, or two for pairs.
    label_range : tuple of float, optional
        Least and greatest value of a regression's label.
    hub : HubSource, optional
        Where the hub keeps it; None where no copy there has the splits.
    """

    name: str
    labels: tuple[str, ...]
    metric: str = "accuracy"
    text_columns: tuple[str, ...] = ("sentence",)
    label_range: tuple[float, float] | None = None
    hub: HubSource | None = None

    @property
    def num_labels(self) -> int:
        """Size of the model's output: the number of classes, or 1."""
        return len(self.labels) or 1

    def score(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """Return the task's metric for `logits` ``(n, C)`` and `labels` ``(n,)``."""
        from spikebert.metrics import METRICS

        predictions = logits.argmax(-1) if self.labels else logits[:, 0]
        return METRICS[self.metric](predictions, labels)


_SENTIMENT = ("negative", "positive")
_PAIR = ("sentence1", "sentence2")
_TEXT = ("text",)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst2", _SENTIMENT, hub=HubSource("nyu-mll/glue", "sst2")),
        Task(
            "sst5",
            ("very negative", "negative", "neutral", "positive", "very positive"),
            hub=HubSource("SetFit/sst5", text_columns=_TEXT),
        ),
        Task("mr", _SENTIMENT, hub=HubSource("cornell-movie-review-data/rotten_tomatoes", text_columns=_TEXT)),
        Task(
            "subj",
            ("subjective", "objective"),
            hub=HubSource("SetFit/subj", text_columns=_TEXT, splits={"train": "train", "test": "test"}),
        ),
        Task("chnsenti", _SENTIMENT),  # the hub's copies of the two Chinese sets have one split only
        Task("waimai", _SENTIMENT),
        Task("cola", ("unacceptable", "acceptable"), "matthews_correlation", hub=HubSource("nyu-mll/glue", "cola")),
        Task(
            "mrpc",
            ("different", "equivalent"),
            "f1",
            _PAIR,
            hub=HubSource("nyu-mll/glue", "mrpc", text_columns=_PAIR),
        ),
        Task(
            "rte",
            ("entailment", "not entailment"),
            text_columns=_PAIR,
            hub=HubSource("nyu-mll/glue", "rte", text_columns=_PAIR),
        ),
        Task(
            "stsb",
            (),
            "spearman_correlation",
            _PAIR,
            label_range=(0.0, 5.0),
            hub=HubSource("nyu-mll/glue", "stsb", text_columns=_PAIR),
        ),
    )
}


def find_task(name: str) -> Task:
    """Return the task called `name`.

    Raises
    ------
    ConfigurationError
        No task has that name.
    """
    if name not in TASKS:
        raise ConfigurationError(f"task {name!r} is not known; choose one of {', '.join(TASKS)}")
    return TASKS[name]

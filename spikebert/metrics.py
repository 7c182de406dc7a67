"""The metrics of tasks, as GLUE has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of `predictions` ``(n,)`` equal to `labels` ``(n,)``."""
    return float(np.mean(predictions == labels))


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the Matthews correlation of two binary arrays ``(n,)``, which is Pearson's; 0 if one is constant."""
    return _pearson(predictions, labels)


def f1_score(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall of class 1, for arrays ``(n,)``; 0 without a true positive."""
    true_positives = np.sum((predictions == 1) & (labels == 1))
    either = np.sum(predictions == 1) + np.sum(labels == 1)
    return float(2 * true_positives / either) if either else 0.0


def spearman_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rank correlation of two arrays ``(n,)``, ties sharing their mean rank."""
    return _pearson(_mean_ranks(predictions), _mean_ranks(labels))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - np.mean(x), y - np.mean(y)
    scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / scale) if scale else 0.0


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    return (last_rank - (counts - 1) / 2)[group]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "matthews_correlation": matthews_correlation,
    "f1": f1_score,
    "spearman_correlation": spearman_correlation,
}

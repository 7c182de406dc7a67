"""Tasks: their files are read exactly or refused by line, metrics equal the textbook, batches lose nobody."""

import os
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from spikebert.data import Example, bucketed_indices, load_examples, read_tsv
from spikebert.errors import ConfigurationError, DataError, MissingDependencyError
from spikebert.metrics import accuracy, f1_score, matthews_correlation, spearman_correlation
from spikebert.tasks import TASKS, find_task

SST2 = TASKS["sst2"]
binary_pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "train.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def test_a_file_is_read_as_it_stands(tmp_path):
    path = written(tmp_path, "sentence\tlabel\na \"quoted\u2028 word\t1\r\n c'est ça \t0\n")
    assert read_tsv(path, SST2) == [Example(('a "quoted\u2028 word',), 1), Example((" c'est ça ",), 0)]


def test_a_pair_has_two_texts_and_a_regression_a_value(tmp_path):
    path = written(tmp_path, "sentence1\tsentence2\tlabel\none\ttwo\t3.40\n")
    assert read_tsv(path, TASKS["stsb"]) == [Example(("one", "two"), 3.4)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sentence\tlabel\ngood\t1\nbad\n", "line 3: found 1 columns"),
        ("sentence\tlabel\ngood\t1\t1\n", "line 2: found 3 columns"),
        ("sentence\tlabel\ngood\t2\n", "line 2: the label is '2'; sst2 needs a whole number from 0 to 1"),
        ("sentence\tlabel\ngood\t0.5\n", "line 2: the label"),
        ("sentence\tlabel\ngood\tnan\n", "line 2: the label"),
        ("sentence\tlabel\ngood\tpositive\n", "line 2: the label"),
        ("good\t1\n", "line 1: the header"),
        ("sentence\tlabel\n", "no examples"),
        ("sentence\tlabel\ngut gefüllt\t1\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_line(tmp_path, text, complaint):
    path = written(tmp_path, text)
    with pytest.raises(DataError) as refusal:
        read_tsv(path, SST2)
    assert str(path) in str(refusal.value)
    assert complaint in str(refusal.value)


def test_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match="--data-dir"):
        load_examples(SST2, "dev", tmp_path)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="sst3"):
        find_task("sst3")
    with pytest.raises(ConfigurationError, match="validation"):
        load_examples(SST2, "validation", tmp_path)
    with pytest.raises(ConfigurationError, match="--data-dir"):
        load_examples(SST2, "train", None, "train_sentences.tsv")


def test_another_training_file_is_read_from_the_task_s_folder(tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "few.tsv").write_text("sentence\tlabel\nfine\t1\n")
    assert load_examples(SST2, "train", tmp_path, "few.tsv") == [Example(("fine",), 1)]


def test_without_the_hub_s_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install datasets"):
        load_examples(SST2, "dev", None)


class HubRows(list):
    column_names = ("sentence", "label")


def pretend_hub(monkeypatch, answer):
    hub = ModuleType("datasets")
    hub.load_dataset = answer
    monkeypatch.setitem(sys.modules, "datasets", hub)


def test_the_hub_is_asked_for_the_task_s_set_and_split(monkeypatch):
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return HubRows([{"sentence": "fine", "label": 1, "idx": 0}])

    pretend_hub(monkeypatch, load_dataset)
    assert load_examples(SST2, "dev", None) == [Example(("fine",), 1)]
    assert asked == [("nyu-mll/glue", "sst2", "validation")]


def test_what_the_hub_does_wrong_is_typed(monkeypatch):
    def no_network(path, name, split):
        raise ConnectionError("no network")

    pretend_hub(monkeypatch, no_network)
    with pytest.raises(DataError, match=r"no network.*--data-dir"):
        load_examples(SST2, "dev", None)
    with pytest.raises(DataError, match="no dev split of subj"):
        load_examples(TASKS["subj"], "dev", None)
    pretend_hub(monkeypatch, lambda path, name, split: HubRows([{"sentence": "hidden", "label": -1}]))
    with pytest.raises(DataError, match="the label is -1"):
        load_examples(SST2, "test", None)
    with pytest.raises(DataError, match="no column sentence1, sentence2"):
        load_examples(TASKS["rte"], "dev", None)


@given(binary_pairs)
def test_accuracy_and_f1_are_their_definitions(pairs):
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    assert accuracy(predictions, labels) == pytest.approx(float(Fraction(sum(p == y for p, y in pairs), len(pairs))))
    hits = sum(p == y == 1 for p, y in pairs)
    if hits:
        precision, recall = Fraction(hits, sum(p for p, _ in pairs)), Fraction(hits, sum(y for _, y in pairs))
        assert f1_score(predictions, labels) == pytest.approx(float(2 * precision * recall / (precision + recall)))
    else:
        assert f1_score(predictions, labels) == 0


@given(binary_pairs)
def test_matthews_correlation_is_its_confusion_matrix_form(pairs):
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    tp, tn = pairs.count((1, 1)), pairs.count((0, 0))
    fp, fn = pairs.count((1, 0)), pairs.count((0, 1))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = (tp * tn - fp * fn) / product**0.5 if product else 0
    assert matthews_correlation(predictions, labels) == pytest.approx(expected)


def test_spearman_agrees_with_scipy_also_where_values_tie():
    generator = np.random.default_rng(0)
    for _ in range(20):
        predictions, labels = generator.integers(0, 6, (2, 50)) / 2
        assert spearman_correlation(predictions, labels) == pytest.approx(stats.spearmanr(predictions, labels)[0])
    assert spearman_correlation(np.ones(5), np.arange(5)) == 0


def test_scores_take_the_largest_logit_or_the_value():
    assert SST2.score(np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]]), np.array([1, 0, 0])) == pytest.approx(2 / 3)
    assert TASKS["stsb"].score(np.array([[1.0], [2.0], [7.0]]), np.array([0.0, 1.0, 5.0])) == pytest.approx(1)


@given(st.lists(st.integers(1, 60), max_size=300), st.integers(1, 7), st.one_of(st.none(), st.integers(0, 9)))
def test_batches_hold_every_example_once(lengths, batch_size, seed):
    generator = None if seed is None else np.random.default_rng(seed)
    batches = bucketed_indices(np.array(lengths), batch_size, generator)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)


def test_batches_hold_similar_lengths_and_follow_the_seed():
    lengths = np.random.default_rng(1).integers(1, 80, 2000)
    first, again, other = (bucketed_indices(lengths, 8, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    padding = sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in first)
    assert padding < 0.1 * lengths.sum()
    assert sorted(lengths[batch].max() for batch in first) != [lengths[batch].max() for batch in first]  # shuffled


def test_a_batch_is_padded_by_the_tokenizer(tiny_tokenizer):
    from spikebert.data import TokenizedExamples

    examples = TokenizedExamples(
        [Example(("good film",), 1), Example(("bad",), 0), Example(("good bad film good",), 1)],
        SST2,
        tiny_tokenizer,
        max_length=5,
    )
    batch = examples.batch(np.array([1, 0, 2]))
    tokens = [tiny_tokenizer.convert_ids_to_tokens(row) for row in batch.input_ids]
    assert tokens == [
        ["[CLS]", "bad", "[SEP]", "[PAD]", "[PAD]"],
        ["[CLS]", "good", "film", "[SEP]", "[PAD]"],
        ["[CLS]", "good", "bad", "film", "[SEP]"],
    ]
    assert torch.equal(batch.attention_mask, (batch.input_ids != tiny_tokenizer.pad_token_id).long())
    assert batch.labels.tolist() == [0, 1, 1]
    assert batch.labels.dtype == torch.int64


@pytest.mark.skipif("SPIKEBERT_DATA" not in os.environ, reason="SPIKEBERT_DATA names no folder with the data sets")
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_real_file_is_read_whole(task):
    folder = Path(os.environ["SPIKEBERT_DATA"])
    for path in sorted((folder / task.name).glob("*.tsv")):
        assert len(read_tsv(path, task)) == path.read_bytes().count(b"\n") - 1, path

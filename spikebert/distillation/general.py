"""Stage 1: a student learns the language from a BERT's layers over plain text (section 3.3.1, arXiv 2308.15122).

No labels and no logits: each block is pulled towards a layer of the teacher, and the embeddings towards its embeddings
(Eq. 7). What it writes is an encoder without a head, from which stage 2 starts: ``spikebert distill task --student``.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from spikebert.checkpoint import (
    checkpoint_sha256,
    refuse_foreign_directory,
    write_checkpoint_files,
    writing_directory,
)
from spikebert.distillation.corpus import Corpus, TextFiles, open_corpus, shuffled_batches
from spikebert.distillation.logs import LOG_FILE, TrainingLog, log_beside, state_beside
from spikebert.distillation.losses import FeatureTransforms, alignment_losses
from spikebert.distillation.model_card import CARD_FILE, RECORD_FILE, general_model_card
from spikebert.distillation.settings import GENERAL_WEIGHTS, Keeping, LossWeights, TrainingSettings
from spikebert.distillation.student import build_student
from spikebert.distillation.task_trainer import rows_with_equal_tokens
from spikebert.distillation.teacher import load_teacher, run_teacher, weights_sha256
from spikebert.distillation.training import (
    CALIBRATION_BATCH_SIZE,
    CALIBRATION_BATCHES,
    Callbacks,
    Record,
    StateFile,
    Trainer,
    make_accelerator,
)
from spikebert.errors import ConfigurationError
from spikebert.families import DEFAULT_MODEL_TYPE, family_of
from spikebert.provenance import run_record, seed_everything

TEXTS_COUNTED = 200_000  # of a corpus, for a vocabulary cut to what it uses most


@dataclass(frozen=True)
class PairedBatch:
    """Some texts as the student and as the teacher read them.

    Attributes
    ----------
    indices : Tensor
        ``(B,)``, their places in the batch.
    student, teacher : dict of str to Tensor
        What each is called with; padded each for itself.
    aligned : Tensor
        ``(B,)`` bool, whether both have the same tokens.
    """

    indices: Tensor
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    aligned: Tensor

    def to(self, device: torch.device) -> PairedBatch:
        """Return the batch on a device."""
        student, teacher = ({k: v.to(device) for k, v in part.items()} for part in (self.student, self.teacher))
        return PairedBatch(self.indices, student, teacher, self.aligned.to(device))


class GeneralTrainer(Trainer):
    """Trains an encoder towards a teacher's layers.

    Parameters
    ----------
    model : PreTrainedModel
        An encoder, changed in place.
    tokenizer : Tokenizer
        The student's.
    teacher, teacher_tokenizer
        A BERT; nothing of it learns.
    corpus : iterable of str
        Read once an epoch, in the same order every time.
    settings, steps
        See `Trainer`.
    weights : LossWeights
        Of features and embedding.
    transforms : FeatureTransforms
    accelerator : accelerate.Accelerator, optional
        See `Trainer`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        teacher: Any,
        teacher_tokenizer: Tokenizer,
        corpus: Iterable[str],
        settings: TrainingSettings,
        steps: int,
        weights: LossWeights,
        transforms: FeatureTransforms,
        accelerator: Any = None,
    ) -> None:
        super().__init__(model, settings, steps, transforms, accelerator)
        self.tokenizer, self.teacher_tokenizer = tokenizer, teacher_tokenizer
        self.teacher = teacher.to(self.accelerator.device).eval()
        self.corpus = corpus
        self.weights = weights

    def plan(self, epoch: int) -> Iterable[list[str]]:
        """Return the texts of each batch of an epoch."""
        return shuffled_batches(self.corpus, self.settings.batch_size, (self.settings.seed, epoch))

    def collate(self, planned: list[str]) -> PairedBatch:
        """Return the texts as tokens, padded to the longest."""
        student, teacher = (
            tokenizer(planned, truncation=True, max_length=self.settings.max_length)
            for tokenizer in (self.tokenizer, self.teacher_tokenizer)
        )
        aligned = rows_with_equal_tokens(
            student["input_ids"], self.tokenizer, teacher["input_ids"], self.teacher_tokenizer
        )
        return PairedBatch(
            torch.arange(len(planned)),
            dict(self.tokenizer.pad(student, return_tensors="pt")),
            dict(self.teacher_tokenizer.pad(teacher, return_tensors="pt")),
            aligned,
        )

    def loss_terms(self, batch: PairedBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the weighted terms of Eq. 7; texts whose tokens differ count as 0."""
        assert isinstance(self.transforms, FeatureTransforms)
        rows = batch.aligned
        features = family_of(self.model).student_features(self.model(**batch.student, output_hidden_states=True))
        if not bool(rows.any()):
            nothing = features[-1].sum() * 0
            return {"features": nothing, "embedding": nothing}
        _, wanted = run_teacher(
            self.teacher, {name: part[rows] for name, part in batch.teacher.items()}, self.transforms.teacher_layers()
        )
        longest = batch.student["input_ids"].shape[1]
        wanted = nn.functional.pad(wanted, (0, 0, 0, 0, 0, longest - wanted.shape[1]))  # cut where negative
        losses = alignment_losses(
            self.transforms,
            [each[rows] for each in features],
            wanted,
            batch.student["attention_mask"][rows] != 0,
        )
        share = rows.float().mean()
        return {
            "features": self.weights.features * share * losses[0],
            "embedding": self.weights.embedding * share * losses[1],
        }


def distill_general(
    teacher: str,
    corpus: Sequence[str | Path],
    output: Path,
    settings: TrainingSettings,
    steps: int | None = None,
    student_configuration: dict[str, Any] | None = None,
    prune: bool = True,
    vocabulary_size: int | None = None,
    blocks_from_teacher: bool = False,
    model_type: str = DEFAULT_MODEL_TYPE,
    weights: LossWeights = GENERAL_WEIGHTS,
    keeping: Keeping | None = None,
    callbacks: Callbacks | None = None,
) -> Record:
    """Train a student on plain text and write its encoder, record, log and model card.

    Parameters
    ----------
    teacher : str
        Folder, hub name or package of a BERT.
    corpus : sequence of str or Path
        See `open_corpus`.
    output : Path
        The checkpoint's folder; see `distill_task` for what lies beside it meanwhile.
    settings : TrainingSettings
        How to train.
    steps : int, optional
        Updates; by default as many as `settings.epochs` passes over text files take.
    student_configuration, prune, vocabulary_size, blocks_from_teacher, model_type
        See `distill_task`.
    weights : LossWeights
        Of features and embedding; both 1 by default.
    keeping, callbacks : optional
        See their classes.

    Returns
    -------
    dict
        What is written to ``training.json``; with several processes, in the main one, and empty elsewhere.

    Raises
    ------
    ConfigurationError
        The hub's size is not known and `steps` is not given, or no block is compared with a layer.
    """
    keeping, callbacks = keeping or Keeping(), callbacks or Callbacks()
    began, cpu_began = time.perf_counter(), time.process_time()
    output = Path(output).absolute()
    refuse_foreign_directory(output)
    accelerator = make_accelerator()
    texts = open_corpus(corpus)
    guide, guide_tokenizer = load_teacher(teacher)
    seed_everything(settings.seed)
    counted = None if vocabulary_size is None else (list(islice(texts, TEXTS_COUNTED)), vocabulary_size)
    with_head, tokenizer = build_student(
        guide,
        guide_tokenizer,
        None,
        prune,
        counted,
        blocks_from_teacher,
        model_type,
        max_position_embeddings=settings.max_length,
        **(student_configuration or {}),
    )
    family = family_of(with_head)
    layers = family.aligned_layers(
        with_head.config.num_hidden_layers, guide.config.num_hidden_layers, weights.ignored_front_blocks
    )
    if not layers and not weights.embedding:
        raise ConfigurationError("all blocks are ignored and the embedding loss has weight 0: nothing is left to learn")
    transforms = FeatureTransforms(with_head.config.hidden_size, guide.config.hidden_size, layers)
    trainer = GeneralTrainer(
        with_head.base_model,
        tokenizer,
        guide,
        guide_tokenizer,
        texts,
        settings,
        _steps(texts, settings, steps, accelerator.num_processes * settings.accumulate),
        weights,
        transforms,
        accelerator,
    )

    def first_batches() -> list[dict[str, Tensor]]:
        first = islice(shuffled_batches(texts, CALIBRATION_BATCH_SIZE, (settings.seed, 0)), CALIBRATION_BATCHES)
        return [trainer.collate(each).to(accelerator.device).student for each in first]

    family.calibrate(with_head.to(accelerator.device), first_batches, student_configuration or {})
    model: Any = with_head.base_model
    state_file = StateFile(
        state_beside(output),
        keeping.save_every,
        keeping.resume,
        {
            "teacher": weights_sha256(guide),
            "corpus": _corpus_identity(texts),
            "losses": weights.as_record(),
            "blocks_from_teacher": blocks_from_teacher,
            "configuration": model.config.to_json_string(),
        },
    )
    resumed_from = trainer.step_to_resume_from(state_file)
    log = TrainingLog(
        log_beside(output),
        keeping.tensorboard,
        keep_until=resumed_from,
        silent=not accelerator.is_main_process,
    )
    with log:
        result = trainer.train(log.before(callbacks.on_step), log.before(callbacks.on_evaluation), state_file)
    if not accelerator.is_main_process:
        return {}
    model.to(torch.device("cpu"))
    with writing_directory(output) as folder:
        write_checkpoint_files(model, tokenizer, folder)
        record = {
            "stage": "general",
            "teacher": {"name": teacher},
            "corpus": [str(Path(source).name) for source in corpus],
            "texts": len(texts) if isinstance(texts, TextFiles) else None,
            "steps": trainer.steps,
            "evaluations": result.evaluations,
            "settings": asdict(settings),
            "losses": weights.as_record(),
            "layers": {str(block): layer for block, layer in layers.items()},
            "blocks_from_teacher": blocks_from_teacher,
            "parameters": sum(p.numel() for p in model.parameters()),
            "resumed_from_step": resumed_from,
            "minutes": (time.perf_counter() - began) / 60,
            "cpu_minutes": (time.process_time() - cpu_began) / 60,
            "threads": torch.get_num_threads(),
            "processes": accelerator.num_processes,
            "device": str(accelerator.device),
            **run_record(settings.seed, checkpoint_sha256(folder)),
        }
        (folder / LOG_FILE).write_text(log_beside(output).read_text(encoding="utf-8"), encoding="utf-8")
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        card = general_model_card(record, model.config)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    log_beside(output).unlink()
    state_file.path.unlink(missing_ok=True)
    return record


def _steps(texts: Corpus, settings: TrainingSettings, steps: int | None, batches_a_step: int) -> int:
    if steps is not None:
        if steps < 1:
            raise ConfigurationError(f"steps is {steps}; it must be at least 1")
        return steps
    if not isinstance(texts, TextFiles):
        raise ConfigurationError("how much text the hub has is not known beforehand; give --steps")
    batches = math.ceil(len(texts) / settings.batch_size)
    return settings.steps(batches, batches_a_step)


def _corpus_identity(texts: Corpus) -> str:
    if not isinstance(texts, TextFiles):
        return repr(texts)
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()

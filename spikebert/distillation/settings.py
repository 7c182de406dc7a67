"""What a training is told: settings, losses, texts, teacher and student, as dataclasses that check themselves.

A field made by `setting` is an option of ``spikebert distill`` too, and says how the command line asks for it. Nothing
here needs torch, so that the command line can list every setting without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from spikebert.choices import ATTENTIONS, EMBEDDING_NEURONS, NEURONS, NORMS, PREVIOUS_WORDS
from spikebert.distillation.part_of_speech import TAGGERS
from spikebert.errors import ConfigurationError

PRECISIONS = ("float32", "bfloat16")
LOGITS_LOSSES = ("kl", "mse")
SAVE_EVERY_STEPS = 500
NOT_OF_THE_CONFIGURATION = ("model_type", "blocks_from_teacher", "positions", "whole_vocabulary", "vocabulary_size")
"""Settings of a student that are no fields of its configuration under that name."""
LOSSES, TEACHER = "Losses", "The teacher"
"""Headings of the help under which other options stand too."""
OPTION = "option"
"""Key of a field's metadata."""


@dataclass(frozen=True)
class SettingOption:
    """How the command line asks for a setting.

    Attributes
    ----------
    help : str
        A whole sentence.
    group : str
        The heading it stands under.
    name : str or None
        Of the option, without dashes; the field's by default.
    choices : tuple of str
    least : int or None
    unset : str or None
        What holds where nothing is given, where the default does not say it.
    unit : float
        What a 1 of the option is in the field.
    reads_file : bool
        Whether a path is a file to read; else it is a folder.
    word_of : str or None
        The field among whose option's choices a field that is true or false stands, by its name.
    """

    help: str
    group: str
    name: str | None = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    unset: str | None = None
    unit: float = 1.0
    reads_file: bool = False
    word_of: str | None = None


def setting(default: Any, said: str, group: str, name: str | None = None, **more: Any) -> Any:
    """Return a field of a dataclass that is an option of the command line too, see `SettingOption`."""
    return field(default=default, metadata={OPTION: SettingOption(said, group, name, **more)})


_student = partial(setting, group="The student, where it is made from the teacher")
_training = partial(setting, group="Training")
_losses = partial(setting, group=LOSSES)
_texts = partial(setting, group="More text for the teacher to label")
_teacher = partial(setting, group=TEACHER)
_keeping = partial(setting, group="Resuming and watching")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Parameters
    ----------
    epochs : float
        Passes over the training set; the last may be a part of one.
    batch_size : int
        Sentences a batch in each process.
    learning_rate : float
        Peak, reached after `warmup_share` of all steps, falling linearly to 0 at the last.
    weight_decay : float
        Of matrices; norms, biases and embeddings have none.
    max_gradient_norm : float
        Gradients of everything but the word embeddings are clipped to it together.
    max_length : int
        Longest sentence in tokens while training.
    precision : {"float32", "bfloat16"}
        Of matrix products while training; membrane potentials and dev scores are always float32.
    compile_neurons : bool
        Compile the neurons' loop over time: half the time a step, after seconds of compiling; needs a C++ compiler.
    integer : bool
        Round weights to 8 bits and decays to 12 in the forward pass, as the chip will (``fake_quantization``).
    seed : int
        Of initial weights and of the order of sentences.
    accumulate : int
        Batches whose gradients are averaged before each step.
    evaluate_every : int, optional
        Steps between scores on dev; without it, one at the end of every epoch.
    patience : int, optional
        Scores in a row without a new best after which training stops; without it, it never does.
    average_decay : float
        Share of the past in a running average of the weights, which is then what is scored and kept; 0 averages
        nothing. Early on the share is smaller: (1 + n) / (10 + n) at the n-th step.

    Raises
    ------
    ConfigurationError
        A value is not allowed.
    """

    epochs: float = _training(3, "Go over the text this many times; the last pass may be a part of one.")
    batch_size: int = _training(32, "Put this many sentences into a batch, in each process.")
    learning_rate: float = _training(5e-4, "Let the learning rate rise to this, and fall to 0 at the end.")
    weight_decay: float = _training(0.01, "Let the weights of matrices decay by this.")
    warmup_share: float = _training(0.1, "Let the learning rate rise over this share of all steps.")
    max_gradient_norm: float = 1.0
    max_length: int = _training(128, "Cut sentences to this many tokens while training.")
    precision: str = _training("bfloat16", "Compute matrix products in this precision.", choices=PRECISIONS)
    compile_neurons: bool = _training(
        False, "Compile the neurons, which halves the time a step takes and needs a C++ compiler.", name="compile"
    )
    integer: bool = _training(
        False,
        "integer trains for the chip: 8-bit weights and 12-bit decays in the forward pass.",
        word_of="precision",
    )
    seed: int = 0
    accumulate: int = _training(1, "Average the gradients of this many batches before each step.")
    evaluate_every: int | None = _training(
        None, "Score on dev whenever this many steps are done.", unset="at the end of every epoch"
    )
    patience: int | None = _training(None, "Stop after so many scores in a row without a new best.", unset="never")
    average_decay: float = _training(
        0.0, "Score and keep a running average of the weights with this decay, such as 0.999.", unset="no average"
    )

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("batch_size", "max_length", "accumulate", "evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}; it must be at least 1")
        for name in ("epochs", "learning_rate", "max_gradient_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be a positive number")
        for name in ("warmup_share", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if not self.weight_decay >= 0:
            raise ConfigurationError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if self.integer and self.compile_neurons:
            raise ConfigurationError("neurons cannot be compiled while they train for integers; leave out --compile")
        if self.integer and self.average_decay:
            raise ConfigurationError(
                "an average of weights is no 8-bit weight; leave out --average-decay, or train in another precision"
            )
        if self.precision not in PRECISIONS:
            raise ConfigurationError(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")

    def steps(self, batches: int, batches_a_step: int) -> int:
        """Return the updates that all epochs of so many batches take, where each update takes some of them."""
        return math.ceil(self.epochs * math.ceil(batches / batches_a_step))


@dataclass(frozen=True)
class Keeping:
    """How a killed training can go on, and what else is written while it runs.

    Parameters
    ----------
    resume : bool
        Go on where a killed training with the same settings stood.
    save_every : int
        Steps between two writings of the state.
    tensorboard : Path, optional
        Folder for TensorBoard.
    """

    resume: bool = _keeping(False, "Go on where a killed training with this command line stood.")
    save_every: int = _keeping(
        SAVE_EVERY_STEPS, "Write the state to resume from whenever this many steps are done.", least=1
    )
    tensorboard: Path | None = _keeping(None, "Write TensorBoard's files into this folder.")  # noqa: RUF009  a field


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses; the defaults are Eq. 8's, section 4.2.

    Parameters
    ----------
    features, embedding, logits, label : float
        lambda 1 to 4 of Eq. 8. Stage 1 has the first two only, sigma 1 and 2 of Eq. 7.
    logits_loss : {"kl", "mse"}
        Kullback-Leibler divergence of the predicted distributions (the paper), or the mean squared error of the logits,
        which is also what a regression gets.
    temperature : float
        Divides both logits before the divergence, which is multiplied by its square (Hinton et al. 2015).
    ignored_front_blocks : int
        The student's first blocks that are compared with nothing.

    Raises
    ------
    ConfigurationError
        A value is not allowed, or all weights are 0.
    """

    features: float = _losses(0.1, "Give the feature loss this weight.", name="weight-features")
    embedding: float = _losses(0.1, "Give the embedding loss this weight.", name="weight-embedding")
    logits: float = _losses(1.0, "Give the logits loss this weight.", name="weight-logits")
    label: float = _losses(0.1, "Give the cross-entropy with the labels this weight.", name="weight-label")
    logits_loss: str = _losses(
        "kl",
        "Compare predictions by their divergence (kl), or logits by their squared error (mse).",
        choices=LOGITS_LOSSES,
    )
    temperature: float = _losses(1.0, "Divide both logits by this before the divergence is taken.")
    ignored_front_blocks: int = _losses(
        0, "Leave this many of the student's first blocks without a feature loss.", name="ignore-front-blocks"
    )

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("features", "embedding", "logits", "label"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigurationError(
                    f"the weight of the {name} loss is {getattr(self, name)}; it must be 0 or more"
                )
        if not self.features + self.embedding + self.logits + self.label:
            raise ConfigurationError("all losses have weight 0; give at least one a positive weight")
        if self.logits_loss not in LOGITS_LOSSES:
            raise ConfigurationError(
                f"the logits loss is {self.logits_loss!r}; choose one of {', '.join(LOGITS_LOSSES)}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigurationError(f"temperature is {self.temperature}; it must be a positive number")
        if self.ignored_front_blocks < 0:
            raise ConfigurationError(f"ignored_front_blocks is {self.ignored_front_blocks}; it must be 0 or more")

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss looks at a teacher."""
        return bool(self.features or self.embedding or self.logits)

    @property
    def needs_features(self) -> bool:
        """Whether any loss looks inside the teacher."""
        return bool(self.features or self.embedding)

    def as_record(self) -> dict[str, object]:
        """Return the weights for a training record."""
        return asdict(self)


@dataclass(frozen=True)
class AugmentationSettings:
    """How texts are changed; the probabilities are those of section 4.2.

    Parameters
    ----------
    copies : int
        Changed copies of each text that are tried; those that come out like a text that is there are left out.
    mask_probability, replace_probability : float
        Of each word: to become the mask token, or another word of the same part of speech.
    ngram_probability : float
        Of each text: to be cut to an n-gram of 1 to 5 words afterwards.

    Raises
    ------
    ConfigurationError
        A value is not allowed.
    """

    copies: int = _texts(1, "Make this many changed copies of each training text.", name="augment", least=0)
    mask_probability: float = _texts(0.1, "Mask a word of a copy with this probability.")
    replace_probability: float = _texts(
        0.1, "Replace a word of a copy with this probability, by one of the same part of speech."
    )
    ngram_probability: float = _texts(0.25, "Cut a copy to an n-gram with this probability.")

    def __post_init__(self) -> None:
        """Check every value."""
        if self.copies < 0:
            raise ConfigurationError(f"copies is {self.copies}; it must be 0 or more")
        for name in ("mask_probability", "replace_probability", "ngram_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.mask_probability + self.replace_probability > 1:
            raise ConfigurationError("mask_probability and replace_probability are more than 1 together; lower one")


@dataclass(frozen=True)
class Texts:
    """What a student learns from beside the task's own training set; the teacher says what it means.

    Parameters
    ----------
    unlabelled : sequence of Path
        Files with a text a line.
    unlabelled_limit : int, optional
        Lines read of each, spread evenly over it.
    spans : int
        Pieces cut from each training text.
    augmentation : AugmentationSettings
        Changed copies of each training text; none by default.
    tagger : str, optional
        Part-of-speech tagger; the best there is by default.
    """

    unlabelled: Sequence[Path] = _texts(
        (), "Let the teacher label the lines of these files; several may follow one --unlabelled.", reads_file=True
    )
    unlabelled_limit: int | None = _texts(
        None, "Read this many lines of each such file, spread evenly over it.", least=1, unset="all"
    )
    spans: int = _texts(0, "Cut this many pieces of a few words from each training text.", least=0)
    augmentation: AugmentationSettings = field(default_factory=lambda: AugmentationSettings(copies=0))
    tagger: str | None = _texts(
        None,
        "Find parts of speech with this tagger.",
        choices=tuple(sorted({name for names in TAGGERS.values() for name in names})),
        unset="the best that is installed",
    )


TEACHER_SETTINGS = TrainingSettings(epochs=3, learning_rate=5e-5)
GENERAL_WEIGHTS = LossWeights(features=1.0, embedding=1.0, logits=0.0, label=0.0)  # sigma 1 and 2, section 4.2
LABEL_ONLY = LossWeights(features=0.0, embedding=0.0, logits=0.0, label=1.0)


@dataclass(frozen=True)
class TeacherUse:
    """How the teacher is made ready and asked.

    Parameters
    ----------
    settings : TrainingSettings
        Of its fine-tuning, where it needs one.
    folder : Path, optional
        Where a teacher fine-tuned here is kept, and looked for; ``OUTPUT.teacher`` by default.
    cache : Path, optional
        Where its outputs are kept, see `teacher_outputs`.
    largest_features : float
        Bytes that its features may take there.
    """

    settings: TrainingSettings = TEACHER_SETTINGS
    folder: Path | None = _teacher(  # noqa: RUF009  a field
        None,
        "Take the fine-tuned teacher from this folder, or keep it there.",
        name="fine-tuned-teacher",
        unset="OUTPUT.teacher",
    )
    cache: Path | None = _teacher(  # noqa: RUF009  a field
        None, "Keep what the teacher says in this folder.", unset="SPIKEBERT_CACHE, else ~/.cache/spikebert"
    )
    largest_features: float = _teacher(
        8e9, "Let the teacher's features take this many gigabytes there.", name="feature-cache-gb", unit=1e9
    )


@dataclass(frozen=True)
class StudentSettings:
    """What a student made from its teacher is like; what is None is left to `build_student`.

    Parameters
    ----------
    model_type : str
        Of the family of models that it is of.
    num_hidden_layers, num_attention_heads, intermediate_size, time_steps, neuron, norm, attention, attention_threshold,
    previous_word, embedding_neuron, embedding_norm
        Fields of its configuration.
    blocks_from_teacher : bool
        Whether blocks start with the weights of the teacher's layers.
    positions : bool
        Whether it has the teacher's positions.
    whole_vocabulary : bool
        Whether it keeps tokens outside the Latin script.
    vocabulary_size : int
        Tokens that it keeps, those that the texts use most.
    """

    model_type: str | None = _student(
        None, "Make the student of this family of models, by its model_type.", unset="spikebert"
    )
    num_hidden_layers: int | None = _student(
        None, "Give the student this many encoder blocks.", name="blocks", unset="2"
    )
    blocks_from_teacher: bool | None = _student(
        None, "Start each block with the weights of the teacher's layer that it is compared with."
    )
    num_attention_heads: int | None = _student(
        None, "Give each block this many attention heads.", name="heads", unset="one per 64 features"
    )
    intermediate_size: int | None = _student(None, "Make the MLP of each block this wide.", unset="4 x hidden size")
    time_steps: int | None = _student(None, "Show the student a sentence for this many steps.", unset="4")
    neuron: str | None = _student(None, "Make neurons of this preset.", choices=NEURONS, unset="paper")
    norm: str | None = _student(
        None, "Put these norms before the neurons; batch and power fold into weights.", choices=NORMS, unset="layer"
    )
    attention: str | None = _student(
        None,
        "Mix tokens by this; none leaves the MLPs, all of it stock in Lava.",
        choices=ATTENTIONS,
        unset="spiking",
    )
    attention_threshold: float | None = _student(
        None, "Let the neurons behind attention fire at this threshold.", unset="0.25, or 2 by norm"
    )
    positions: bool | None = _student(None, "Give the student the teacher's positions.")
    previous_word: str | None = _student(
        None,
        "Embed with every token the one before it too; projected folds into a table.",
        choices=PREVIOUS_WORDS,
        unset="none",
    )
    embedding_neuron: str | None = _student(
        None,
        "Make spikes of embeddings by a bare step (heaviside), or by the common neuron (lif).",
        choices=EMBEDDING_NEURONS,
        unset="heaviside",
    )
    embedding_norm: bool | None = _student(None, "Norm the student's embeddings, as the teacher does.")
    whole_vocabulary: bool | None = _student(None, "Keep tokens outside the Latin script.")
    vocabulary_size: int | None = _student(
        None, "Keep only so many tokens, those that the texts use most.", unset="all"
    )

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the fields that say something."""
        return tuple(entry.name for entry in fields(self) if getattr(self, entry.name) is not None)

    @property
    def configuration(self) -> dict[str, Any]:
        """Fields of the student's configuration."""
        found = {name: getattr(self, name) for name in self.given if name not in NOT_OF_THE_CONFIGURATION}
        return {**found, "position_embedding_type": "absolute"} if self.positions else found

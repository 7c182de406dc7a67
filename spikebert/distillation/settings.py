"""What a training is told: settings, losses, texts and teacher, as dataclasses that check themselves.

Nothing here needs torch, so that the command line can list every setting without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from spikebert.errors import ConfigurationError

PRECISIONS = ("float32", "bfloat16")
LOGITS_LOSSES = ("kl", "mse")
SAVE_EVERY_STEPS = 500
CHANGEABLE = ("norm", "neuron", "attention_threshold")
"""Settings of a student that no weight's shape depends on."""


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

    epochs: float = 3
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    max_gradient_norm: float = 1.0
    max_length: int = 128
    precision: str = "bfloat16"
    compile_neurons: bool = False
    integer: bool = False
    seed: int = 0
    accumulate: int = 1
    evaluate_every: int | None = None
    patience: int | None = None
    average_decay: float = 0.0

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
            raise ConfigurationError("an average of weights is no 8-bit weight; leave out --average-decay or --integer")
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

    resume: bool = False
    save_every: int = SAVE_EVERY_STEPS
    tensorboard: Path | None = None


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

    features: float = 0.1
    embedding: float = 0.1
    logits: float = 1.0
    label: float = 0.1
    logits_loss: str = "kl"
    temperature: float = 1.0
    ignored_front_blocks: int = 0

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

    copies: int = 1
    mask_probability: float = 0.1
    replace_probability: float = 0.1
    ngram_probability: float = 0.25

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

    unlabelled: Sequence[Path] = ()
    unlabelled_limit: int | None = None
    spans: int = 0
    augmentation: AugmentationSettings = field(default_factory=lambda: AugmentationSettings(copies=0))
    tagger: str | None = None


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
    folder: Path | None = None
    cache: Path | None = None
    largest_features: float = 8e9

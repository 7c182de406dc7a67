"""What the road asks of a family of models, and each family answers for itself.

A family is a configuration class with the models made from it. Running one needs nothing from here: a model is called,
see ``hardware.runners.torch_runner``. What cannot be seen from a call (how its layers are compared with a teacher's,
whether its norms fold, what people are told about it) is a method of `ModelFamily`; how it becomes a graph stands in
``export.exporters``.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from spikebert.errors import ConfigurationError
from spikebert.families.embeddings import copy_embeddings

Batches = Callable[[], Sequence[dict[str, Tensor]]]
"""Makes some batches of what a model is called with, and is called only by what needs them."""


class ModelFamily(ABC):
    """A family of spiking language models, in Hugging Face form.

    Its configuration has ``vocab_size``, ``hidden_size``, ``num_hidden_layers`` and ``max_position_embeddings``, BERT's
    names for what else it shares with one, and ``time_steps``; where sentences must have one length, ``padded_length``
    says which, and where its norms fold, ``norm`` names them. A classifier holds its encoder as
    ``base_model``, whose ``embeddings.word_embeddings`` is the table of words. What either returns has what
    `student_features` reads, with ``output_hidden_states=True``.

    Attributes
    ----------
    name : str
        As people write it.
    paper : str
        Where it comes from.
    encoder_class, classifier_class : type
        Its models, without a head and with one.
    changeable : tuple of str
        Fields of the configuration that a trained model can be given anew, see `change`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    encoder_class: ClassVar[type[PreTrainedModel]]
    classifier_class: ClassVar[type[PreTrainedModel]]
    changeable: ClassVar[tuple[str, ...]] = ()

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """The class of its configurations; their ``model_type`` is what the family is found by."""
        assert self.classifier_class.config_class is not None
        return self.classifier_class.config_class

    @property
    def model_type(self) -> str:
        """What ``config.json`` calls it."""
        return self.config_class.model_type

    @property
    def fields(self) -> frozenset[str]:
        """Fields that its configurations have."""
        return frozenset(
            {*inspect.signature(self.config_class).parameters, *PreTrainedConfig().to_dict(), "num_labels"}
        )

    def new_classifier(self, **fields: Any) -> Any:
        """Return an untrained classifier with these fields of the configuration.

        Raises
        ------
        ConfigurationError
            The configuration has no such field, or does not allow the value.
        """
        unknown = sorted(set(fields) - self.fields)
        if unknown:
            raise ConfigurationError(f"a {self.name} has no {', '.join(unknown)}; leave it out")
        return self.classifier_class(self.config_class(**fields))

    def with_time_steps(self, model: PreTrainedModel, time_steps: int) -> Any:
        """Return the same model, in evaluation, for another number of time steps."""
        config = copy.deepcopy(model.config)
        config.time_steps = time_steps
        other: Any = type(model)(config)
        other.load_state_dict(model.state_dict())
        return other.eval()

    # -- what people are told ----------------------------------------------------------------------------------------

    @abstractmethod
    def facts(self, config: Any) -> dict[str, Any]:
        """Return what ``info`` says of a model beside its sizes: neurons, attention, thresholds, as JSON values."""

    @abstractmethod
    def card_text(self, config: Any, parameters: int, has_head: bool) -> str:
        """Return the paragraph of the model card that says what the model is, with its number of parameters."""

    def in_short(self, config: Any) -> str:
        """Return sizes and time steps in half a line."""
        return (
            f"{config.num_hidden_layers} blocks, D = {config.hidden_size}, {self.mixing(config)}, "
            f"T = {config.time_steps} steps"
        )

    def mixing(self, config: Any) -> str:
        """Return what lets tokens see each other, in two words; here the heads of attention."""
        return f"{config.num_attention_heads} heads"

    # -- distillation ------------------------------------------------------------------------------------------------

    def start_from_teacher(self, student: Any, teacher: PreTrainedModel, kept: Tensor, with_layers: bool) -> None:
        """Give a fresh student the weights of its teacher that it can start with; here the embeddings.

        Parameters
        ----------
        student : PreTrainedModel
            A classifier of this family, changed in place.
        teacher : PreTrainedModel
            A BERT or one of its kin, without a head.
        kept : Tensor
            ``(V,)``, the teacher's token id of each of the student's.
        with_layers : bool
            Whether to take layers too, and not only embeddings.

        Raises
        ------
        ConfigurationError
            Sizes do not fit, or the teacher has no such layers.
        """
        if with_layers:
            raise ConfigurationError(f"a {self.name} takes no layers of a BERT; leave out --blocks-from-teacher")
        copy_embeddings(teacher, student, kept)

    @abstractmethod
    def aligned_layers(self, blocks: int, teacher_layers: int, ignored_front_blocks: int = 0) -> dict[int, int]:
        """Return which layer of a teacher each block is compared with, both counted from 1; some blocks with none."""

    @abstractmethod
    def student_features(self, output: Any) -> Sequence[Tensor]:
        """Return what is compared with a teacher's: of the embeddings and of each block, ``(B, N, D)`` each.

        Parameters
        ----------
        output
            What a model returned with ``output_hidden_states=True``.
        """

    def teacher_features(self, output: Any) -> Sequence[Tensor]:
        """Return what a model that is itself the teacher shows its student, in the same form."""
        return self.student_features(output)

    @abstractmethod
    def calibrate(self, model: Any, batches: Batches, chosen: Collection[str]) -> None:
        """Set what a fresh student takes from data instead of learning it, such as statistics of norms.

        Parameters
        ----------
        model : PreTrainedModel
            Changed in place, and left in the mode it was in.
        batches : callable
            Makes what to take it from.
        chosen : collection of str
            Fields of the configuration that the user has set, which stay.
        """

    def change(self, model: Any, changes: dict[str, Any], batches: Batches) -> Any:
        """Return a model with the same weights and other fields of its configuration, of those in `changeable`.

        Parameters
        ----------
        model : PreTrainedModel
            Not changed.
        changes : dict
            Fields of the configuration.
        batches : callable
            Makes what statistics of new parts are taken from.

        Raises
        ------
        ConfigurationError
            A field would change the shape of a weight, or a value is not allowed.
        """
        self.check_changeable(changes)
        return model

    def check_changeable(self, changes: Collection[str]) -> None:
        """Refuse to change what is not in `changeable`.

        Raises
        ------
        ConfigurationError
            There is such a field; all are named.
        """
        fixed = sorted(set(changes) - set(self.changeable))
        if fixed:
            can = f"can change its {', '.join(self.changeable)}" if self.changeable else "keeps its configuration"
            raise ConfigurationError(f"a {self.name} that is there {can}, not its {', '.join(fixed)}")

    # -- folding -----------------------------------------------------------------------------------------------------

    def fold(self, model: Any) -> Any:
        """Return a model without norms that computes what `model` does, see ``spikebert.folding``.

        Raises
        ------
        ConfigurationError
            It has no norms that fold.
        """
        raise ConfigurationError(
            f"a {self.name} has no norms that fold into weights; only norms with fixed statistics (batch, power) do"
        )

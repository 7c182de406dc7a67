"""What a core and a chip hold: every limit once, with where it comes from, and what is assumed said to be assumed.

Intel publishes part of this only. What nengo-loihi 1.1 (Loihi 1) and lava-nc 0.10 (both) have in their code is public
too. A limit without such a source is marked as assumed, and every report prints it so. Users describe chips of their
own in JSON, see `read_chip`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from export.loihi_numbers import (
    BIAS_EXPONENT_MAX,
    BIAS_MANTISSA_MAX,
    DECAY_BITS,
    DELAY_MAX,
    THRESHOLD_MAX,
)
from hardware.errors import PlacementError

KILOBYTE_BITS = 1024 * 8
UNCOUNTED = ("in_axons_per_core", "out_axons_per_core")
"""Limits that may be None: such axons are not counted, they take memory."""
MAY_BE_ZERO = (
    "neuron_state_bits",
    "axon_bits",
    "delay_bits",
    "list_bits",
    "index_bits",
    "payload_bits",
    "programmable",
)
LARGEST = 1 << 40
LARGEST_FILE = 1 << 20
"""Bytes; a description of a chip is a page of text."""


@dataclass(frozen=True)
class Limit:
    """One number of a chip.

    Attributes
    ----------
    value : int or None
        None where the chip does not count it.
    source : str
        Where it comes from.
    assumed : bool
        Whether nobody published it.
    """

    value: int | None
    source: str
    assumed: bool = False


@dataclass(frozen=True)
class Chip:
    """A chip of cores that hold neurons, and the synapses that lead to them.

    A synapse's weight stands in a list that an incoming spike looks up by its axon. A list is cut into pieces of
    `synapses_per_list`, each with `list_bits` in front and rounded up to `word_bits`.

    Attributes
    ----------
    name : str
    neurons_per_core : Limit
    in_axons_per_core, out_axons_per_core : Limit
        Incoming axons (each a source neuron and a list of weights) and outgoing ones (each a neuron and a core that its
        spikes go to). None: not counted, but each takes `axon_bits`.
    memory_bits_per_core : Limit
        For synapses, and for what else takes bits of it below.
    neuron_state_bits, axon_bits : Limit
        Of that memory for each neuron and each axon; 0 where they have memory of their own.
    weight_bits, index_bits, delay_bits : Limit
        Of a synapse; the index names its neuron where a list is not dense or is shared, the delay where there is one.
    list_bits, synapses_per_list, word_bits : Limit
        How lists are stored.
    shared_copies : Limit
        How many copies of neurons (tokens, positions of a kernel) on a core can share lists of weights; 1: none.
    largest_delay : Limit
        In steps.
    payload_bits : Limit
        Of a spike; 0 where it is there or not.
    programmable : Limit
        1 where a neuron runs a program, 0 where it is a leaky integrate-and-fire neuron that resets to zero.
    threshold_bits, decay_bits : Limit
        Unsigned.
    bias_mantissa_bits, bias_exponent_bits : Limit
        Signed, and unsigned.
    cores_per_chip, chips_per_board : Limit
    """

    name: str
    neurons_per_core: Limit
    in_axons_per_core: Limit
    out_axons_per_core: Limit
    memory_bits_per_core: Limit
    neuron_state_bits: Limit
    axon_bits: Limit
    weight_bits: Limit
    index_bits: Limit
    delay_bits: Limit
    list_bits: Limit
    synapses_per_list: Limit
    word_bits: Limit
    shared_copies: Limit
    largest_delay: Limit
    payload_bits: Limit
    programmable: Limit
    threshold_bits: Limit
    decay_bits: Limit
    bias_mantissa_bits: Limit
    bias_exponent_bits: Limit
    cores_per_chip: Limit
    chips_per_board: Limit

    def __post_init__(self) -> None:
        """Check every number.

        Raises
        ------
        PlacementError
            A limit is no whole number, or below what makes sense.
        """
        for name, limit in self.limits.items():
            low = 0 if name in MAY_BE_ZERO else 1
            high = 1 if name == "programmable" else LARGEST
            if limit.value is None and name in UNCOUNTED:
                continue
            if isinstance(limit.value, bool) or not isinstance(limit.value, int) or not low <= limit.value <= high:
                raise PlacementError(
                    f"chip {self.name}: {name} is {limit.value!r}; expected a whole number from {low} to {high}"
                    + (", or null where it is not counted" if name in UNCOUNTED else "")
                )

    def __getitem__(self, name: str) -> int:
        """Return the value of a limit that every chip has."""
        return self._values[name]

    @functools.cached_property
    def _values(self) -> dict[str, int]:
        return {name: limit.value for name, limit in self.limits.items() if limit.value is not None}

    @property
    def limits(self) -> dict[str, Limit]:
        """Every limit by name."""
        return {name: getattr(self, name) for name in LIMITS}

    @property
    def assumed(self) -> dict[str, Limit]:
        """The limits that nobody published."""
        return {name: limit for name, limit in self.limits.items() if limit.assumed}

    def list_size(self, synapses: int, indexed: bool, delayed: bool = False) -> int:
        """Return the bits of memory that a list of synapses takes."""
        bits = self["weight_bits"] + indexed * self["index_bits"] + delayed * self["delay_bits"]
        return _list_size(synapses, bits, self["synapses_per_list"], self["list_bits"], self["word_bits"])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: the name, and every limit with its source."""
        limits = {
            name: {"value": limit.value, "source": limit.source, "assumed": limit.assumed}
            for name, limit in self.limits.items()
        }
        return {"name": self.name, "limits": limits}


@functools.lru_cache(maxsize=1 << 14)
def _list_size(synapses: int, bits: int, longest: int, header: int, word: int) -> int:
    full, rest = divmod(synapses, longest)
    pieces = [(full, longest), (1, rest)] if rest else [(full, longest)]
    return sum(count * -(-(length * bits + header) // word) * word for count, length in pieces)


LIMITS = tuple(entry.name for entry in fields(Chip) if entry.name != "name")
"""Names of all limits."""

DAVIES = "Davies et al. 2018, IEEE Micro 38(1)"
NENGO = "nengo-loihi 1.1"
BRIEF = "Intel, Loihi 2 technology brief, 2021"
LAVA = "lava-nc 0.10"
STOCK = f"{LAVA}, PyLifModelBitAcc; see export/loihi_numbers.py"

LOIHI1 = Chip(
    name="loihi1",
    neurons_per_core=Limit(1024, f"{DAVIES}; {NENGO}, MAX_COMPARTMENTS"),
    in_axons_per_core=Limit(4096, f"{NENGO}, MAX_IN_AXONS"),
    out_axons_per_core=Limit(4096, f"{NENGO}, MAX_OUT_AXONS"),
    memory_bits_per_core=Limit(128 * KILOBYTE_BITS, f"{NENGO}, MAX_SYNAPSE_BITS: 16,384 words of 64 bits"),
    neuron_state_bits=Limit(0, f"{NENGO}: neurons have memory of their own"),
    axon_bits=Limit(0, f"{NENGO}: axons have memory of their own"),
    weight_bits=Limit(
        8, f"{NENGO}, SynapseConfig.WEIGHT_BITS_MAP: 8 stored, the sign among them where signs are mixed"
    ),
    index_bits=Limit(10, f"{NENGO}, SynapseConfig.INDEX_BITS_MAP: names one of 1,024 neurons"),
    delay_bits=Limit(6, "what 62 steps need; that a synapse stores them itself is assumed", assumed=True),
    list_bits=Limit(10, f"{NENGO}, SynapseConfig.bits_per_axon: 4 for the format, 6 for the count"),
    synapses_per_list=Limit(64, f"{NENGO}, Synapse.format: n_synapses = 63, counted from 0"),
    word_bits=Limit(64, f"{NENGO}, SynapseConfig.bits_per_axon"),
    shared_copies=Limit(
        256,
        f"{NENGO}, validate_synapse: a list's base lies below 256; that tokens may share as positions of a kernel do",
        assumed=True,
    ),
    largest_delay=Limit(DELAY_MAX, "brian2-loihi 0.5, LoihiSynapses: 0 to 62"),
    payload_bits=Limit(0, f"{DAVIES}: a spike is a single bit"),
    programmable=Limit(0, f"{BRIEF}: a generalised LIF neuron; {LAVA}, PyLifModelBitAcc: > and reset to zero"),
    threshold_bits=Limit(THRESHOLD_MAX.bit_length(), STOCK),
    decay_bits=Limit(DECAY_BITS, STOCK),
    bias_mantissa_bits=Limit(BIAS_MANTISSA_MAX.bit_length() + 1, STOCK),
    bias_exponent_bits=Limit(BIAS_EXPONENT_MAX.bit_length(), STOCK),
    cores_per_chip=Limit(128, DAVIES),
    chips_per_board=Limit(32, "Nahuku board; Pohoiki Springs has 24 of them, 768 chips"),
)

LOIHI2 = Chip(
    name="loihi2",
    neurons_per_core=Limit(8192, BRIEF),
    in_axons_per_core=Limit(None, f"{BRIEF}: memory is allocated flexibly; no count is published", assumed=True),
    out_axons_per_core=Limit(None, f"{BRIEF}: memory is allocated flexibly; no count is published", assumed=True),
    memory_bits_per_core=Limit(192 * KILOBYTE_BITS, f"{BRIEF}: 192 KB a core, shared by all it holds"),
    neuron_state_bits=Limit(
        192,
        f"{BRIEF}: Loihi 1 has a fixed 24 bytes a neuron, Loihi 2 what a neuron needs; taken as the same",
        assumed=True,
    ),
    axon_bits=Limit(
        56,
        f"{BRIEF}: Loihi 1 has 208 KB a core; without synapses (128 KB) and neurons (24 KB), 56 bits for each of its "
        "8,192 axons; taken as the same",
        assumed=True,
    ),
    weight_bits=Limit(8, f"{LAVA}, PyDenseModelBitAcc"),
    index_bits=Limit(13, "names one of 8,192 neurons", assumed=True),
    delay_bits=Limit(6, f"{LAVA}, PyDelayDenseModelBitAcc: 6 bits"),
    list_bits=Limit(10, "as on Loihi 1", assumed=True),
    synapses_per_list=Limit(64, "as on Loihi 1", assumed=True),
    word_bits=Limit(64, "as on Loihi 1", assumed=True),
    shared_copies=Limit(256, "as on Loihi 1", assumed=True),
    largest_delay=Limit(DELAY_MAX, f"lava-dl 0.6, netx.utils.num_delay_bits: 62; {LAVA}, PyDelayDenseModelBitAcc: 63"),
    payload_bits=Limit(32, f"{BRIEF}: graded spikes of up to 32 bits"),
    programmable=Limit(1, f"{BRIEF}: neurons run microcode"),
    threshold_bits=Limit(THRESHOLD_MAX.bit_length(), STOCK),
    decay_bits=Limit(DECAY_BITS, STOCK),
    bias_mantissa_bits=Limit(BIAS_MANTISSA_MAX.bit_length() + 1, STOCK),
    bias_exponent_bits=Limit(BIAS_EXPONENT_MAX.bit_length(), STOCK),
    cores_per_chip=Limit(120, f"{LAVA}, NUM_VIRTUAL_CORES_L3; the chip has 128 ({BRIEF})"),
    chips_per_board=Limit(8, "Kapoho Point; Hala Point has 1,152 chips"),
)

CHIPS = {chip.name: chip for chip in (LOIHI1, LOIHI2)}


def find_chip(chip: str | Path | Chip) -> Chip:
    """Return a chip by its name, or as a JSON file describes it, see `read_chip`.

    Raises
    ------
    PlacementError
        There is neither a chip nor a file of this name, or the file describes no chip.
    """
    if isinstance(chip, Chip):
        return chip
    if str(chip) in CHIPS:
        return CHIPS[str(chip)]
    path = Path(chip)
    if path.suffix != ".json":
        raise PlacementError(f"chip {str(chip)!r} is not known; known are {', '.join(CHIPS)}, and FILE.json")
    return read_chip(path)


def read_chip(path: Path) -> Chip:
    """Read a chip from a JSON file.

    The file holds ``name``, ``limits``, and where only some limits differ from a chip known here, ``base`` with its
    name. A limit is a number, or an object of ``value``, ``source`` and ``assumed`` as `Chip.to_dict` gives it.

    Raises
    ------
    PlacementError
        The file cannot be read, a key is not known, or a limit is missing or makes no sense.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise PlacementError(
                f"{path}: is larger than {LARGEST_FILE} bytes, more than a chip's description can need"
            )
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlacementError(f"{path}: is not a JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("limits"), dict):
        raise PlacementError(f'{path}: expected an object with "limits", an object')
    unknown = [repr(key) for key in content if key not in ("name", "base", "limits")]
    unknown += [repr(key) for key in content["limits"] if key not in LIMITS]
    if unknown:
        raise PlacementError(f"{path}: {', '.join(unknown)} not known; limits are {', '.join(LIMITS)}")
    limits: dict[str, Limit] = {}
    if "base" in content:
        if not isinstance(content["base"], str) or content["base"] not in CHIPS:
            raise PlacementError(f"{path}: base is {content['base']!r}; known are {', '.join(CHIPS)}")
        limits = dict(CHIPS[content["base"]].limits)
    limits |= {name: _limit(value, path, name) for name, value in content["limits"].items()}
    missing = [name for name in LIMITS if name not in limits]
    if missing:
        raise PlacementError(
            f'{path}: {", ".join(missing)} missing; give them, or a "base" ({", ".join(CHIPS)}) to take them from'
        )
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise PlacementError(f"{path}: name is {name!r}; expected a line of text")
    return Chip(name=name, **limits)


def _limit(value: Any, path: Path, name: str) -> Limit:
    if not isinstance(value, Mapping):
        return Limit(value, str(path))
    unknown = [repr(key) for key in value if key not in ("value", "source", "assumed")]
    if "value" not in value or unknown:
        raise PlacementError(f"{path}: {name} is {dict(value)}; expected a number, or value, source and assumed")
    source, assumed = value.get("source", str(path)), value.get("assumed", False)
    if not isinstance(source, str) or not isinstance(assumed, bool):
        raise PlacementError(
            f"{path}: {name} has source {source!r} and assumed {assumed!r}; expected text, and true or false"
        )
    return Limit(value["value"], source, assumed)

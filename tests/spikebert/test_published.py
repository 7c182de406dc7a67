"""The promise of `load_published`: what the published code computes, spike for spike; what is not such a file is named.

The other side is written here from the description of that code, with its own neurons (spikingjelly's ``LIFNode``),
torch's own layers, one time step at a time; it shares nothing with the package.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spikebert import SpikeBertForSequenceClassification, load_published
from spikebert.checkpoint import load_model
from spikebert.cli import main
from spikebert.errors import CheckpointError, ConfigurationError
from spikebert.published import read_published

DIM, HEADS, HIDDEN, VOCABULARY, LENGTH, STEPS, LABELS = 16, 4, 64, 20, 7, 4, 3


def _neuron(tau: float, threshold: float) -> nn.Module:
    from spikingjelly.activation_based import neuron

    return neuron.LIFNode(tau=tau, decay_input=True, v_threshold=threshold, v_reset=0.0, step_mode="s")


class PublishedAttention(nn.Module):
    def __init__(self, tau: float, threshold: float) -> None:
        super().__init__()
        for part in ("q", "k", "v", "last"):
            setattr(self, f"{part}_m", nn.Linear(DIM, DIM))
            setattr(self, f"{part}_ln", nn.LayerNorm(DIM))
            setattr(self, f"{part}_lif", _neuron(tau, threshold))
        self.attn_lif = _neuron(tau, threshold / 2)

    def spikes(self, part: str, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, f"{part}_lif")(getattr(self, f"{part}_ln")(getattr(self, f"{part}_m")(x)))

    def forward(self, x: torch.Tensor, fired: dict[str, torch.Tensor]) -> torch.Tensor:
        query, key, value = (self.spikes(part, x) for part in "qkv")
        fired["qkv"] = torch.cat([query, key, value], -1)
        product = torch.zeros_like(query)
        for head in range(HEADS):
            part = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
            product[..., part] = query[..., part] @ key[..., part].transpose(1, 2) @ value[..., part] * 0.125
        fired["attention"] = self.attn_lif(product)
        fired["projection"] = self.spikes("last", fired["attention"])
        return fired["projection"]


class PublishedMlp(nn.Module):
    def __init__(self, tau: float, threshold: float) -> None:
        super().__init__()
        self.fc1, self.ln1, self.lif1 = nn.Linear(DIM, HIDDEN), nn.LayerNorm(HIDDEN), _neuron(tau, threshold)
        self.fc2, self.ln2, self.lif2 = nn.Linear(HIDDEN, DIM), nn.LayerNorm(DIM), _neuron(tau, threshold)

    def forward(self, x: torch.Tensor, fired: dict[str, torch.Tensor]) -> torch.Tensor:
        fired["intermediate"] = self.lif1(self.ln1(self.fc1(x)))
        fired["output"] = self.lif2(self.ln2(self.fc2(fired["intermediate"])))
        return fired["output"]


class PublishedBlock(nn.Module):
    def __init__(self, tau: float, threshold: float) -> None:
        super().__init__()
        self.attn, self.mlp = PublishedAttention(tau, threshold), PublishedMlp(tau, threshold)


class PublishedTransform(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.ln = nn.Linear(DIM, DIM), nn.LayerNorm(DIM)


class Published(nn.Module):
    """What the published code computes, its reshape mended."""

    def __init__(self, tau: float = 2.0, threshold: float = 1.0, blocks: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCABULARY, DIM)
        self.blocks = nn.ModuleList(PublishedBlock(tau, threshold) for _ in range(blocks))
        self.last_ln = nn.LayerNorm(DIM)
        self.transforms = nn.ModuleList(PublishedTransform() for _ in range(blocks))
        self.classifier = nn.Linear(DIM, LABELS)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                is_norm = "ln" in name.split(".")[-2]
                centre = (2.0 if name.endswith("weight") else 0.8) if is_norm else 0.0
                parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) / 2)
            self.emb.weight[:, 0] = 0  # a step at equality: 0 fires

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[torch.Tensor]]:
        """Return spikes (T, B, N, D) by node, logits (B, C) and what the transforms make of each block (B, N, D)."""
        steps: list[dict[str, torch.Tensor]] = []
        logits = torch.zeros(len(ids), LABELS, dtype=self.emb.weight.dtype)
        features = [torch.zeros(*ids.shape, DIM, dtype=logits.dtype) for _ in self.blocks]
        for _ in range(STEPS):
            x = (self.emb(ids) >= 0).to(logits.dtype)
            kept = {"embedding_neuron": x}
            for index, block in enumerate(self.blocks):
                fired: dict[str, torch.Tensor] = {}
                x = x + block.attn(x, fired)
                x = x + block.mlp(x, fired)
                kept.update({f"block{index:02d}_{name}_neuron": value for name, value in fired.items()})
                features[index] += x / STEPS
            logits += self.classifier(self.last_ln(x).mean(1)) / STEPS
            steps.append(kept)
        made = [transform.ln(transform.fc(f)) for transform, f in zip(self.transforms, features, strict=True)]
        return {name: torch.stack([kept[name] for kept in steps]) for name in steps[0]}, logits, made


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    return Published().state_dict()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def _load(state_dict: dict[str, torch.Tensor], **changes: object) -> SpikeBertForSequenceClassification:
    return load_published(state_dict, **{"time_steps": STEPS, "num_heads": HEADS, "max_length": LENGTH, **changes})


def _spikes(model: SpikeBertForSequenceClassification, ids: torch.Tensor, mask: torch.Tensor | None = None):
    with torch.no_grad():
        return model(ids, attention_mask=mask, output_spikes=True, output_hidden_states=True)


@pytest.mark.parametrize(("tau", "threshold"), [(2.0, 1.0), (10.0, 0.15), (4.0, 0.4)])
def test_every_spike_is_that_of_the_published_computation(tau: float, threshold: float, ids: torch.Tensor) -> None:
    published = Published(tau, threshold).double()
    expected, logits, features = published(ids)
    model = _load(published.state_dict(), tau=tau, threshold=threshold)
    assert model.dtype == torch.float64
    padded = torch.arange(LENGTH) < torch.tensor([[LENGTH], [3], [1]])  # which must change nothing
    for mask in (None, padded):
        found = _spikes(model, ids, mask)
        assert list(found.spikes) == list(expected)
        for name, spikes in expected.items():
            assert 0.02 < spikes.mean() < 0.98, f"{name} shows nothing"
            assert torch.equal(found.spikes[name], spikes), name
        torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-12)
    for transform, x, made in zip(model.spikebert.feature_transforms, found.hidden_states[1:], features, strict=True):
        torch.testing.assert_close(transform(x.mean(0)), made, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"tau": 3.0}, {"threshold": 0.9}, {"num_heads": 2}, {"attention_threshold": 0.25}])
def test_a_wrong_setting_shows(wrong: dict[str, float], ids: torch.Tensor) -> None:
    published = Published().double()
    expected, _, _ = published(ids)
    found = _spikes(_load(published.state_dict(), **wrong), ids).spikes
    assert any(not torch.equal(found[name], spikes) for name, spikes in expected.items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "module.module."])
def test_names_from_wrappers_are_understood(prefix: str, state_dict: dict, ids: torch.Tensor) -> None:
    wrapped = _load({f"{prefix}{name}": value for name, value in state_dict.items()})
    plain = _load(state_dict)
    for name, value in plain.state_dict().items():
        assert torch.equal(wrapped.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precisions_are_widened_exactly(dtype: torch.dtype, state_dict: dict) -> None:
    half = {name: value.to(dtype) for name, value in state_dict.items()}
    model = _load(half)
    assert model.dtype == torch.float32
    assert torch.equal(model.classifier.weight, half["classifier.weight"].float())
    assert torch.equal(model.spikebert.blocks[1].output.norm.bias, half["blocks.1.mlp.ln2.bias"].float())


def test_the_model_does_not_share_memory_with_the_state_dict(state_dict: dict) -> None:
    given = {name: value.clone() for name, value in state_dict.items()}
    model = _load(given)
    for value in given.values():
        value.zero_()
    assert all(bool(value.any()) for value in model.state_dict().values())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_everything_wrong_is_named_at_once(state_dict: dict) -> None:
    broken = dict(state_dict)
    del broken["blocks.1.attn.k_ln.bias"], broken["transforms.0.fc.weight"]
    broken["blocks.0.attn.rope"] = torch.zeros(3)
    broken["pos_emb.weight"] = torch.zeros(3, 3)
    broken["blocks.0.mlp.ln1.weight"] = torch.zeros(HIDDEN + 1)
    broken["last_ln.weight"] = torch.zeros(DIM, 1)
    with pytest.raises(CheckpointError) as caught:
        _load(broken)
    for said in (
        "missing: blocks.1.attn.k_ln.bias, transforms.0.fc.weight",
        "extra: blocks.0.attn.rope, pos_emb.weight",
        "blocks.0.mlp.ln1.weight has shape (65,), expected (64,)",
        "last_ln.weight has shape (16, 1), expected (16,)",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.clear(), "emb.weight, last_ln.bias"),
        (lambda d: d.pop("emb.weight"), "missing: emb.weight"),
        (lambda d: d.update({"emb.weight": torch.zeros(VOCABULARY)}), "emb.weight has shape (20,)"),
        (lambda d: d.update({"blocks.99999999999.attn.q_m.bias": torch.zeros(DIM)}), "extra: blocks.99999999999.attn"),
        (lambda d: d.update({"last_ln.bias": torch.full((DIM,), torch.nan)}), "last_ln.bias holds values that are not"),
        (lambda d: d.update({"last_ln.bias": torch.zeros(DIM, dtype=torch.int64)}), "last_ln.bias holds torch.int64"),
        (lambda d: d.update({"last_ln.bias": torch.zeros(DIM).to_sparse()}), "last_ln.bias holds torch.float32"),
        (lambda d: d.update({"last_ln.bias": torch.zeros(DIM, device="meta")}), "last_ln.bias holds"),
        (lambda d: d.update({"last_ln.bias": [0.0] * DIM}), "last_ln.bias is a list"),
        (lambda d: d.update({"emb.weight": torch.zeros(1).expand(2**30, 2**30)}), "emb.weight declares shape"),
        (lambda d: [d.pop(name) for name in list(d) if name.startswith("blocks")], "it has no blocks"),
    ],
)
def test_what_is_no_published_checkpoint_is_refused(change, said: str, state_dict: dict) -> None:
    broken = dict(state_dict)
    change(broken)
    with pytest.raises(CheckpointError) as caught:
        _load(broken)
    assert said in str(caught.value)


@pytest.mark.parametrize("wrong", [{"time_steps": 0}, {"tau": 0.5}, {"threshold": -1.0}, {"num_heads": 5}])
def test_a_setting_that_is_not_allowed_is_refused(wrong: dict, state_dict: dict) -> None:
    with pytest.raises(ConfigurationError):
        _load(state_dict, **wrong)


def test_a_checkpoint_of_stage_1_gets_a_new_classifier(state_dict: dict) -> None:
    stage_1 = {name: value for name, value in state_dict.items() if not name.startswith("classifier")}
    with pytest.raises(CheckpointError, match="stage 1 has no classifier; give num_labels"):
        _load(stage_1)
    model = _load(stage_1, num_labels=5)
    assert model.classifier.weight.shape == (5, DIM)
    assert bool(model.classifier.weight.any())
    assert torch.equal(model.spikebert.final_norm.weight, state_dict["last_ln.weight"])


# ---------------------------------------------------------------------------------------------------------------------
# On disk.


@pytest.fixture
def saved(state_dict: dict, tmp_path: Path) -> Path:
    torch.save({f"module.{name}": value for name, value in state_dict.items()}, tmp_path / "published.pt")
    return tmp_path / "published.pt"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_pretrained(folder)
    return folder


def _run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


SIZES = ("--heads", HEADS, "--max-length", LENGTH)


@pytest.mark.parametrize("save", ["save_pretrained", "import published"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_is_what_was_loaded(save: str, dtype: torch.dtype, state_dict: dict, tmp_path: Path) -> None:
    half = {name: value.to(dtype) for name, value in state_dict.items()}
    model = _load(half)
    if save == "save_pretrained":
        model.save_pretrained(tmp_path / "stored")
    else:
        torch.save(half, tmp_path / "published.pt")
        found = json.loads(
            _run("import", "published", tmp_path / "published.pt", "-o", tmp_path / "stored", *SIZES, "--json")
        )
        assert found["stored_as"] == str(dtype).removeprefix("torch.")
        assert found["not_in_the_file"]["attention_threshold"] == 0.5
    for stored in (
        load_model(tmp_path / "stored"),
        SpikeBertForSequenceClassification.from_pretrained(tmp_path / "stored"),
    ):
        assert stored.config.to_diff_dict().keys() >= {"tau", "feature_transform_size"}
        assert stored.config.padded_length == LENGTH
        assert stored.config.pad_token_id is None
        assert set(stored.state_dict()) == set(model.state_dict())
        assert any("feature_transforms" in name for name in stored.state_dict())
        for name, value in model.state_dict().items():
            assert torch.equal(stored.state_dict()[name], value), name


def test_an_imported_checkpoint_goes_the_whole_road(
    saved: Path, tokenizer: Path, tiny_tokenizer, state_dict: dict, tmp_path: Path
) -> None:
    # the tokenizer of the tests and the table here have the same size only if both are made so
    words = len(tiny_tokenizer)
    published = Published()
    published.emb = nn.Embedding(
        words, DIM, _weight=torch.randn(words, DIM, generator=torch.Generator().manual_seed(2))
    )
    torch.save(published.state_dict(), saved)
    folder = tmp_path / "imported"
    _run("import", "published", saved, "-o", folder, *SIZES, "--tokenizer", tokenizer)
    text = ("--text", "a good film", "the cold dull story .")
    found = json.loads(_run("verify", folder, "--against", "reference", *text, "--json"))
    assert found["equal"]
    nodes = STEPS * 2 * LENGTH * (DIM + 2 * (3 * DIM + DIM + DIM + HIDDEN + DIM))
    assert found["spikes_compared"] == nodes  # padding is counted, as tokens
    _run("export", "nir", folder, "-o", tmp_path / "model.nir")
    simulated = json.loads(
        _run("simulate", tmp_path / "model.nir", "--tokenizer", folder, *text, "--precision", "float32", "--json")
    )
    batch = tiny_tokenizer(list(text[1:]), padding="max_length", max_length=LENGTH, return_tensors="pt")
    _, logits, _ = published(batch["input_ids"])
    np.testing.assert_allclose(simulated["logits"], logits.numpy(), atol=1e-4)
    profile = json.loads(_run("profile", folder, *text, "--json"))
    energy = json.loads(_run("energy", folder, *text, "--json"))
    assert energy["tokens"] == {"real": 5 + 7, "padding": 2}
    assert profile["tokens"]["real"] == 5 + 7


def test_evaluate_pads_as_the_published_code_does(
    tokenizer: Path, tiny_tokenizer, tiny_data: Path, tmp_path: Path
) -> None:
    words, length = len(tiny_tokenizer), 11
    published = Published()
    published.emb = nn.Embedding(
        words, DIM, _weight=torch.randn(words, DIM, generator=torch.Generator().manual_seed(2))
    )
    published.classifier = nn.Linear(DIM, 2)
    torch.save(published.state_dict(), tmp_path / "published.pt")
    folder = tmp_path / "imported"
    _run(
        "import", "published", tmp_path / "published.pt", "-o", folder, "--heads", HEADS, "--max-length", length,
        "--tokenizer", tokenizer,
    )  # fmt: skip
    found = json.loads(_run("evaluate", folder, "--task", "sst2", "--data-dir", tiny_data, "--json"))
    lines = [line.split("\t") for line in (tiny_data / "sst2/dev.tsv").read_text("utf-8").splitlines()[1:]]
    batch = tiny_tokenizer([text for text, _ in lines], padding="max_length", max_length=length, return_tensors="pt")
    expected = _published_labels(published, batch["input_ids"])
    assert found["value"] == np.mean(expected == np.array([int(label) for _, label in lines]))


def _published_labels(published: Published, ids: torch.Tensor) -> np.ndarray:
    global LABELS
    before, LABELS = LABELS, published.classifier.out_features
    try:
        return published(ids)[1].argmax(-1).numpy()
    finally:
        LABELS = before


def test_a_tokenizer_of_another_model_is_refused(saved: Path, tokenizer: Path, tmp_path: Path) -> None:
    said = _run("import", "published", saved, "-o", tmp_path / "imported", *SIZES, "--tokenizer", tokenizer, code=2)
    assert "give the tokenizer that the model was trained with" in " ".join(said.split())
    assert not (tmp_path / "imported").exists()


def test_nothing_is_written_over(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    for force in ((), ("--force",)):
        _run("import", "published", saved, "-o", tmp_path / "thesis", *SIZES, *force, code=2)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


# ---------------------------------------------------------------------------------------------------------------------
# Files from anywhere.


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (exec, (f"open({str(self.mark)!r}, 'w')",))


def test_nothing_in_a_file_is_run(tmp_path: Path, state_dict: dict) -> None:
    torch.save({**state_dict, "bomb": _Bomb(tmp_path / "went off")}, tmp_path / "bomb.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Bomb(tmp_path / "went off")))
    for name in ("bomb.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: "):
            read_published(tmp_path / name)
    assert not (tmp_path / "went off").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({"state_dict": {"emb.weight": torch.zeros(2, 2)}, "epoch": 3}, "'state_dict' with a dict"),
        ({"emb.weight": 3.0}, "'emb.weight' with a float"),
        ({3: torch.zeros(2)}, "'3' with a Tensor"),
        ({}, "holds nothing"),
    ],
)
def test_a_file_of_something_else(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as caught:
        read_published(tmp_path / "other.pt")
    assert str(tmp_path / "other.pt") in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path, saved: Path, state_dict: dict) -> None:
    torch.save(state_dict, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    with (
        zipfile.ZipFile(saved) as archive,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    for name in ("old.pt", "text.pt", "empty.pt", "loop.pt", "packed.pt", "missing.pt", tmp_path.name):
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            read_published(tmp_path / name)


def test_a_file_that_declares_more_than_it_holds_takes_no_memory(
    tmp_path: Path, state_dict: dict, little_memory
) -> None:
    huge = torch.zeros(1)
    torch.save({**state_dict, "emb.weight": huge.expand(2**30, 16)}, tmp_path / "expanded.pt")
    source = tmp_path / "expanded.pt"
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(tmp_path / "storage.pt", "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):  # the storage of 1 element says it has 2 ** 31
                assert b"K\x01tq" in content
                content = content.replace(b"K\x01tq", b"\x8a\x05\x00\x00\x00\x80\x00tq", 1)
            changed.writestr(name, content)
    with little_memory(), pytest.raises(CheckpointError, match=r"emb\.weight declares shape \(1073741824, 16\)"):
        _load(read_published(tmp_path / "expanded.pt"))
    with little_memory(), pytest.raises(CheckpointError):
        _load(read_published(tmp_path / "storage.pt"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.floats(0, 1, exclude_max=True)),
)
def test_a_damaged_file_gives_a_model_or_a_typed_error(
    flips: list, cut: float | None, tmp_path_factory: pytest.TempPathFactory, state_dict: dict
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "published.pt"
    torch.save(state_dict, path)
    content = bytearray(path.read_bytes())
    for where, bits in flips:
        content[int(where * len(content))] ^= bits
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    try:
        model = _load(read_published(path))
    except CheckpointError:
        return
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert model.config.hidden_size == DIM

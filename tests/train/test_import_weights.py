"""From published files to a network that starts from them, and every way in which a file is bad."""

import argparse
import collections
import functools
import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError, StoreError
from tests.train.published_networks import (
    Sizes,
    bert_names,
    bert_words,
    lavt_logits,
    model_names,
    random_state,
    swin_names,
)
from train.checkpoint import load_weights, load_weights_file
from train.config import NetworkConfig
from train.import_weights import survey_published, write_imported
from train.import_weights_cli import import_weights
from train.lavt import Lavt
from train.networks import build_lavt
from train.published.findings import refusal
from train.published.layouts import LAYOUTS
from train.published.mapping import survey
from train.published.starting import start_from

torch.set_num_threads(1)

SIZES = Sizes()


def options_of(mha="2-1-4-2"):
    return argparse.Namespace(mha=mha, swin_type="tiny", window12=False, lr=5e-5, resume="")


@functools.cache
def model_and_bert():
    return random_state(model_names(SIZES), 1), random_state(bert_names(SIZES), 2)


def lavt_file(prefix="module.", **beside):
    """A checkpoint as LAVT's trainer saves it."""
    model, bert = model_and_bert()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    return {
        "model": collections.OrderedDict((prefix + k, v.clone()) for k, v in model.items()),
        "bert_model": collections.OrderedDict((prefix + k, v.clone()) for k, v in bert.items()),
        "optimizer": optimizer.state_dict(),
        "epoch": 39,
        "args": options_of(),
        "lr_scheduler": schedule.state_dict(),
    } | beside


def lavt_one_file(prefix=""):
    model, bert = model_and_bert()
    whole = model | {f"text_encoder.{name}": tensor for name, tensor in bert.items()}
    return {"model": {prefix + k: v.clone() for k, v in whole.items()}, "args": options_of()}


@pytest.fixture
def config(tmp_path):
    """A stages.yaml for the small sizes, its vocabulary beside it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{i}" for i in range(SIZES.vocabulary - len(words))]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    network = {"name": "lavt", "size": "tiny", "options": SIZES.options,
               "tokenizer": str(tmp_path / "vocab.txt")}  # fmt: skip
    path = tmp_path / "stages.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "train": {"network": network}}))
    return path


@pytest.fixture
def network(config):
    """The same as a `NetworkConfig`."""
    values = yaml.safe_load(config.read_text())["train"]["network"]
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in values["options"].items()}
    return NetworkConfig(size="tiny", options=options, tokenizer=Path(values["tokenizer"]))


def saved(tmp_path, content, name="published.pth"):
    path = tmp_path / name
    torch.save(content, path)
    return path


def run(config, *arguments):
    where = ["--config", str(config), "--run-dir", str(config.parent / "run")]
    return CliRunner().invoke(import_weights, [*map(str, arguments), *where])


def new_network(seed=0):
    torch.manual_seed(seed)
    return build_lavt("tiny", SIZES.options | {"vocab_size": SIZES.vocabulary}).eval()


def refused(network, path, layout=None, **how):
    found = survey_published(network, str(path), layout, **how)
    assert found.refused is not None
    assert "\n" not in found.refused
    out = path.with_name("out.safetensors")
    with pytest.raises(StoreError, match=r"^/.*published"):
        write_imported(found, out)
    assert not out.exists()
    return found.refused


@pytest.mark.parametrize(
    ("layout", "content"),
    [
        ("lavt", lavt_file("module.")),
        ("lavt", lavt_file("")),
        ("lavt", lavt_file("_orig_mod.module.")),
        ("lavt-one", lavt_one_file("module.")),
        ("lavt-one", lavt_one_file()),
        ("lavt-one", lavt_one_file()["model"]),
    ],
    ids=["ddp", "plain", "compiled", "one-ddp", "one", "one-bare"],
)
def test_an_imported_network_gives_the_published_logits(tmp_path, config, layout, content):
    path = saved(tmp_path, content)
    result = run(config, path)
    assert result.exit_code == 0, result.output
    assert LAYOUTS[layout].title in result.output
    assert "missing: 0" in result.output
    out = tmp_path / "run" / "weights" / f"{layout}.safetensors"
    ours = new_network()
    load_weights(ours, load_weights_file(out), str(out))  # complete: exactly the network's names
    images = torch.randn(2, 3, 56, 56)
    ids = torch.randint(SIZES.vocabulary, (2, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).long()
    model, bert = model_and_bert()
    with torch.no_grad():
        theirs = lavt_logits(model, bert_words(bert, ids, mask, SIZES), images, mask, SIZES)
        found = ours(images, ids, mask)
    assert torch.allclose(found, theirs, atol=1e-4)
    assert not torch.allclose(new_network()(images, ids, mask), theirs, atol=0.1)


def test_the_file_says_where_it_comes_from_and_is_the_same_each_time(tmp_path, network):
    path = saved(tmp_path, lavt_file())
    found = survey_published(network, str(path))
    first = write_imported(found, tmp_path / "a" / "one.safetensors")
    assert first == write_imported(found, tmp_path / "b" / "two.safetensors")
    with safe_open(tmp_path / "a" / "one.safetensors", "pt") as handle:
        about = json.loads(handle.metadata()["semires"])
    assert about["layout"] == "lavt"
    assert about["source"] == "published.pth"
    assert len(about["source_sha256"]) == 64
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["one.safetensors"]


def test_a_swin_and_a_bert_fill_their_parts_and_the_rest_stays(tmp_path, config):
    swin = random_state(swin_names(SIZES, classifier=True), 5)
    _, bert = model_and_bert()
    files = [tmp_path / "swin.safetensors", tmp_path / "bert.safetensors"]
    for content, out in zip(({"model": swin}, bert), files, strict=True):
        result = run(config, saved(tmp_path, content), "--out", out)
        assert result.exit_code == 0, result.output
        assert "as initialised: " in result.output
    started, untouched = new_network(3), new_network(3)
    assert start_from(started, files) == ("fusions", "decoder")
    state, random = started.state_dict(), untouched.state_dict()
    name = "vision.encoder.layers.1.blocks.0.attention.k_proj.bias"
    assert torch.equal(state[name], swin["layers.1.blocks.0.attn.qkv.bias"][32:64])
    name = "text.encoder.layer.0.output.dense.weight"
    assert torch.equal(state[name], bert["encoder.layer.0.output.dense.weight"])
    for name in state:
        same = torch.equal(state[name], random[name])
        assert same == name.startswith(("fusions.", "decoder.")) or state[name].std() == 0, name


def test_a_swin_needs_no_vocabulary_and_a_text_encoder_does(tmp_path, network):
    without = NetworkConfig(size="tiny", options=network.options)
    swin = saved(tmp_path, {"model": random_state(swin_names(SIZES), 5)})
    assert survey_published(without, str(swin)).refused is None
    with pytest.raises(ConfigError, match=r"^train\.network\.tokenizer: .*its own vocabulary"):
        survey_published(without, str(saved(tmp_path, lavt_file())))


def test_half_precision_is_taken_at_its_word(tmp_path, network):
    content = lavt_file()
    name = "module.classifier.conv1_1.bias"
    content["model"][name] = content["model"][name].half()
    found = survey_published(network, str(saved(tmp_path, content)))
    assert found.refused is None
    write_imported(found, tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")["decoder.head.bias"]
    assert written.dtype == torch.float32
    assert torch.equal(written, content["model"][name].float())


def test_a_dry_run_writes_nothing(tmp_path, config):
    path = saved(tmp_path, lavt_file())
    before = sorted(tmp_path.iterdir())
    result = run(config, path, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "would write" in result.output
    blocks = sum(SIZES.depths)
    assert (
        f"\n{2 * blocks:6}  backbone.layers.{{stage}}.blocks.{{block}}.norm1.{{kind}}"
        in result.output
    )
    assert (
        "\n     2  backbone.layers.{stage}.res_gate.{place}.weight: behind the last"
        in result.output
    )
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path, config):
    path, out = saved(tmp_path, lavt_file()), tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    result = run(config, path, "--out", out)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "is there already; choose another --out, or add --force" in result.stderr
    assert out.read_bytes() == b"precious"
    assert run(config, path, "--out", out, "--force").exit_code == 0
    assert "decoder.head.bias" in load_file(out)


def test_the_verb_explains_itself_and_asks_for_its_file(config):
    help_text = CliRunner().invoke(import_weights, ["-h"]).output
    assert "Example: import-weights --from swin swin_base_patch4_window12" in help_text
    for option in ("--from", "--out", "--dry-run", "--config", "--run-dir", "--set"):
        assert option in help_text
    result = run(config)
    assert result.exit_code == 2
    assert "PATH is missing" in result.stderr


def changed(**entries):
    """Give a checkpoint whose tensors of `model` are replaced, dropped (None) or added."""
    content = lavt_file("")
    for name, value in entries.items():
        name = name.replace("__", ".")
        if value is None:
            del content["model"][name]
        else:
            content["model"][name] = value
    return content


def filled_with(shape, value):
    tensor = torch.zeros(shape)
    tensor[(0,) * len(shape)] = value
    return tensor


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"classifier__conv1_1__bias": None},
            r"^1 tensors of the network that the file lacks \(decoder\.head\.bias\)$",
        ),
        (
            {"classifier__conv9_9__bias": torch.zeros(2)},
            r"^1 tensors that this layout does not have \(model: classifier\.conv9_9\.bias\)$",
        ),
        (
            {"backbone__layers__7__downsample__norm__bias": torch.zeros(2)},
            r"without a place .*layers\.7\.downsample\.norm\.bias: the network has no vision\.",
        ),
        (
            {"classifier__conv1_1__bias": torch.zeros(3)},
            r"another shape \(model: classifier\.conv1_1\.bias is \(3,\), decoder\.head\.bias is "
            r"\(2,\)\)$",
        ),
        (
            {"backbone__layers__0__blocks__0__attn__qkv__bias": torch.zeros(47)},
            r"another shape .*qkv\.bias is \(47,\).*; 2 tensors .* lacks \(.*k_proj\.bias, \.\.\.",
        ),
        (
            {"classifier__conv1_1__bias": filled_with((2,), torch.nan)},
            r"not finite \(model: classifier\.conv1_1\.bias has 1 of 2\)",
        ),
        (
            {"backbone__norm0__weight": filled_with((16,), -torch.inf)},
            r"not finite \(model: backbone\.norm0\.weight has 1 of 16\)",
        ),
        (
            {"backbone__norm0__weight": torch.full((16,), 1e300, dtype=torch.float64)},
            r"not finite \(model: backbone\.norm0\.weight has 16 of 16\)",
        ),
        (
            {"backbone__norm0__weight": torch.zeros(16, dtype=torch.int64)},
            r"no plain tensor \(model: backbone\.norm0\.weight is torch\.int64",
        ),
        (
            {"backbone__norm0__weight": torch.zeros(16, dtype=torch.complex64)},
            r"no plain tensor \(model: backbone\.norm0\.weight is torch\.complex64",
        ),
        (
            {"backbone__norm0__weight": torch.zeros(16).to_sparse()},
            r"no plain tensor \(model: .*norm0\.weight is torch\.float32, torch\.sparse_coo",
        ),
        ({"backbone__norm0__weight": "text"}, r"no plain tensor \(model: .*weight is str\)"),
    ],
    ids=["missing", "extra", "deeper", "shape", "qkv", "nan", "inf", "overflow", "integer",
         "complex", "sparse", "text"],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(tmp_path, network, entries, message):
    text = refused(network, saved(tmp_path, changed(**entries)))
    assert re.search(message, text), text


@settings(max_examples=40)
@given(data=st.data())
def test_whatever_tensor_is_lost_or_renamed_is_named(data):
    """Law: nothing is silently left random, nothing silently dropped."""
    content = lavt_file("")
    section = data.draw(st.sampled_from(["model", "bert_model"]))
    name = data.draw(st.sampled_from(sorted(content[section])))
    tensor = content[section].pop(name)
    with torch.device("meta"):
        own = Lavt(new_network().config).state_dict()
    unneeded = "relative_position_index" in name or ".3.res_gate" in name
    found = survey(content, LAYOUTS["lavt"], own)
    assert bool(refusal(found)) != unneeded
    content[section][f"{name}_2"] = tensor
    problems = survey(content, LAYOUTS["lavt"], own).problems
    assert ("unknown", f"{section}: {name}_2") in [(p.kind, p.text) for p in problems]


def test_another_size_is_one_line_that_says_which(tmp_path, network):
    base = Sizes(embed_dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7)
    names = {k: v for k, v in swin_names(base).items() if ".mlp." not in k and "qkv" not in k}
    path = saved(tmp_path, {"model": {k: torch.zeros(v) for k, v in names.items()}})
    text = refused(network, path)
    assert text.startswith("the file's network has embed_dim 96, train.network's is 16, depths")
    assert text.endswith("; set train.network.size to tiny")


def test_another_window_is_refused_unless_it_may_be_resized(tmp_path, config, network):
    swin = random_state(swin_names(Sizes(window=3)), 5)
    path = saved(tmp_path, {"model": swin})
    text = refused(network, path)
    assert text.startswith("6 position tables of another window (model: layers.0.blocks.0.attn.")
    assert "is of window 3, expected 4" in text
    assert text.endswith("add --resize-position-tables, or set train.network.options.window_size")
    out = tmp_path / "resized.safetensors"
    result = run(config, path, "--out", out, "--resize-position-tables")
    assert result.exit_code == 0, result.output
    tables = [t for name, t in load_file(out).items() if name.endswith("bias_table")]
    assert {len(table) for table in tables} == {49}


def test_heads_that_leave_no_trace_in_shapes_are_compared(tmp_path, network):
    text = refused(network, saved(tmp_path, lavt_file(args=options_of("4-4-4-4"))))
    assert "trained with (4, 4, 4, 4) heads" in text
    assert "set train.network.options.fusion_heads to [4, 4, 4, 4]" in text
    assert "(1, 1, 1, 1)" in refused(network, saved(tmp_path, lavt_file(args=options_of(""))))
    assert "'2-x'" in refused(network, saved(tmp_path, lavt_file(args=options_of("2-x"))))
    silent = lavt_file()
    del silent["args"]
    found = survey_published(network, str(saved(tmp_path, silent)))
    assert found.refused is None
    assert found.survey.notes == [
        "the file does not say how many heads its pixel-word attention has; "
        "train.network's fusion_heads (2, 1, 4, 2) are taken"
    ]


@pytest.mark.parametrize(
    ("entry", "value"),
    [("num_attention_heads", 8), ("hidden_act", "relu"), ("layer_norm_eps", 1e-5)],
)
def test_a_bert_that_computes_otherwise_is_refused(tmp_path, network, entry, value):
    folder = tmp_path / "published"
    folder.mkdir()
    _, bert = model_and_bert()
    save_file(bert, folder / "model.safetensors")
    described = {"num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(described))
    assert survey_published(network, str(folder)).refused is None
    (folder / "config.json").write_text(json.dumps(described | {entry: value}))
    found = survey_published(network, str(folder))
    assert found.refused.startswith(f"its config.json says {entry} {value!r}, expected ")


@pytest.mark.parametrize(
    ("content", "layout", "message"),
    [
        (lavt_one_file(), "lavt", "use --from lavt-one"),
        (lavt_file(), "lavt-one", "use --from lavt"),
        (lavt_file(), "swin", "use --from lavt"),
        ({"model": random_state(swin_names(SIZES), 1)}, "bert", "use --from swin"),
        (random_state(bert_names(SIZES), 1), "swin", "use --from bert"),
        (torch.nn.Linear(2, 2).state_dict(), "lavt", "its names: weight, bias"),
        ({"model": {}}, "swin", "found other names"),
        ({"model": {3: torch.zeros(2)}}, "swin", "found other names"),
    ],
    ids=["one-as-two", "two-as-one", "lavt-as-swin", "swin-as-bert", "bert-as-swin", "linear",
         "empty", "numbered"],
)  # fmt: skip
def test_a_file_of_another_kind_is_told_apart(tmp_path, network, content, layout, message):
    assert message in refused(network, saved(tmp_path, content), layout)


def test_a_file_that_nobody_knows_needs_no_layout_to_be_refused(tmp_path, network):
    path = saved(tmp_path, {"model": torch.nn.TransformerEncoderLayer(8, 2).state_dict()})
    with pytest.raises(
        ConfigError, match=r"of no known layout \(its names: model\.self_attn\.in_p"
    ):
        survey_published(network, str(path))


def test_what_lies_beside_is_known_or_refused(tmp_path, network):
    assert survey_published(network, str(saved(tmp_path, lavt_file(epoch=3)))).refused is None
    stray = lavt_file(ema={"weight": torch.zeros(3)})
    assert "1 dictionaries that do not fit ('ema' is not known)" in refused(
        network, saved(tmp_path, stray)
    )
    only = lavt_file()
    del only["bert_model"]
    assert "that the file lacks (text.embeddings" in refused(network, saved(tmp_path, only))


class Runs:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class Evaluates(Runs):
    def __reduce__(self):
        return (eval, (f"open({str(self.path)!r}, 'w').close()",))


def as_zip(content, path):
    torch.save(content, path)


def as_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [as_zip, as_legacy, as_pickle])
@pytest.mark.parametrize("trap", [Runs, Evaluates])
@pytest.mark.parametrize("where", ["whole", "tensor", "args"])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, config, write, trap, where):
    sprung, path = tmp_path / "sprung", tmp_path / "published.pth"
    content = {
        "whole": trap(sprung),
        "tensor": {"model": {"classifier.conv1_1.bias": trap(sprung)}},
        "args": lavt_file(args=argparse.Namespace(mha=trap(sprung))),
    }[where]
    write(content, path)
    result = run(config, path)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "published.pth: refused: it names" in result.stderr
    assert "nothing was run" in result.stderr
    assert not sprung.exists()
    with path.open("rb") as handle:  # the trap is a real one
        if write is as_pickle:
            pickle.load(handle)
        else:
            torch.load(handle, weights_only=False)
    assert sprung.exists()


def test_a_class_of_numpy_is_named_in_the_refusal(tmp_path, network):
    path = saved(tmp_path, lavt_file(epoch=np.float64(3)))
    with pytest.raises(StoreError, match=r"it names 'numpy\..*scalar'"):
        survey_published(network, str(path))


def other_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "nothing of torch")
    return buffer.getvalue()


def arrays():
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, world", b"PK\x03\x04", b"\x80\x02", other_zip(), arrays(), bytes(1000)],
    ids=["empty", "text", "zip-head", "pickle-head", "other-zip", "npz", "zeros"],
)
def test_what_is_no_torch_file_is_refused(tmp_path, config, content):
    path = tmp_path / "published.pth"
    path.write_bytes(content)
    result = run(config, path)
    assert result.exit_code == 1, result.output
    assert "published.pth: not a readable torch file" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99, None], ids=str)
def test_a_truncated_file_is_refused(tmp_path, config, share):
    path = saved(tmp_path, lavt_file())
    whole = path.read_bytes()
    path.write_bytes(whole[: -1 if share is None else int(share * len(whole))])
    result = run(config, path)
    assert result.exit_code == 1
    assert "published.pth: not a readable torch file, truncated perhaps" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_truncated_safetensors_file_is_refused(tmp_path, network):
    path = tmp_path / "published.safetensors"
    save_file(model_and_bert()[1], path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        StoreError, match=r"published\.safetensors: not a readable safetensors file"
    ):
        survey_published(network, str(path), "bert")


def test_a_file_that_is_not_there_or_no_dictionary_is_refused(tmp_path, network):
    with pytest.raises(ConfigError, match=r"none\.pth: no such file or folder"):
        survey_published(network, str(tmp_path / "none.pth"))
    with pytest.raises(StoreError, match="expected a dictionary of tensors, found list"):
        survey_published(network, str(saved(tmp_path, [torch.zeros(2)])))


@pytest.fixture(scope="module")
def parts():
    """Our own weights, by part."""
    state = new_network(1).state_dict()
    first = {part: {n: t for n, t in state.items() if n.startswith(part)} for part in
             ("vision.", "text.", "fusions.", "decoder.")}  # fmt: skip
    return {part.rstrip("."): tensors for part, tensors in first.items()}


def test_a_network_starts_from_nothing_and_from_everything(tmp_path, parts):
    network = new_network(2)
    assert start_from(network, []) == ("text", "vision", "fusions", "decoder")
    path = tmp_path / "all.safetensors"
    save_file({n: t for tensors in parts.values() for n, t in tensors.items()}, path)
    assert start_from(network, [path]) == ()
    expected = new_network(1).state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in network.state_dict().items())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([{"text": {}}, {"text": {}}], "gives 'text', which .*0.safetensors gives already"),
        ([{"text": {"text.embeddings.LayerNorm.bias": None}}], r"lacks text\.emb.*bias \(1 such\)"),
        ([{"text": {"text.odd": torch.zeros(1)}}], r"has an unknown text\.odd \(1 such\)"),
        ([{"text": {"odd": torch.zeros(1)}}], r"has an unknown odd \(1 such\)"),
        (
            [{"text": {}}, {"decoder": {"decoder.head.bias": torch.zeros(3)}}],
            r"1\.safetensors: decoder\.head\.bias has shape \(3,\), the network's is \(2,\)",
        ),
    ],
    ids=["twice", "lacks", "unknown", "unknown-part", "shape"],
)
def test_starting_refuses_what_is_not_whole_and_changes_nothing(tmp_path, parts, files, message):
    paths = []
    for position, entries in enumerate(files):
        ((part, replaced),) = entries.items()
        tensors = {n: t for n, t in (parts[part] | replaced).items() if t is not None}
        paths.append(tmp_path / f"{position}.safetensors")
        save_file(tensors, paths[-1])
    network = new_network(2)
    with pytest.raises(StoreError, match=message):
        start_from(network, paths)
    expected = new_network(2).state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in network.state_dict().items())

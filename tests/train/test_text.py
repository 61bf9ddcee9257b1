import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import file_sha256
from pipeline.errors import ConfigError
from train.text import (
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    absolute_source,
    build_vocabulary,
    load_text_encoder,
    save_vocabulary,
    split_words,
    tokenizer_sha256,
)

SENTENCES = ["Red ball on the left", "the left, red one", "the ball"]


@pytest.fixture
def encoder(tmp_path):
    return load_text_encoder(save_vocabulary(build_vocabulary(SENTENCES), tmp_path), 8)


def tokens_of(encoder, sentence):
    ids, mask = encoder.encode([sentence])
    return encoder.tokenizer.convert_ids_to_tokens(ids[0, mask[0] == 1].tolist())


def test_words_come_by_count_and_then_by_alphabet():
    tokens = build_vocabulary(SENTENCES)
    assert tokens[:5] == SPECIAL_TOKENS
    assert tokens[5:12] == ("the", "ball", "left", "red", ",", "on", "one")
    assert "##z" in tokens
    assert len(tokens) == len(set(tokens))
    assert build_vocabulary(reversed(SENTENCES)) == tokens


def test_ids_and_mask_by_hand(encoder):
    ids, mask = encoder.encode(["the RED ball", ""])
    assert ids.tolist() == [[2, 5, 8, 6, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_an_unknown_word_falls_into_characters(encoder):
    assert tokens_of(encoder, "fox") == ["[CLS]", "f", "##o", "##x", "[SEP]"]
    assert tokens_of(encoder, "café") == ["[CLS]", "c", "##a", "##f", "##e", "[SEP]"]
    assert tokens_of(encoder, "球") == ["[CLS]", "[UNK]", "[SEP]"]


def test_a_long_sentence_is_cut_and_keeps_its_end_mark(encoder):
    ids, mask = encoder.encode(["the " * 30])
    assert ids[0].tolist() == [2, 5, 5, 5, 5, 5, 5, 3]
    assert mask.sum() == 8


def test_no_sentence_gives_no_row(encoder):
    ids, mask = encoder.encode([])
    assert ids.shape == mask.shape == (0, 8)


def test_folder_and_file_give_the_same_and_an_encoder_can_be_pickled(tmp_path):
    path = save_vocabulary(build_vocabulary(SENTENCES), tmp_path)
    encoders = [load_text_encoder(tmp_path), load_text_encoder(str(path))]
    encoders.append(pickle.loads(pickle.dumps(encoders[0])))
    ids = [encoder.encode(SENTENCES)[0] for encoder in encoders]
    assert ids[0].shape == (3, 20)
    assert np.array_equal(ids[0], ids[1])
    assert np.array_equal(ids[0], ids[2])
    assert encoders[0].vocab_size == len(build_vocabulary(SENTENCES))


@settings(max_examples=40)
@given(sentence=st.text(alphabet="abcxyz ,.-'09", max_size=20))
def test_every_plain_sentence_decomposes(sentence):
    tokens = build_vocabulary([sentence])
    words = split_words(sentence)
    assert set(words) <= set(tokens)
    assert "".join(words) == "".join(sentence.split())


def test_what_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 3"):
        load_text_encoder(tmp_path, 2)
    with pytest.raises(ConfigError, match="no tokenizer"):
        load_text_encoder(tmp_path / "none")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match="begins with"):
        load_text_encoder(tmp_path)


@pytest.fixture
def saved(tmp_path, encoder):
    """A tokenizer as transformers saves it, in a folder as the hub has them."""
    folder = tmp_path / "saved"
    encoder.tokenizer.save_pretrained(folder)
    assert (folder / TOKENIZER_CONFIG).is_file()
    return folder


def test_a_folder_is_named_by_what_is_in_it_wherever_it_lies(saved, tmp_path):
    before = tokenizer_sha256(saved)
    assert re.fullmatch("[0-9a-f]{64}", before)
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "link").symlink_to(saved)
    (tmp_path / "links").mkdir()
    for path in saved.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    assert {tokenizer_sha256(tmp_path / name) for name in ("copy", "link", "links")} == {before}


def test_every_file_of_a_folder_counts_but_weights_and_hidden_ones(saved):
    before = tokenizer_sha256(saved)
    for name in ("model.safetensors", "pytorch_model.bin", "README.md", ".gitattributes",
                 "model.safetensors.index.json"):  # fmt: skip
        (saved / name).write_bytes(b"other")
    (saved / "onnx").mkdir()
    assert tokenizer_sha256(saved) == before
    seen = {before}
    for path in [path for path in saved.iterdir() if path.suffix in (".json", ".txt")]:
        if path.name.endswith(".index.json"):
            continue
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        seen.add(tokenizer_sha256(saved))
        path.write_bytes(content)
    (saved / "added_tokens.json").write_text("{}")
    seen.add(tokenizer_sha256(saved))
    assert len(seen) >= 4
    assert len(list(saved.glob("*.json"))) >= 3


def test_a_vocabulary_alone_is_named_by_its_file(tmp_path):
    path = save_vocabulary(build_vocabulary(SENTENCES), tmp_path)
    (tmp_path / "notes.json").write_text("{}")  # which nobody reads
    assert tokenizer_sha256(path) == tokenizer_sha256(tmp_path) == file_sha256(path)


def test_a_name_on_the_hub_has_no_content_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("google-bert/bert-base-uncased")
    assert tokenizer_sha256(name) is None
    assert absolute_source(name) == name
    name.mkdir(parents=True)
    assert absolute_source(name) == tmp_path / name


def test_what_cannot_be_hashed_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="a tokenizer that cannot be read") as refused:
        tokenizer_sha256(tmp_path / "pipe")
    assert "\n" not in str(refused.value)

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from specstream.errors import MissingPackageError, ModelNotFoundError, UsageError
from specstream.routing.features import CLASSES, HINTS, Features, hints, make_embedding, token_table
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def named(text, tokenizer):
    values = hints(tokenizer(text)["input_ids"], token_table(tokenizer, 300))
    return dict(zip(HINTS, values.tolist(), strict=True))


def test_shares_are_of_the_characters_of_the_text(tokenizer):
    text = "the Cat, 12\n`a+b` (cat)"
    found = named(text, tokenizer)
    for name, belongs in CLASSES.items():
        assert found[name] == pytest.approx(sum(map(belongs, text)) / len(text)), name
    assert found["log_length"] == pytest.approx(math.log(1 + len(tokenizer(text)["input_ids"])))


def test_what_repeats_is_seen(tokenizer):
    once, often = "one two three four five six", "one two one two one two one two one two"
    assert named(once, tokenizer)["repeated_4_grams"] == 0
    assert named(often, tokenizer)["repeated_4_grams"] > 0.4
    tokens = [token * token % 7 + token // 60 for token in range(200)]
    values = dict(zip(HINTS, hints(tokens, token_table(tokenizer, 300)).tolist(), strict=True))
    for size in (2, 4):
        grams = list(zip(*(tokens[start:] for start in range(size)), strict=False))
        assert values[f"repeated_{size}_grams"] == pytest.approx(1 - len(set(grams)) / len(grams))
    assert hints([3], token_table(tokenizer, 300)).isfinite().all()  # shorter than any n-gram


def test_tokens_beyond_the_tokenizer_hold_nothing(tokenizer):
    table = token_table(tokenizer, 320)
    assert table.shape == (320, 1 + len(CLASSES))
    assert table[len(tokenizer) :].sum() == 0
    assert table.dtype == torch.uint8


def test_the_targets_embedding_is_the_mean_of_its_rows(tokenizer):
    model = tiny_model()
    embedding = make_embedding("target", None, model, None)
    rows = model.get_input_embeddings().weight[[5, 6, 6]]
    assert torch.allclose(embedding([5, 6, 6]), rows.mean(0))
    long = [*range(2, 250)] * 5
    assert torch.allclose(embedding(long), model.get_input_embeddings().weight[long[::5]].mean(0), atol=1e-6)
    features = Features(token_table(tokenizer, 300), embedding)
    assert features([5, 6, 6]).shape == (len(HINTS) + 48,)
    assert features([5, 6, 6]).requires_grad is False


def test_mpnet_is_missed_with_the_line_that_installs_it(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingPackageError, match=r"pip install '.\[router\]'"):
        make_embedding("mpnet", None, tiny_model(), tokenizer)


def test_mpnet_reads_the_text_of_the_prompt(monkeypatch, tokenizer):
    seen = []

    class SentenceTransformer:
        def __init__(self, name, device):
            if name == "nowhere":
                raise OSError("no such folder")
            seen.append(name)

        def encode(self, text, **settings):
            seen.append(text)
            return torch.arange(768).numpy()

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=SentenceTransformer))
    embedding = make_embedding("mpnet", "some/folder", tiny_model(), tokenizer)
    assert embedding(tokenizer("the cat")["input_ids"]).shape == (768,)
    assert seen == ["some/folder", "the cat"]
    make_embedding("mpnet", None, tiny_model(), tokenizer)
    assert seen[-1] == "sentence-transformers/all-mpnet-base-v2"
    with pytest.raises(ModelNotFoundError, match=r"'nowhere' cannot be loaded: no such folder; give embedding.model"):
        make_embedding("mpnet", "nowhere", tiny_model(), tokenizer)
    with pytest.raises(UsageError, match="there is no tokenizer"):
        make_embedding("mpnet", None, tiny_model(), None)


def test_an_unknown_embedding_is_named():
    with pytest.raises(UsageError, match="embedding is 'bert'; give 'target', 'mpnet' or 'none'"):
        make_embedding("bert", None, None, None)

"""What tokens spell, and where: exact for every kind of tokenizer; and text that drives no terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune import builtin
from ftune.data.spell import spell, visible

WORDS = ["red", "##dish", "green", "sea", "the", ",", ".", "'", "s", "ü", "##n"]


def byte_level() -> Any:
    return builtin.tokenizer().backend_tokenizer


def word_piece() -> Any:
    from tokenizers import Tokenizer, decoders, models

    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    core.add_special_tokens(["[CLS]", "[SEP]", "[MASK]"])
    return core


def sentence_piece(*, strips: bool = True) -> Any:
    """As Llama 2's: the space before a word belongs to it, letters it lacks are bytes, the first space is left out."""
    from tokenizers import Tokenizer, decoders, models

    pieces = ["▁", "▁red", "dish", "▁sea", "s", ",", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strips else [])])
    core.add_special_tokens(["<s>", "</s>"])
    return core


def metaspace() -> Any:
    from tokenizers import Tokenizer, decoders, models

    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in ("<unk>", "▁red", "dish", "▁", "sea", "ü")], unk_id=0))
    core.decoder = decoders.Metaspace()
    core.add_special_tokens(["</s>", "<extra_id_0>"])
    return core


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "word_piece": word_piece,
    "sentence_piece": sentence_piece,
    "metaspace": metaspace,
}
BUILT = {name: build() for name, build in TOKENIZERS.items()}


def decoder(core: Any) -> Callable[[list[int]], str]:
    return lambda ids: str(core.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tokens_cover_the_text_in_order_whatever_they_are(name: str, data: st.DataObject) -> None:
    core = BUILT[name]
    ids = data.draw(st.lists(st.integers(0, core.get_vocab_size() - 1), max_size=24))
    text, ranges = spell(ids, decoder(core))
    whole = core.decode(ids, skip_special_tokens=False)
    spoiled = name == "sentence_piece" and "\ufffd" in whole  # there, one broken byte spoils its neighbours
    assert text == whole or spoiled
    assert len(ranges) == len(ids)
    at = 0
    for number, (start, end) in enumerate(ranges):
        shared = number > 0 and (start, end) == ranges[number - 1]
        assert shared or start == at, "no gap and no overlap, but in one character"
        at = max(at, end)
        assert start <= end
    assert at == len(text)


def test_parts_of_one_character_share_its_place() -> None:
    core = byte_level()
    ids = core.encode("aü🙂b").ids
    assert spell(ids, decoder(core)) == ("aü🙂b", [(0, 1), *[(1, 2)] * 2, *[(2, 3)] * 4, (3, 4)])


def test_broken_bytes_do_not_take_their_neighbours() -> None:
    core = byte_level()
    ids = [*core.encode("a").ids, *core.encode("🙂").ids[:2], *core.encode("bc").ids]
    text, ranges = spell(ids, decoder(core))
    assert text == "a\ufffdbc"
    assert ranges == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4)]
    assert spell(core.encode("🙂").ids[:3], decoder(core)) == ("\ufffd", [(0, 1)] * 3)


def test_a_replacement_character_of_the_text_itself_is_one_character() -> None:
    core = byte_level()
    assert spell(core.encode("a\ufffdb").ids, decoder(core))[0] == "a\ufffdb"


def test_spaces_that_a_decoder_leaves_out_only_at_the_start() -> None:
    core = sentence_piece()
    red, sea = core.token_to_id("▁red"), core.token_to_id("▁sea")
    assert spell([red, sea], decoder(core)) == ("red sea", [(0, 3), (3, 7)])
    core = word_piece()
    ids = [core.token_to_id(word) for word in ("[CLS]", "red", "##dish", "sea")]
    assert spell(ids, decoder(core)) == ("[CLS] reddish sea", [(0, 5), (5, 9), (9, 13), (13, 17)])


def test_nothing() -> None:
    assert spell([], decoder(byte_level())) == ("", [])


@given(st.text())
def test_visible_text_drives_no_terminal(text: str) -> None:
    shown = visible(text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]", shown)
    shown.encode()
    assert shown.count("\n") == text.count("\n")


def test_pictures() -> None:
    assert visible("a\x1b[31m\r\t\x7f\x9b\u202eb\nc") == "a␛[31m␍␉␡<U+009B><U+202E>b\nc"
    assert visible("plain ünï 🙂 日本") == "plain ünï 🙂 日本"

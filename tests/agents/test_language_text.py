"""The pure parts of generation: tokens to text, stop strings, sampling, and chat templates."""

from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agents import languagekit as kit
from tokenizers import Tokenizer, decoders, models, normalizers

from starloom.agents.language import sampling
from starloom.agents.language.budget import StopText
from starloom.agents.language.chat import ChatTemplate, checked, conversation, read_template
from starloom.agents.language.sampling import Sampling, choose, draw, probabilities
from starloom.agents.language.tokens import REPLACEMENT, Detokeniser, Vocabulary
from starloom.dag.errors import InvalidInput

TEXTS = st.text(max_size=30)
WEIRD = "naïve — \U0001f468‍\U0001f469‍\U0001f467 日本語 é"


def sentencepiece() -> Vocabulary:
    """As Llama's: words with their space in front, and bytes for whatever is no piece."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b", "ab", "▁ab"]
    ids = {piece: n for n, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b")]
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Vocabulary(made)


VOCABULARIES = {"bytes": Vocabulary.read(kit.TINY / "tokenizer.json"), "sentencepiece": sentencepiece()}


def told(vocabulary: Vocabulary, before: list[int], tokens: list[int]) -> list[str]:
    """The pieces of text that the tokens make, one by one, and the rest."""
    text = Detokeniser(vocabulary, before)
    return [*(text.push(token) for token in tokens), text.flush()]


@pytest.mark.parametrize("name", VOCABULARIES)
@given(before=TEXTS, text=TEXTS)
def test_pieces_make_up_the_text_and_no_character_is_torn(name: str, before: str, text: str) -> None:
    vocabulary = VOCABULARIES[name]
    tokens = vocabulary.encode(text, marked=False)
    assert "".join(told(vocabulary, [], tokens)) == vocabulary.decode(tokens)
    first = vocabulary.encode(before, marked=False)
    pieces = told(vocabulary, first, tokens)
    assert vocabulary.decode(first) + "".join(pieces) == vocabulary.decode([*first, *tokens])
    if REPLACEMENT not in text + before:
        assert not any(REPLACEMENT in piece for piece in pieces)


@given(tokens=st.lists(st.integers(0, 299), max_size=200))
def test_any_tokens_of_a_byte_level_vocabulary_come_out_as_their_text(tokens: list[int]) -> None:
    vocabulary = VOCABULARIES["bytes"]
    assert "".join(told(vocabulary, [], tokens)) == vocabulary.decode(tokens)


def test_a_character_comes_once_it_is_whole() -> None:
    vocabulary = VOCABULARIES["bytes"]
    tokens = vocabulary.encode("x\U0001f600y", marked=False)
    pieces = told(vocabulary, [], tokens)
    assert len(tokens) == 6
    assert pieces == ["x", "", "", "", "\U0001f600", "y", ""]
    assert told(vocabulary, [], tokens[:3]) == ["x", "", "", REPLACEMENT]


def test_bytes_without_end_do_not_pile_up() -> None:
    vocabulary = VOCABULARIES["sentencepiece"]
    byte = vocabulary.token("<0xFF>")
    assert byte is not None
    pieces = told(vocabulary, [], [byte] * 1_000)
    assert "".join(pieces) == REPLACEMENT * 1_000
    assert max(map(len, pieces)) <= 64
    nothing = VOCABULARIES["bytes"].token("<s>")
    assert nothing is not None
    assert "".join(told(VOCABULARIES["bytes"], [], [nothing] * 1_000)) == ""


def test_a_decoder_may_have_some_spare_logits() -> None:
    vocabulary = VOCABULARIES["bytes"]
    assert vocabulary.mismatch(300) == ""
    assert vocabulary.mismatch(320) == ""
    assert "gives 299 logits" in vocabulary.mismatch(299)
    assert "gives 600 logits" in vocabulary.mismatch(600)


@given(
    text=st.text("ab.", max_size=30), stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_stop_strings_are_found_wherever_the_pieces_are_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    stop, said = StopText(stops), ""
    for first, last in pairwise(edges):
        said += stop.push(text[first:last])
    said += stop.flush()
    found = [at for one in stops if (at := text.find(one)) >= 0]
    assert stop.stopped == bool(found)
    # Where two overlap, the one that was whole first ends the text.
    ends = [text.find(one) + len(one) for one in stops if one in text]
    assert text.startswith(said)
    assert said == text if not found else len(said) <= min(ends)
    assert not any(one in said for one in stops)


def test_text_that_may_begin_a_stop_string_is_held() -> None:
    stop = StopText(["</end>", "\n\n"])
    assert [stop.push(piece) for piece in ("one <", "/en", "tity>\n", "x", "</e", "nd", ">two")] == [
        *("one ", "", "</entity>", "\nx", "", "", "")
    ]
    assert stop.stopped
    assert stop.push("more") == ""
    assert stop.flush() == ""


LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40).map(lambda row: np.array(row, np.float32))


@given(logits=LOGITS, temperature=st.floats(0.05, 5), top_p=st.floats(0.01, 1))
def test_what_is_drawn_from_adds_up_to_one_and_to_top_p(logits: Any, temperature: float, top_p: float) -> None:
    spread = probabilities(logits, Sampling(temperature, top_p))
    whole = probabilities(logits, Sampling(temperature))
    assert spread.sum() == pytest.approx(1)
    assert whole[spread > 0].sum() >= min(top_p, 1) - 1e-9
    assert whole[spread > 0].max() == whole.max(), "a likeliest token is never left out"
    if (spread > 0).sum() > 1:
        kept = np.sort(whole[spread > 0])
        assert kept[1:].sum() < top_p + 1e-9, "no more tokens are kept than it takes"


@given(logits=LOGITS, chance=st.floats(0, 1, exclude_max=True), top_p=st.floats(0.01, 1))
def test_no_chance_draws_a_token_that_was_left_out(logits: Any, chance: float, top_p: float) -> None:
    choice = choose(logits, Sampling(0.7, top_p), chance)
    assert probabilities(logits, Sampling(0.7, top_p))[choice.token] > 0
    assert choice.log_probability == pytest.approx(float(sampling.log_softmax(logits)[choice.token]))


def test_chance_follows_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    drawn = [choose(logits, Sampling(1.0), draw(1, n)).token for n in range(3_000)]
    np.testing.assert_allclose(np.bincount(drawn) / 3_000, [0.5, 0.3, 0.2], atol=0.04)
    assert choose(logits, sampling.GREEDY, 0.99).token == 0
    assert len({draw(seed, index) for seed in range(30) for index in range(30)}) == 900
    with pytest.raises(InvalidInput, match="not drawn"):
        probabilities(logits, sampling.GREEDY)


def rendered(source: str, **options: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render([{"role": "user", "content": "hi"}], **options)


def test_templates_have_what_exporters_count_on() -> None:
    assert rendered("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}") == "<s>hi"
    assert rendered("{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}") == "01"
    assert rendered("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}") == "hi"
    assert rendered("{{ tools | tojson }}", tools=[{"a": "<é>"}]) == '[{"a": "<é>"}]'
    assert rendered("{% if tools %}tools{% endif %}{% if add_generation_prompt %}a{% endif %}") == "a"
    day = date(2026, 1, 31)
    assert rendered("{{ strftime_now('%d %b %Y') }}", day=day) == "31 Jan 2026"
    assert rendered("{% if strftime_now is defined %}x{% else %}no date{% endif %}") == "no date"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "does not take these messages: roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(a=1) }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ strftime_now('%d') }}", "parameter date"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'endless' * 99 }}{% endfor %}{% endfor %}",
            "CHAT_CHARA",
        ),
        ("{% for n in range(10 ** 9) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_can_do_no_harm_and_says_what_it_did_not_like(source: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        rendered(source)


def test_where_templates_are_found(tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    file.write_text("from the file")
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ eos_token }}"}]
    settings = {"chat_template": named, "eos_token": {"content": "</s>"}}
    for path, expected in ((file, "from the file"), (None, "</s>")):
        found = read_template(path, settings)
        assert found is not None
        assert found.render([]) == expected
    assert read_template(None, {}) is None


def test_messages_are_checked_and_put_together() -> None:
    with pytest.raises(InvalidInput) as caught:
        checked([{"role": "user"}, "x", {"role": "boss", "content": "x"}, {"role": "tool", "content": 5}])
    assert [problem.place for problem in caught.value.problems] == [
        *("messages[0].content", "messages[1]", "messages[2].role", "messages[3].content")
    ]
    with pytest.raises(InvalidInput, match="no list of one message"):
        checked([])
    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}
    found = conversation({"messages": [calls], "prompt": "more"}, "be brief")
    assert [message["role"] for message in found] == ["system", "assistant", "user"]

"""Generation: transformers' own tokens, budgets, stops, cancels, and the stage over it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agents import languagekit as kit

from starloom.agents.language import engine
from starloom.agents.language.budget import Budget, Finish
from starloom.agents.language.engine import Request, Step, collected, generate
from starloom.agents.language.model import LanguageModel, load
from starloom.agents.language.sampling import Sampling
from starloom.agents.modelstore import ModelStore
from starloom.agents.stage import CancelToken, StageCall
from starloom.agents.stages.language import Generate
from starloom.dag.errors import Cancelled, InvalidInput, NotFound

PROMPT = "A stage runs on"
TOKENS = kit.EXPECTED["new_tokens"]
PLENTY = Budget(TOKENS, 3_600)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return kit.stored(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(store: ModelStore) -> LanguageModel:
    return load(kit.models(store), "tiny")


def run(model: LanguageModel, cancel: CancelToken | None = None, clock: Any = None, **request: Any) -> Iterator[Step]:
    request = {"prompt": tuple(kit.PROMPTS[PROMPT]), "budget": PLENTY, **request}
    options = {"clock": clock} if clock else {}
    return generate(model.decoder, model.vocabulary, Request(**request), cancel or CancelToken(), **options)


def call(store: ModelStore, inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
    filled = {name: param.default for name, param in Generate.spec.params.items()} | {"model": "tiny"} | params
    outputs = Generate().run(StageCall(inputs, filled, kit.models(store)))
    assert isinstance(outputs, dict)
    return outputs


@pytest.mark.parametrize("text", kit.PROMPTS)
def test_greedy_tokens_are_those_of_transformers(model: LanguageModel, text: str) -> None:
    assert model.vocabulary.encode(text, marked=True) == kit.PROMPTS[text]
    made = collected(run(model, prompt=tuple(kit.PROMPTS[text]), ends=model.texts.ends))
    assert made.tokens == kit.EXPECTED["greedy"][text]
    assert made.finish == Finish.LENGTH
    before = model.vocabulary.decode(kit.PROMPTS[text])
    assert before + made.text == model.vocabulary.decode([*kit.PROMPTS[text], *made.tokens])


@pytest.mark.parametrize("case", kit.EXPECTED["drawn"])
def test_drawn_tokens_are_those_of_transformers_for_the_same_chance(model: LanguageModel, case: dict[str, Any]) -> None:
    sampling = Sampling(case["temperature"], case["top_p"], case["seed"])
    prompt = tuple(kit.PROMPTS[case["prompt"]])
    made = collected(run(model, prompt=prompt, sampling=sampling, ends=model.texts.ends))
    assert made.tokens == case["tokens"]
    assert made.finish == (Finish.STOP if made.tokens[-1] == 1 else Finish.LENGTH)


def test_some_drawn_case_comes_to_its_end_token() -> None:
    assert any(case["tokens"][-1] == 1 for case in kit.EXPECTED["drawn"])


def test_steps_have_times_and_the_last_one_alone_a_finish(model: LanguageModel) -> None:
    steps = list(run(model))
    assert [step.token for step in steps] == kit.EXPECTED["greedy"][PROMPT]
    assert [step.finish for step in steps] == [None] * (TOKENS - 1) + [Finish.LENGTH]
    seconds = [step.seconds for step in steps]
    assert seconds == sorted(seconds)
    assert all(step.log_probability < 0 for step in steps)


def test_what_is_drawn_at_an_index_does_not_depend_on_where_it_began(model: LanguageModel) -> None:
    first, again = (collected(run(model, sampling=Sampling(1.0, 1.0, 5))).tokens for _ in range(2))
    assert first == again
    other = collected(run(model, sampling=Sampling(1.0, 1.0, 6))).tokens
    assert other != first


@pytest.mark.parametrize("at", [1, 2, 7])
def test_a_stop_string_ends_the_text_before_it(model: LanguageModel, at: int) -> None:
    whole = collected(run(model)).text
    stop = whole[at : at + 4]
    made = collected(run(model, stops=(stop, "never said")))
    assert made.finish == Finish.STOP
    assert made.text == whole[: whole.index(stop)]
    assert len(made.tokens) < TOKENS


def test_an_end_token_is_no_part_of_the_text(model: LanguageModel) -> None:
    greedy = kit.EXPECTED["greedy"][PROMPT]
    made = collected(run(model, ends=frozenset({greedy[4]})))
    assert made.finish == Finish.STOP
    assert made.tokens == greedy[:5]
    assert made.text == collected(run(model, budget=Budget(4, 60))).text


def test_a_budget_of_seconds_cuts_off_and_says_so(model: LanguageModel) -> None:
    # Each look at the clock takes a second.
    ticks = iter(range(1_000))
    made = collected(run(model, clock=lambda: float(next(ticks)), budget=Budget(TOKENS, 10)))
    assert made.finish == Finish.TIME
    assert 0 < len(made.tokens) < TOKENS
    ticks = iter(range(1_000))
    made = collected(run(model, clock=lambda: float(next(ticks)), budget=Budget(TOKENS, 1)))
    assert (made.finish, made.tokens, made.text, made.first_token_seconds) == (Finish.TIME, [], "", None)
    assert made.tokens_per_second is None


def test_reading_a_long_prompt_is_cut_off_between_its_pieces(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starloom.dag.limits.LANGUAGE_PREFILL_TOKENS", 2)
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return float(looks)

    made = collected(run(model, clock=clock, budget=Budget(TOKENS, 2), prompt=tuple(range(2, 62))))
    assert (made.finish, made.tokens) == (Finish.TIME, [])
    assert looks < 10


def test_a_cancel_between_steps_ends_them(model: LanguageModel) -> None:
    cancel = CancelToken()
    steps = []
    for step in run(model, cancel):
        steps.append(step)
        if len(steps) == 3:
            cancel.cancel()
    assert [step.finish for step in steps] == [None, None, None, Finish.CANCELLED]
    assert steps[-1].token is None


def test_prompt_and_answer_share_the_context(model: LanguageModel) -> None:
    prompt = tuple(kit.PROMPTS[PROMPT])
    made = collected(run(model, context=len(prompt) + 5))
    assert (len(made.tokens), made.finish) == (5, Finish.LENGTH)
    with pytest.raises(InvalidInput, match=r"has 6 tokens; the model's context of 6 has room for 5"):
        next(run(model, context=len(prompt)))
    with pytest.raises(InvalidInput, match="prompt: is empty"):
        next(run(model, prompt=()))


def test_the_stage_continues_a_prompt(store: ModelStore) -> None:
    outputs = call(store, {"prompt": PROMPT}, raw=True, max_tokens=TOKENS)
    details = outputs["details"]
    assert (details["finish"], details["prompt_tokens"], details["tokens"]) == ("length", 6, TOKENS)
    assert details["first_token_seconds"] > 0
    assert details["tokens_per_second"] > 0
    assert details["mean_log_probability"] < 0
    assert json.dumps(details)


def test_the_stage_tells_its_times_to_the_trace(store: ModelStore) -> None:
    filled = {name: param.default for name, param in Generate.spec.params.items()}
    figures: dict[str, float] = {}
    params = filled | {"model": "tiny", "raw": True, "max_tokens": TOKENS}
    outputs = Generate().run(StageCall({"prompt": PROMPT}, params, kit.models(store), figure=figures.__setitem__))
    assert isinstance(outputs, dict)
    details = outputs["details"]
    assert figures == {
        "prompt_tokens": 6,
        "tokens": TOKENS,
        "first_token_seconds": details["first_token_seconds"],
        "token_seconds": 1 / details["tokens_per_second"],
    }


def test_the_stage_answers_messages_by_the_models_template(store: ModelStore, model: LanguageModel) -> None:
    chat = kit.EXPECTED["chat"]
    assert model.texts.template is not None
    assert model.texts.template.render(chat["messages"]) == chat["text"]
    expected = model.vocabulary.decode(chat["tokens"])
    whole = call(store, {"messages": chat["messages"]}, max_tokens=TOKENS)
    assert whole["text"] == expected
    split = call(store, {"prompt": chat["messages"][1]["content"]}, system="Be brief.", max_tokens=TOKENS)
    assert split["text"] == expected


def test_the_stage_tells_its_progress(store: ModelStore) -> None:
    seen: list[float] = []
    filled = {name: param.default for name, param in Generate.spec.params.items()}
    filled |= {"model": "tiny", "max_tokens": 4}
    Generate().run(StageCall({"prompt": "x"}, filled, kit.models(store), progress=seen.append))
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_a_cancelled_stage_raises(store: ModelStore) -> None:
    cancel = CancelToken()
    filled = {name: param.default for name, param in Generate.spec.params.items()} | {"model": "tiny"}
    stage = StageCall(
        {"prompt": "x"}, filled, kit.models(store, cancel), cancel=cancel, progress=lambda _: cancel.cancel()
    )
    with pytest.raises(Cancelled):
        Generate().run(stage)


def test_the_stage_refuses_parameters_with_all_their_problems(store: ModelStore) -> None:
    with pytest.raises(InvalidInput) as caught:
        call(
            store,
            {"prompt": "x"},
            max_tokens=0,
            seconds_max=-1,
            temperature=-0.5,
            top_p=0,
            seed=-1,
            stop=["", 5],
            date="May",
        )
    assert {problem.place for problem in caught.value.problems} == {
        *("max_tokens", "seconds_max", "temperature", "top_p", "seed", "stop[0]", "stop[1]", "date")
    }
    with pytest.raises(InvalidInput, match="17 stop strings are over LANGUAGE_STOPS_MAX"):
        call(store, {"prompt": "x"}, stop=["x"] * 17)


def test_the_stage_refuses_a_prompt_over_the_context(store: ModelStore) -> None:
    with pytest.raises(InvalidInput, match=r"prompt: has \d+ tokens; the model's context of 128 .*shorten it"):
        call(store, {"prompt": "constellation " * 100})


def test_the_stage_refuses_inputs_that_it_has_no_use_for(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="bind one of them"):
        call(store, {})
    with pytest.raises(InvalidInput, match=r"messages: cannot be used, because raw is set"):
        call(store, {"messages": kit.EXPECTED["chat"]["messages"]}, raw=True)
    with pytest.raises(InvalidInput, match=r"messages\[0\].role: is 'nobody'"):
        call(store, {"messages": [{"role": "nobody", "content": "x"}]})
    with pytest.raises(NotFound, match="'huge'"):
        call(store, {"prompt": "x"}, model="huge")
    folder = kit.copy(tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    plain = kit.stored(tmp_path / "store", folder)
    assert call(plain, {"prompt": "x"}, max_tokens=2)["details"]["tokens"] == 2
    with pytest.raises(InvalidInput, match="system: cannot be used, because the model has no chat template"):
        call(plain, {"prompt": "x"}, system="Be brief.")


def test_logits_of_another_tokenizer_are_found_in_the_first_run(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.vocabulary, "size", 299_000)
    with pytest.raises(InvalidInput, match=r"has 299000 tokens, but the decoder gives 300 logits"):
        next(run(model))


def test_nothing_is_done_before_the_first_step_is_asked_for(model: LanguageModel) -> None:
    assert isinstance(run(model, prompt=()), Iterator)
    assert engine.fitted(Request((1,), Budget(5, 1), context=3)).tokens == 2

"""Language: text from a model of one's own, or from an OpenAI-compatible endpoint."""

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from starloom.agents.language import budget, chat, endpoint, sampling
from starloom.agents.language.budget import Budget
from starloom.agents.language.engine import Generation, Request, Step, collected, generate
from starloom.agents.language.model import LanguageModel, load
from starloom.agents.language.sampling import Sampling
from starloom.agents.stage import Outputs, Stage, StageCall
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType

INPUTS: Final = {"prompt": Port(PortType.TEXT, optional=True), "messages": Port(PortType.JSON, optional=True)}
OUTPUTS: Final = {"text": Port(PortType.TEXT), "details": Port(PortType.JSON)}
_SYSTEM = Param(type="string", default="", about="a system message in front of all others")
_STOP = Param(type="array", default=[], about="texts that end the answer, and are no part of it")
_TOOLS = Param(type="array", default=[], about="tools, as OpenAI's interface describes them")


class Generate(Stage):
    """`prompt` or `messages` -> `text`, by a decoder of the model store.

    With a chat template, `prompt` is the last user's message, behind `messages`; without one, or with
    `raw`, it is continued as it stands. `details`: {finish: stop | length | time, prompt_tokens, tokens,
    first_token_seconds, tokens_per_second, mean_log_probability, seconds}; a rate that cannot be measured
    is null. The same seed gives the same text, unless `seconds_max` cuts it; the times differ.
    """

    spec = KindSpec(
        name="language.generate",
        about="Continues a text, or answers messages, with a language model of the model store.",
        inputs=dict(INPUTS),
        outputs=dict(OUTPUTS),
        params={
            "model": Param(type="string", required=True, about="a model's name in the store"),
            "file": Param(type="string", default="", about="its graph; the first of the usual names unless given"),
            "max_tokens": Param(type="integer", default=128, about="tokens of the answer, at most"),
            "temperature": Param(type="number", default=0.0, about="0 takes the likeliest token, 1 draws as trained"),
            "top_p": Param(type="number", default=1.0, about="draw from the likeliest tokens that make up this share"),
            "seed": Param(type="integer", default=0, about="of what is drawn, at least 0"),
            "stop": _STOP,
            "seconds_max": Param(type="number", default=60.0, about="the answer is cut off after so many seconds"),
            "system": _SYSTEM,
            "tools": _TOOLS,
            "raw": Param(type="boolean", default=False, about="continue the prompt without the chat template"),
            "date": Param(type="string", default="", about="YYYY-MM-DD, for a template that prints the date"),
        },
        tier=Tier.CLOUD,
        deterministic=False,
        cost=Cost(run_seconds=2.0, load_seconds=2.0, memory_bytes=1024 * 1024 * 1024),
    )

    def run(self, call: StageCall) -> Outputs:
        params = call.params
        asked = Budget(params["max_tokens"], params["seconds_max"])
        chosen = Sampling(params["temperature"], params["top_p"], params["seed"])
        if problems := budget.check(asked, params["stop"]) + sampling.check(chosen) + _date_problems(params["date"]):
            raise InvalidInput(problems, "the parameters of language.generate are out of range")
        model = load(call.models, params["model"], params["file"])
        request = Request(
            prompt=tuple(prompt_tokens(model, call.inputs, params)),
            budget=asked,
            sampling=chosen,
            ends=model.texts.ends,
            stops=tuple(params["stop"]),
            context=model.texts.config.context,
        )
        steps = generate(model.decoder, model.vocabulary, request, call.cancel)
        made = collected(steps, Progress(call, asked.tokens))
        call.cancel.raise_if_cancelled()
        account = details(made, len(request.prompt))
        tell(call, account)
        return {"text": made.text, "details": account}


class Progress:
    """Tells a call's progress as the share of the tokens that it may use."""

    def __init__(self, call: StageCall, tokens: int) -> None:
        self._call = call
        self._tokens = tokens
        self._seen = 0

    def __call__(self, _: Step | str) -> None:
        self._seen += 1
        self._call.progress(min(1.0, self._seen / self._tokens))


def prompt_tokens(model: LanguageModel, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> list[int]:
    """What the model reads. Raises InvalidInput for messages that it has no template for."""
    template = model.texts.template
    if template is not None and not params["raw"]:
        day = date.fromisoformat(params["date"]) if params["date"] else None
        messages = chat.conversation(inputs, params["system"])
        # The template sets the marks of a text itself.
        return model.vocabulary.encode(template.render(messages, tools=params["tools"], day=day), marked=False)
    unusable = [name for name in ("messages", "system", "tools") if inputs.get(name) or params.get(name)]
    if unusable or "prompt" not in inputs:
        why = "raw is set" if params["raw"] else "the model has no chat template"
        what = f"cannot be used, because {why}; bind prompt, and only that"
        raise InvalidInput([Problem(name, what) for name in unusable or ["prompt"]], "there is nothing to continue")
    return model.vocabulary.encode(inputs["prompt"], marked=True)


def details(made: Generation, prompt: int) -> dict[str, Any]:
    """What a generation's output `details` says of it."""
    return {
        "finish": str(made.finish),
        "prompt_tokens": prompt,
        "tokens": len(made.tokens),
        "first_token_seconds": made.first_token_seconds,
        "tokens_per_second": made.tokens_per_second,
        "mean_log_probability": made.mean_log_probability,
        "seconds": made.seconds,
    }


def tell(call: StageCall, account: Mapping[str, Any]) -> None:
    """Puts what `details` counted and timed into the attempt's report, as far as it could be measured."""
    rate = account["tokens_per_second"]
    measured = {name: account[name] for name in ("prompt_tokens", "tokens", "first_token_seconds")}
    for name, value in (measured | {"token_seconds": 1 / rate if rate else None}).items():
        if value is not None:
            call.figure(name, value)


def _date_problems(day: str) -> list[Problem]:
    try:
        date.fromisoformat(day or "2000-01-01")
        return []
    except ValueError:
        return [Problem("date", f"{day!r} is no date such as 2026-01-31")]


class Endpoint(Stage):
    """`prompt` or `messages` -> `text`, from an OpenAI-compatible endpoint's `/chat/completions`.

    `details`: {finish, tool_calls, model, prompt_tokens, tokens, first_token_seconds, tokens_per_second,
    seconds, requests}: `finish` and `tool_calls` are the endpoint's own, but for `time` where
    `seconds_max` cut off an answer that had begun; what the endpoint does not count is null.
    """

    spec = KindSpec(
        name="language.endpoint",
        about="Answers messages through an OpenAI-compatible endpoint.",
        inputs=dict(INPUTS),
        outputs=dict(OUTPUTS),
        params={
            "url": Param(type="string", required=True, about="of the interface, such as https://example.org/v1"),
            "model": Param(type="string", required=True, about="the endpoint's name for its model"),
            "api_key_env": Param(
                type="string", default="", about="the node's variable that holds the key; it ends in _API_KEY"
            ),
            "max_tokens": Param(type="integer", default=512, about="tokens of the answer, at most"),
            "temperature": Param(type="number", about="0 to 100; the endpoint's default unless given"),
            "top_p": Param(type="number", about="above 0, at most 1; the endpoint's default unless given"),
            "seed": Param(type="integer", about="at least 0; none unless given"),
            "stop": _STOP,
            "system": _SYSTEM,
            "tools": _TOOLS,
            "extra": Param(type="object", default={}, about="further fields of the request; null leaves one out"),
            "stream": Param(type="boolean", default=True, about="take the answer as it comes"),
            "connect_seconds": Param(type="number", default=limits.ENDPOINT_CONNECT_SECONDS),
            "first_seconds": Param(
                type="number", default=limits.ENDPOINT_FIRST_SECONDS, about="until the answer begins"
            ),
            "gap_seconds": Param(type="number", default=limits.ENDPOINT_GAP_SECONDS, about="between its pieces"),
            "seconds_max": Param(type="number", default=limits.ENDPOINT_TOTAL_SECONDS, about="for all, with retries"),
            "retries": Param(type="integer", default=limits.ENDPOINT_RETRIES, about="before the answer has begun"),
        },
        tier=Tier.CLOUD,
        deterministic=False,
        effects=True,
        cost=Cost(run_seconds=2.0, memory_bytes=8 * 1024 * 1024),
    )

    def run(self, call: StageCall) -> Outputs:
        params = call.params
        endpoint.check(params)
        address = endpoint.address(params["url"], params["api_key_env"])
        body = endpoint.body(params, chat.conversation(call.inputs, params["system"]))
        patience = endpoint.Patience(
            params["connect_seconds"], params["first_seconds"], params["gap_seconds"], params["seconds_max"]
        )
        client = endpoint.Client(address, patience, params["retries"], call.cancel, call.key)
        reply = client.complete(body, Progress(call, params["max_tokens"]))
        account = reply.details()
        tell(call, account)
        return {"text": reply.text, "details": account}

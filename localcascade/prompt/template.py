"""A model's own Jinja chat template: a conversation in, the prompt's segments out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, NoReturn

import jinja2

from localcascade.errors import TemplateError
from localcascade.prompt.events import ChatRequest, Message
from localcascade.prompt.fence import Fence
from localcascade.prompt.marks import Marks, Segment
from localcascade.prompt.meter import Exhausted, Meter, budget_for
from localcascade.prompt.sandbox import BoundedEnvironment, Refusal

__all__ = ["Segment", "Template", "prepare_message"]

MAX_SOURCE_CHARS = 1 << 18
_HINT = "The template is part of the model file: try another file of this model, or its publisher."


class Template:
    """A compiled chat template.

    Rendered as transformers renders it, but with every operation on a list and metered, so that a
    hostile template ends in an error, and with the special tokens that the template writes told
    apart from those that a user typed.

    Args:
        source: Jinja source, from the model file.
        special_texts: Texts of the model's special tokens.
        now: The clock behind the template's strftime_now.

    Raises:
        TemplateError: It is not Jinja, uses what chat templates must not use, runs away even on an
            empty conversation, or builds special tokens out of pieces.
    """

    def __init__(
        self,
        source: str,
        special_texts: Iterable[str],
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"chat template: {len(source)} characters long", _HINT)
        self._source = source
        self._special_texts = tuple(special_texts)
        self._now = now
        self._lock = threading.Lock()
        self._program = self._compile(avoid="")
        self._check_pieces()

    def render(self, request: ChatRequest, bos: str = "", eos: str = "") -> list[Segment]:
        """Write the prompt of a request, ready for generation.

        Args:
            request: The conversation; its special-looking text stays plain text.
            bos: Text of the model's first token, for templates that write it themselves.
            eos: Text of the model's last token.

        Returns:
            Segments, in order; each is tokenized on its own.

        Raises:
            TemplateError: The template fails, refuses the conversation, or works too long.
        """
        try:
            variables = _collect_variables(request)
        except RecursionError as exc:
            raise TemplateError("the conversation is nested too deeply for a template") from exc
        program = self._program
        if any(map(program.marks.occur_in, _walk_strings(variables))):
            program = self._compile(avoid="".join(_walk_strings(variables)))
        variables["bos_token"] = program.marks.tag(bos)
        variables["eos_token"] = program.marks.tag(eos)
        with self._lock:
            return program.run(variables)

    def _compile(self, avoid: str) -> _Program:
        marks = Marks(self._special_texts, avoid + self._source)
        environment = BoundedEnvironment(marks, self._now)
        environment.meter = Meter(budget_for(self._source))
        try:
            tree = Fence(marks).visit(environment.parse(self._source))
            tree.set_lineno(0).set_environment(environment)
            code = environment.compile(tree)
            compiled = jinja2.Template.from_code(environment, code, environment.globals, None)
        except Exception as exc:
            _fail(exc, marks)
        return _Program(marks, environment, compiled)

    def _check_pieces(self) -> None:
        """Refuse a template whose special tokens could not be told from a user's text."""
        probe = ChatRequest(({"role": "user", "content": ""},))
        try:
            segments = self.render(probe)
        except TemplateError as exc:
            if isinstance(exc.__cause__, Exhausted):
                raise
            return  # it wants more of a conversation than the probe has
        for left, right in pairwise(segments):
            if not (left.special or right.special):
                raise TemplateError(
                    f"chat template: it builds special tokens out of pieces, near "
                    f"{left.text[-20:] + right.text[:20]!r}",
                    "They could not be told from a user's text; use a template that writes them "
                    "whole.",
                )


@dataclass(frozen=True)
class _Program:
    """A template compiled for one pair of marks."""

    marks: Marks
    environment: BoundedEnvironment
    compiled: jinja2.Template

    def run(self, variables: Mapping[str, Any]) -> list[Segment]:
        self.environment.meter = Meter(budget_for(variables))
        try:
            return self.marks.split(self.compiled.render(variables))
        except Exception as exc:
            _fail(exc, self.marks)


def prepare_message(message: Message) -> dict[str, Any]:
    """Bring a message into the form that templates are written for.

    Raw thinking that a client kept in an assistant's `content` moves to `reasoning_content`, and
    the arguments of tool calls, a JSON text in the OpenAI form, become an object: only so can a
    template write their structure, since `</think>` inside a text is just text.

    Args:
        message: OpenAI form.

    Returns:
        A copy in plain dictionaries and lists.

    Raises:
        TemplateError: It holds something that is not JSON.
    """
    plain = _copy_plain(message)
    if not isinstance(plain, dict):
        raise TemplateError(f"a message is a {type(message).__name__}, not an object")
    content = plain.get("content")
    if plain.get("role") == "assistant" and isinstance(content, str):
        thinking, tag, answer = content.partition("</think>")
        if tag:
            plain["content"] = answer.lstrip("\n")
            thinking = thinking.strip("\n").removeprefix("<think>").strip("\n")
            plain.setdefault("reasoning_content", thinking)
    calls = plain.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        _parse_arguments(call)
    return plain


def _parse_arguments(call: Any) -> None:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return  # the template decides what to do with a text
    if isinstance(arguments, dict):
        function["arguments"] = arguments


def _collect_variables(request: ChatRequest) -> dict[str, Any]:
    return {
        "messages": [prepare_message(message) for message in request.messages],
        "tools": [_copy_plain(tool) for tool in request.tools] or None,
        "documents": None,
        "add_generation_prompt": True,
        "enable_thinking": request.thinking,
    }


def _copy_plain(value: object) -> Any:
    """Copy into exact JSON types, so that a template meets no other object's methods."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_copy_plain(key): _copy_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy_plain(item) for item in value]
    raise TemplateError(f"a message holds a {type(value).__name__}, which is not JSON")


def _walk_strings(value: object) -> Iterator[str]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack += [*item, *item.values()]
        elif isinstance(item, list):
            stack += item


def _fail(exc: Exception, marks: Marks) -> NoReturn:
    """Raise what a template raised as a TemplateError with its line."""
    problem = marks.untag(str(exc))[:500] or type(exc).__name__
    if isinstance(exc, Refusal):
        raise TemplateError(
            f"the model's chat template refuses this conversation: {problem}",
            "Change the messages or the tools as it says.",
        ) from exc
    line = exc.lineno if isinstance(exc, jinja2.TemplateSyntaxError) else _find_line(exc)
    where = f"chat template, line {line}" if line else "chat template"
    raise TemplateError(f"{where}: {problem}", _HINT) from exc


def _find_line(exc: Exception) -> int:
    """The template's line in a traceback that Jinja has rewritten; 0 if there is none."""
    line, trace = 0, exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line

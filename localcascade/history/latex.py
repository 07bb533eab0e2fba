"""A session as LaTeX that compiles: all text escaped, formulas as formulas, code as it is. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from localcascade.history.formulas import DEFINITIONS, prepare_formula
from localcascade.history.markdown import ROLE_NAMES, describe_session, describe_state
from localcascade.history.records import Message, Transcript
from localcascade.history.signs import declare_signs


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of Markdown: a formula that LaTeX can set, or anything else."""

    source: str
    latex: str = ""
    """The formula without its delimiters; empty if there is none."""
    display: bool = False

    def write(self) -> str:
        """The formula with its delimiters."""
        return f"\\[ {self.latex} \\]" if self.display else f"\\( {self.latex} \\)"


FindFormulas = Callable[[str], Sequence[Piece]]
"""Cuts Markdown text into pieces, whose sources together are the text."""

_HEAD = r"""% Compiles with pdflatex, xelatex and lualatex. For scripts beyond Latin and Greek take
% xelatex and \setmainfont{a font that has them}; pdflatex prints numbers for such characters.
\documentclass[11pt]{article}
\usepackage{iftex}
\ifPDFTeX
  \usepackage[T1]{fontenc}
  \usepackage[utf8]{inputenc}
  \usepackage{textcomp}
\else
  \usepackage{fontspec}
\fi
\usepackage{amsmath,amssymb}
\setlength{\parindent}{0pt}
\setlength{\parskip}{0.6em}
\setlength{\emergencystretch}{3em}
\newenvironment{thinking}{\begin{quote}\small\itshape}{\end{quote}}
"""
_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "-": "{-}", "`": r"\textasciigrave{}", "'": "{'}", "?": "{?}", "!": "{!}", ",": "{,}",
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
"""Signs with a meaning, and those that make ligatures or arguments beside others."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff\ud800-\udfff]")
_HOLE = re.compile("\x00(\\d+)\x00")
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t#]*$")
_ITEM = re.compile(r"^([ \t]*)([-*+]|\d{1,9}[.)])[ \t]+(.*)$")
_INLINE = re.compile(r"(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*")


def write_latex(transcript: Transcript, find_formulas: FindFormulas) -> str:
    """Write the path of a session that is on the screen.

    Args:
        transcript: The session.
        find_formulas: Which parts of a text are formulas that LaTeX can set.

    Returns:
        A whole document.
    """
    writer = _Writer(find_formulas)
    session = transcript.session
    title = " ".join(_clean(session.title).split()) or f"Session {session.id}"
    parts = [rf"\section*{{{escape(title)}}}", escape(_clean(describe_session(session)))]
    for message in transcript.path:
        parts += writer.write_message(message)
    body = "\n\n".join(part for part in parts if part)
    signs = declare_signs(body)
    return f"{_HEAD}{DEFINITIONS}{signs}\\begin{{document}}\n\n{body}\n\n\\end{{document}}\n"


def escape(text: str) -> str:
    """Make text mean itself."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def _clean(text: str) -> str:
    return _CONTROLS.sub("\ufffd", unicodedata.normalize("NFC", text)).expandtabs(4)


class _Writer:
    """Turns the Markdown of messages into LaTeX, line by line."""

    def __init__(self, find_formulas: FindFormulas) -> None:
        self._find_formulas = find_formulas
        self._formulas: list[Piece] = []

    def write_message(self, message: Message) -> Iterator[str]:
        yield rf"\subsection*{{{ROLE_NAMES[message.role]}}}"
        if message.thinking.strip():
            yield f"\\begin{{thinking}}\n{self._write_text(message.thinking)}\n\\end{{thinking}}"
        yield self._write_text(message.text)
        for call in message.tool_calls:
            yield _write_verbatim(_clean(str(call.get("function", call))).splitlines())
        if state := describe_state(message):
            yield rf"\emph{{({escape(_clean(state))})}}"

    def _write_text(self, text: str) -> str:
        """Formulas become holes first, so that no line of Markdown can cut one."""
        self._formulas = []
        holed = "".join(self._dig(piece) for piece in self._find_formulas(_clean(text)))
        return "\n\n".join(self._write_blocks(holed.split("\n")))

    def _dig(self, piece: Piece) -> str:
        latex = prepare_formula(piece.latex) if piece.latex else ""
        if not latex:
            return piece.source
        self._formulas.append(replace(piece, latex=latex))
        return f"\x00{len(self._formulas) - 1}\x00"

    def _write_blocks(self, lines: Sequence[str]) -> Iterator[str]:
        paragraph: list[str] = []
        at = 0
        while at < len(lines):
            stop = _find_block_end(lines, at)
            if stop > at or not lines[at].strip() or _is_alone(lines[at]):
                if paragraph:
                    yield self._write_prose("\n".join(paragraph))
                paragraph = []
            if stop > at:
                yield _write_verbatim([self._fill_plainly(line) for line in lines[at:stop]])
            elif _is_alone(lines[at]):
                yield self._write_line(lines[at])
            elif lines[at].strip():
                paragraph.append(lines[at].strip())
            at = max(stop, at + 1)
        if paragraph:
            yield self._write_prose("\n".join(paragraph))

    def _write_line(self, line: str) -> str:
        if heading := _HEADING.match(line):
            return rf"\textbf{{{self._write_prose(heading[1])}}}"
        item = _ITEM.match(line)
        assert item is not None
        depth = 1 + len(item[1]) // 2
        mark = r"\textbullet" if item[2] in "-*+" else escape(item[2])
        return rf"\hspace*{{{min(depth, 6)}em}}{mark}\ {self._write_prose(item[3])}"

    def _write_prose(self, text: str) -> str:
        parts, at = [], 0
        for match in _INLINE.finditer(text):
            parts.append(self._fill(text[at : match.start()]))
            if match[1]:
                parts.append(rf"\texttt{{{escape(self._fill_plainly(match[2]))}}}")
            else:
                parts.append(rf"\textbf{{{self._fill(match[3])}}}")
            at = match.end()
        return "".join([*parts, self._fill(text[at:])])

    def _fill(self, text: str) -> str:
        """Escape all but the formulas, which come back."""
        parts = _HOLE.split(text)
        return "".join(
            self._formulas[int(part)].write() if i % 2 else escape(part)
            for i, part in enumerate(parts)
        )

    def _fill_plainly(self, text: str) -> str:
        return _HOLE.sub(lambda match: self._formulas[int(match[1])].source, text)


def _is_alone(line: str) -> bool:
    return bool(_HEADING.match(line) or _ITEM.match(line))


def _find_block_end(lines: Sequence[str], start: int) -> int:
    """Where the code or table that begins at a line ends; `start` itself where none does."""
    fence = _FENCE.match(lines[start])
    at = start + 1
    if fence:
        while at < len(lines):
            at += 1
            close = _FENCE.match(lines[at - 1])
            if (
                close
                and close[1].startswith(fence[1])
                and close.end() == len(lines[at - 1].rstrip())
            ):
                break
        return at
    if not lines[start].lstrip().startswith("|"):
        return start
    while at < len(lines) and lines[at].lstrip().startswith("|"):
        at += 1
    return at


def _write_verbatim(lines: Sequence[str]) -> str:
    """Lines as they are; one that would end the environment is escaped instead."""
    lines = [line for i, line in enumerate("\n".join(lines).split("\n")) if not _is_edge(lines, i)]
    parts: list[str] = []
    kept: list[str] = []
    for line in [*lines, r"\end{verbatim}"]:
        if r"\end{verbatim}" not in line:
            kept.append(line)
            continue
        if any(each.strip() for each in kept):
            parts.append("\\begin{verbatim}\n" + "\n".join(kept) + "\n\\end{verbatim}")
        parts.append(rf"\texttt{{{escape(line)}}}")
        kept = []
    return "\n\n".join(parts[:-1])


def _is_edge(lines: Sequence[str], i: int) -> bool:
    return i in (0, len(lines) - 1) and bool(_FENCE.match(lines[i]))

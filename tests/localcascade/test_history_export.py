"""Sessions as Markdown and LaTeX: what is code, text and formula, and that LaTeX takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from localcascade.cli.session import find_formulas
from localcascade.history import Message, ModelIdentity, Role, Session, Transcript
from localcascade.history.formulas import prepare_formula
from localcascade.history.latex import write_latex
from localcascade.history.markdown import write_markdown

HARD = r"""# He_ad $x^2$
Costs $5 and $6, `code_{x}` and `\end{verbatim}`, **bold $\frac12$ x** 100% #1 & ~ ^ \foo
- item [x] *a* _b_
- $\input{/etc/passwd}$ and $\undefinedcommand$ and $x^a^b$
  1. below

\[ \begin{align} a &= b \tag{1}\\ c&=d \label{x} \end{align} \]

$$x^2 # % \text{50% é α_b & c}

$$

\begin{equation}a\end{equation} and \(\begin{cases} a & b \\ c & d \end{cases}\)

| a | $b$ |
|---|---|
| 1 | 2 |

```python
def f(x): return "\end{verbatim}" # é ∑ 数 😀
\end{verbatim} \input{x}
```
α ∑ ≤ x² 𝑥 ℝ 数学 😀 é ß “q” — ½ € † a‖b ŋ ő ǎ ё العربية ?` !` << >> -- --- ,, ''
\write18{ls} ^^5c {\bf } } { \begin{document} \end{document} %

[opt]
\\
[2pt]
*
"""
THINKING = "so $a_1$\n\n```\ncode\n```\n\n## H\n</details>\n$$ and \x1b[2J \x00 \x000\x00"


def make_transcript(text: str, thinking: str = "", title: str = "A title") -> Transcript:
    session = Session("ab" * 8, title, ModelIdentity("m_o#del"), None, 0.0, 0.0)
    roles: tuple[Role, ...] = ("system", "user", "assistant", "tool")
    messages = [
        Message(
            str(i), session.id, str(i - 1) if i else None, role, text, thinking, "stopped", "a_b",
            ({"id": "1", "function": {"name": "f_1", "arguments": {"a": "```\\end{verbatim}"}}},),
        )
        for i, role in enumerate(roles)
    ]  # fmt: skip
    return Transcript(session, tuple(messages))


def run_latex(folder: Path, document: str, engine: str) -> str:
    """What LaTeX complains of; empty if it made a document."""
    if not shutil.which(engine):
        pytest.skip(f"no {engine}")
    (folder / "a.tex").write_text(document, "utf-8")
    command = [engine, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode or (folder / "a.pdf").read_bytes().startswith(b"%PDF")
    return "\n".join(re.findall(r"^(?:!|l\.\d+).*", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("engine", ["pdflatex", "xelatex"])
def test_latex_takes_what_models_write(tmp_path: Path, engine: str) -> None:
    transcript = make_transcript(HARD, THINKING, title=r"T_i%t#le $x$ \foo ~^ é 数")
    assert run_latex(tmp_path, write_latex(transcript, find_formulas), engine) == ""


FORMULAS = (
    r"\frac{a}{b} \sqrt[3]{x} \sum_{i=1}^n i \int\limits_0^1 \binom{n}{k} \boxed{42}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix} \left\{\begin{array}{l|r} a & b \\ \hline c & d"
    r"\end{array}\right.",
    r"\Tr A \operatorname{sgn}x \argmin_x f \norm{x} \abs{y} \bm{v} \mathscr{L} \mathbb{R}",
    r"\overbrace{a+b}^{n} \underset{x}{\max} \xRightarrow{f} \textcolor{red}{x} \degree",
    r"\begin{rcases} a & b & c \end{rcases} \text{a_b}",
)


@pytest.mark.parametrize("latex", FORMULAS)
def test_formulas_go_through_as_formulas(tmp_path: Path, latex: str) -> None:
    transcript = make_transcript(f"It is \\[{latex}\\] and \\({latex}\\).")
    document = write_latex(transcript, find_formulas)
    prepared = prepare_formula(latex)
    assert f"\\[ {prepared} \\]" in document
    assert f"\\( {prepared} \\)" in document
    assert run_latex(tmp_path, document, "pdflatex") == ""


@pytest.mark.parametrize(
    ("latex", "prepared"),
    [
        (r"\begin{align*} a &= b \nonumber \end{align*}", r"\begin{aligned} a &= b  \end{aligned}"),
        (r"\begin{alignat}{2} a & b \end{alignat}", r"\begin{aligned} a & b \end{aligned}"),
        (r"x \tag{1} \label{eq}", r"x \qquad\text{(1)}"),
        ("100% \\% # \\\\%", "100\\% \\% \\# \\\\\\%"),
        ("a\n\n\nb", "a\nb"),
        (r"\text{my_var^2} x_1", r"\text{my\_var\textasciicircum{}2} x_1"),
        (r"\begin{dcases} a \end{dcases}", r"\begin{cases} a \end{cases}"),
        (r"a \\[1,2] b \\[2pt] c", r"a \\{}[1,2] b \\[2pt] c"),
        (r"a & b \\ c & d", r"\begin{aligned}a & b \\ c & d\end{aligned}"),
        (r"x $y$", ""),
        (r"\$ \text{if $y_1$}", r"\$ \text{if $y_1$}"),
        (r"\big x", ""),
        (r"\left\P x\right)", ""),
        (r"\bigl( x \bigr)", r"\bigl( x \bigr)"),
        (r"\hspace{x}", ""),
        (r"\hspace{1em} a", r"\hspace{1em} a"),
        (r"x\limits_a", ""),
        (r"x'^2", ""),
        (r"\begin{array}{c} a & b \end{array}", ""),
        (r"\begin{array}{p} a \end{array}", ""),
        (r"\hline", ""),
    ],
)
def test_formulas_are_made_ready_or_refused(latex: str, prepared: str) -> None:
    assert prepare_formula(latex) == prepared


@pytest.mark.parametrize("command", [r"\input{/etc/passwd}", r"\write18{ls}", r"\def\a{b}", "^^5c"])
def test_no_command_of_the_model_reaches_latex(command: str) -> None:
    inside = f"\\text{{{command}}}"
    text = f"a {command} ${command}$ **{command}** `{command}` {inside} ${inside}$ \\({inside}\\)"
    body = write_latex(make_transcript(text), find_formulas).split(r"\begin{document}")[1]
    assert command not in re.sub(r"\\begin\{verbatim\}.*?\\end\{verbatim\}", "", body, flags=re.S)


def test_code_is_verbatim() -> None:
    text = "```c\nint x = {_};  % $a$\n\n# \\y\n```"
    document = write_latex(make_transcript(text), find_formulas)
    assert "\\begin{verbatim}\nint x = {_};  % $a$\n\n# \\y\n\\end{verbatim}" in document


def test_markdown_holds_each_turn_under_its_own_heading() -> None:
    """Read by markdown-it: an open fence or a tag in one turn swallows none of the next."""
    open_ended = "text\n\n````python\ncode ``` and\n```\n"
    text = write_markdown(make_transcript(open_ended, THINKING, "Ti\ntle"))
    tokens = MarkdownIt().parse(text)
    headings = [
        tokens[i + 1].content
        for i, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0
    ]
    assert headings == ["Ti tle", "System", "You", "Answer", "Tool result"]
    assert text.count("<details>") == text.count("</details>") == 4
    fences = [token.content for token in tokens if token.type == "fence" and token.level == 0]
    assert fences[0] == "code ``` and\n```\n"
    assert "'arguments': {'a': '```" in fences[1]

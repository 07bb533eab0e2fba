"""Formulas as models write them, made such that LaTeX sets them. Pure; no I/O.

Models write what their renderers forgive: whole environments inside a formula, numbers of
equations, bare signs of TeX. Measured with pdflatex on every command that localcascade.maths lays
out.
"""

from __future__ import annotations

import re

_OPERATORS = (
    "Tr tr arccot arccsc arcosh arcsec arctg arsinh artanh ch cosec cotg csch ctg diag rank sech"
    " sgn sh tg lcm"
)
_COMMANDS = r"""
\providecommand{\argmax}{\operatorname*{arg\,max}}
\providecommand{\argmin}{\operatorname*{arg\,min}}
\providecommand{\esssup}{\operatorname*{ess\,sup}}
\providecommand{\abs}[1]{\left|#1\right|}
\providecommand{\norm}[1]{\left\|#1\right\|}
\providecommand{\ceil}[1]{\left\lceil#1\right\rceil}
\providecommand{\floor}[1]{\left\lfloor#1\right\rfloor}
\providecommand{\bra}[1]{\langle#1|}
\providecommand{\ket}[1]{|#1\rangle}
\providecommand{\braket}[1]{\langle#1\rangle}
\providecommand{\bm}[1]{\boldsymbol{#1}}
\providecommand{\symbf}[1]{\mathbf{#1}}
\providecommand{\mathbbm}[1]{\mathbb{#1}}
\providecommand{\mathds}[1]{\mathbb{#1}}
\providecommand{\mathscr}[1]{\mathcal{#1}}
\providecommand{\mathup}[1]{\mathrm{#1}}
\providecommand{\mathclap}[1]{#1}
\providecommand{\color}[1]{}
\providecommand{\textcolor}[2]{#2}
\providecommand{\nicefrac}[2]{{#1}/{#2}}
\providecommand{\sfrac}[2]{{#1}/{#2}}
\providecommand{\wideparen}[1]{\widehat{#1}}
\providecommand{\degree}{{}^\circ}
\providecommand{\coloneq}{\mathrel{:=}}
\providecommand{\coloneqq}{\mathrel{:=}}
\providecommand{\eqqcolon}{\mathrel{=:}}
\providecommand{\vcentcolon}{:}
\providecommand{\divides}{\mid}
\providecommand{\gt}{>}
\providecommand{\lt}{<}
\providecommand{\omicron}{o}
\providecommand{\qed}{\square}
\providecommand{\QED}{\blacksquare}
\providecommand{\xRightarrow}[1]{\overset{#1}{\Longrightarrow}}
\providecommand{\xLeftarrow}[1]{\overset{#1}{\Longleftarrow}}
\providecommand{\xLeftrightarrow}[1]{\overset{#1}{\Longleftrightarrow}}
\providecommand{\xleftrightarrow}[1]{\overset{#1}{\longleftrightarrow}}
\renewenvironment{cases}{\left\{\begin{array}{@{}*{8}{l@{\quad}}}}{\end{array}\right.}
\newenvironment{rcases}{\left.\begin{array}{@{}*{8}{l@{\quad}}}}{\end{array}\right\}}
\setcounter{MaxMatrixCols}{64}
"""
DEFINITIONS = _COMMANDS.lstrip() + "".join(
    f"\\providecommand{{\\{name}}}{{\\operatorname{{{name}}}}}\n" for name in _OPERATORS.split()
)
"""For the preamble: what models use and LaTeX with amsmath lacks."""

_ALONE = (
    "equation displaymath math align aligned alignat alignedat flalign eqnarray split gather"
    " gathered multline"
)
_INNER = dict.fromkeys(_ALONE.split(), "aligned") | {"dcases": "cases"}
"""Environments that stand on their own, and what they are inside a formula."""
_CHANGES = (
    (r"\\label\s*\{[^{}]*\}|\\(?:notag|nonumber)(?![A-Za-z])|\\vspace\*?\s*\{[^{}]*\}", ""),
    (r"\\tag\*?\s*\{([^{}]*)\}", r"\\qquad\\text{(\1)}"),
    (r"(?<!\\)((?:\\\\)*)([#%])", r"\1\\\2"),
    (r"\n\s*\n", "\n"),  # a blank line would end the formula
    (r"\\\\(\s*)\[(?!\s*-?[\d.]+\s*(?:pt|em|ex|cm|mm|in)\s*\])", r"\\\\\1{}["),
    (r"(\\begin\s?\{(?:alignat\*?|alignedat)\})\s*\{\d*\}", r"\1"),
)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s?\{([A-Za-z]+)\*?\}")
_TEXT = re.compile(r"\\(?:text[a-z]*|mbox)\s*\{[^{}$]*\}")
_TEXT_WITH_MATHS = re.compile(r"\\(?:text[a-z]*|mbox)\s*\{[^{}]*\}")
_DELIMITER = (
    r"[()\[\]|/.<>]|\\[{}|]|\\(?:[lr]?(?:vert|Vert)|[lr](?:angle|floor|ceil|brace|brack|group)"
    r"|[uU]parrow|[dD]ownarrow|[uU]pdownarrow|backslash)(?![A-Za-z])"
)
_BIG_OPERATOR = r"\\(?:sum|prod|coprod|i*nt|oint|lim|limsup|liminf|sup|inf|max|min|big[a-z]+)\s*"
_REFUSED = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])(?!\s*(?:" + _DELIMITER + "))"
    r"|\\(?:tag|label|vspace|hskip|hbox|cr|span|displaylimits|intertext|frak|b?cancel|xcancel|sout"
    r"|iddots|oiint|oiiint|[lr]{2}bracket|cent|euro|f?colorbox)(?![A-Za-z])"
    r"|\\hspace(?!\*?\{-?[\d.]+\s*(?:em|ex|cm|mm|pt|in)\})"
    r"|\\mspace(?!\{-?[\d.]+\s*mu\})"
    r"|\\begin\{subarray\}"
    r"|\\begin\{array\}(?!(?:\[[tbc]\])?\{[lcr| ]+\})"
    r"|'\s*\^|\^(?:\{[^{}]*\}|[^\s\\{}])\s*'"  # two superscripts
)
_LIMITS = re.compile(r"\\(?:no)?limits(?![A-Za-z])")
_GOOD_LIMITS = re.compile(_BIG_OPERATOR + r"\\(?:no)?limits(?![A-Za-z])")
_ARRAY = re.compile(r"\\begin\{array\}(?:\[[tbc]\])?\{([lcr| ]+)\}(.*?)\\end\{array\}", re.DOTALL)


def prepare_formula(latex: str) -> str:
    """Make a formula ready for \\[ and \\].

    Args:
        latex: Without delimiters, but perhaps with an environment of its own; brackets,
            environments and commands have been found sound by whoever laid it out.

    Returns:
        What LaTeX sets; empty if it would not.
    """
    for pattern, replacement in _CHANGES:
        latex = re.sub(pattern, replacement, latex)
    latex = _ENVIRONMENT.sub(_use_inner, latex)
    if re.search(r"(?<!\\)&", latex) and "\\begin" not in latex:
        latex = f"\\begin{{aligned}}{latex}\\end{{aligned}}"
    if re.search(r"(?<!\\)\$", _TEXT_WITH_MATHS.sub("", latex)):
        return ""
    latex = _TEXT.sub(lambda text: re.sub(r"(?<!\\)[_&^]", _escape_sign, text[0]), latex)
    n_limits, n_good = len(_LIMITS.findall(latex)), len(_GOOD_LIMITS.findall(latex))
    refused = _REFUSED.search(latex) or n_limits > n_good or not _fits_arrays(latex)
    return "" if refused else latex.strip()


def _use_inner(match: re.Match[str]) -> str:
    inner = _INNER.get(match[2])
    return f"\\{match[1]}{{{inner}}}" if inner else match[0].replace(" ", "")


def _escape_sign(match: re.Match[str]) -> str:
    return r"\textasciicircum{}" if match[0] == "^" else "\\" + match[0]


def _fits_arrays(latex: str) -> bool:
    """Whether no row has more cells than its array has columns, and rules are in arrays only."""
    for spec, body in _ARRAY.findall(latex):
        n_columns = sum(letter in "lcr" for letter in spec)
        if max(row.count("&") for row in body.split(r"\\")) >= n_columns:
            return False
    return "\\hline" not in _ARRAY.sub("", latex)

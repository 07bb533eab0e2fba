"""Characters that LaTeX does not know by itself, and what to write for them. Pure; no I/O."""

from __future__ import annotations

import unicodedata

_GREEK = (
    "α alpha β beta γ gamma δ delta ε varepsilon ϵ epsilon ζ zeta η eta θ theta ϑ vartheta"
    " ι iota κ kappa λ lambda μ mu ν nu ξ xi π pi ϖ varpi ρ rho ϱ varrho σ sigma ς varsigma"
    " τ tau υ upsilon φ varphi ϕ phi χ chi ψ psi ω omega Γ Gamma Δ Delta Θ Theta Λ Lambda"
    " Ξ Xi Π Pi Σ Sigma Υ Upsilon Φ Phi Ψ Psi Ω Omega"
)
_OPERATORS = (
    "× times ÷ div ± pm ∓ mp · cdot ⋅ cdot ∗ ast ∘ circ • bullet √ surd ∑ sum ∏ prod ∐ coprod"
    " ∫ int ∬ iint ∭ iiint ∮ oint ∂ partial ∇ nabla ∞ infty ∝ propto ∠ angle ¬ neg ∧ wedge"
    " ∨ vee ∩ cap ∪ cup ⊕ oplus ⊗ otimes ⊖ ominus ⊙ odot ⋆ star ∎ blacksquare □ square"
    " ■ blacksquare △ triangle ◇ diamond ℓ ell ℏ hbar ℜ Re ℑ Im ℵ aleph ∅ emptyset"
    " ⟂ perp ⊥ perp ∥ parallel ∣ mid ⌊ lfloor ⌋ rfloor ⌈ lceil ⌉ rceil ⟨ langle ⟩ rangle"
    " … ldots ⋯ cdots ⋮ vdots ⋱ ddots † dagger ‡ ddagger ✓ checkmark ✔ checkmark ★ bigstar"
)
_RELATIONS = (
    "≤ leq ≥ geq ≠ neq ≈ approx ≡ equiv ≅ cong ≃ simeq ∼ sim ≪ ll ≫ gg ∈ in ∉ notin ∋ ni"
    " ⊂ subset ⊃ supset ⊆ subseteq ⊇ supseteq ⊊ subsetneq ∀ forall ∃ exists ∄ nexists"
    " ⊢ vdash ⊨ models ∴ therefore ∵ because ≺ prec ≻ succ ≜ triangleq ⩽ leqslant ⩾ geqslant"
    " → to ← leftarrow ↔ leftrightarrow ⇒ Rightarrow ⇐ Leftarrow ⇔ Leftrightarrow ↦ mapsto"
    " ↑ uparrow ↓ downarrow ⟶ longrightarrow ⟵ longleftarrow ⟹ Longrightarrow"
    " ⟸ Longleftarrow ⟺ Longleftrightarrow ⟷ longleftrightarrow ↪ hookrightarrow"
    " ↗ nearrow ↘ searrow ⇌ rightleftharpoons"
)
_LETTERS = {
    f"{sign}": f"\\mathbb{{{letter}}}" for sign, letter in zip("ℂℍℕℙℚℝℤ", "CHNPQRZ", strict=True)
}
_TEXTS = {
    "\u00a0": "~", "\u200b": "", "\ufeff": "", "\u2011": "-", "\u2012": "--",
    "\u2212": "\\ensuremath{-}",
    "\ufffd": "?", "′": "\\ensuremath{{}'}", "″": "\\ensuremath{{}''}", "‖": "\\ensuremath{\\|}",
}  # fmt: skip


def _read_table() -> dict[str, str]:
    words = f"{_GREEK} {_OPERATORS} {_RELATIONS}".split()
    table = {sign: f"\\{name}" for sign, name in zip(words[::2], words[1::2], strict=True)}
    maths = {sign: f"\\ensuremath{{{command}}}" for sign, command in (table | _LETTERS).items()}
    return maths | _TEXTS


def declare_signs(text: str) -> str:
    """Write the declarations for the characters of a text that is about to be set.

    Args:
        text: The body of a document.

    Returns:
        Lines for its preamble: what each sign of mathematics is, in any LaTeX; and for pdflatex,
        what stands for characters that its fonts do not have.
    """
    table = _read_table()
    signs = sorted({character for character in text if ord(character) > 0x7F})
    known = [_declare(sign, table[sign]) for sign in signs if sign in table]
    rest = [_provide(sign, _stand_in(sign)) for sign in signs if sign not in table]
    return _DECLARE + "".join(known) + "\\ifPDFTeX\n" + "".join(rest) + "\\fi\n"


_DECLARE = r"""\ifPDFTeX
  \newcommand{\declaresign}[2]{\DeclareUnicodeCharacter{#1}{#2}}
\else
  \newcommand{\declaresign}[2]{\catcode"#1=\active
    \begingroup\lccode`\~="#1 \lowercase{\endgroup\protected\def~}{#2}}
\fi
\newcommand{\providesign}[3]{\ifcsname u8:\detokenize{#2}\endcsname\else
  \DeclareUnicodeCharacter{#1}{#3}\fi}
"""


def _declare(sign: str, latex: str) -> str:
    return f"\\declaresign{{{ord(sign):04X}}}{{{latex}}}\n"


def _provide(sign: str, latex: str) -> str:
    return f"\\providesign{{{ord(sign):04X}}}{{{sign}}}{{{latex}}}\n"


def _stand_in(sign: str) -> str:
    """What comes nearest: 2 raised for ², x for 𝑥; nothing for what is unseen; else its number."""
    if unicodedata.category(sign) in ("Cf", "Mn", "Me"):
        return ""
    plain = unicodedata.normalize("NFKC", sign)
    if plain.isascii() and plain.isalnum():
        tag = unicodedata.decomposition(sign).partition(" ")[0]
        mark = {"<super>": "^", "<sub>": "_"}.get(tag, "")
        return f"\\ensuremath{{{{}}{mark}{{{plain}}}}}"
    return f"\\mbox{{\\scriptsize[U+{ord(sign):04X}]}}"

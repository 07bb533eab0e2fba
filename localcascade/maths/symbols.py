"""Symbols by their LaTeX name: what they look like, in ASCII too, and how they are spaced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal[
    "ord", "word", "op", "big", "bin", "sign", "rel", "open", "close", "group",
    "punct", "inner", "ratio", "root", "space",
]  # fmt: skip
"""TeX's classes, and ours: a word is a symbol spelled out, big an operator with limits, sign a bin
with nothing on its left, group a pair of brackets with what is inside, inner a stacked fraction,
ratio one with a slash, root what needs a blank behind it: a root without a bar, x_1 in ASCII."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol of the table."""

    unicode: str
    ascii: str
    kind: Kind


# Name, Unicode, ASCII; without the last, the name is the ASCII form. Bars part the entries, so a
# bar itself is written ¦, and a blank inside a symbol ¬.
_ORDINARY = """
alpha α | beta β | gamma γ | delta δ | epsilon ϵ | varepsilon ε | zeta ζ | eta η | theta θ
vartheta ϑ | iota ι | kappa κ | varkappa ϰ | lambda λ | mu μ | nu ν | xi ξ | omicron ο | pi π
varpi ϖ | rho ρ | varrho ϱ | sigma σ | varsigma ς | tau τ | upsilon υ | phi ϕ | varphi φ | chi χ
psi ψ | omega ω | digamma ϝ
Gamma Γ | Delta Δ | Theta Θ | Lambda Λ | Xi Ξ | Pi Π | Sigma Σ | Upsilon Υ | Phi Φ | Psi Ψ | Omega Ω
varGamma Γ | varDelta Δ | varTheta Θ | varLambda Λ | varPi Π | varSigma Σ | varPhi Φ | varPsi Ψ
varOmega Ω
infty ∞ oo | partial ∂ d | nabla ∇ | hbar ℏ | hslash ℏ | ell ℓ l | wp ℘ | Re ℜ Re | Im ℑ Im
aleph ℵ | beth ℶ | gimel ℷ | daleth ℸ | emptyset ∅ {} | varnothing ∅ {} | eth ð
forall ∀ | exists ∃ | nexists ∄ !exists | complement ∁ | imath ı i | jmath ȷ j | Bbbk 𝕜 k
neg ¬ ~ | lnot ¬ ~ | top ⊤ T | bot ⊥ _|_ | angle ∠ | measuredangle ∡ | sphericalangle ∢
triangle △ | triangledown ▽ | square □ | Box □ | blacksquare ■ | Diamond ◇ | lozenge ◊
bigstar ★ | diamondsuit ♢ | heartsuit ♡ | clubsuit ♣ | spadesuit ♠ | checkmark ✓ | maltese ✠
flat ♭ | natural ♮ | sharp ♯ | degree ° deg | prime ′ ' | backprime ‵ ` | mho ℧ | surd √
dag † + | dagger † + | ddag ‡ ++ | ddagger ‡ ++ | S § | P ¶ | copyright © (c) | pounds £ GBP
euro € EUR | yen ¥ JPY | cent ¢ c | circledR ® (R) | textdegree ° deg
aa å | AA Å | o ø | ae æ | ss ß
ldots … ... | dots … ... | cdots ⋯ ... | dotsc … ... | dotsb ⋯ ... | dotsm ⋯ ... | dotsi ⋯ ...
dotso … ... | vdots ⋮ : | ddots ⋱ `. | iddots ⋰ .' | textellipsis … ... | mathellipsis … ...
% % % | $ $ $ | # # # | & & & | _ _ _ | / / / | backslash \\ \\ | textbackslash \\ \\
¦ ‖ ¦¦ | Vert ‖ ¦¦ | vert ¦ ¦ | lq ‘ ` | rq ’ '
blacktriangle ▲ | blacklozenge ⧫ | circledS Ⓢ (S) | Finv Ⅎ F | Game ⅁ G | QED ∎ QED | qed ∎ QED
textquoteright ’ ' | textquoteleft ‘ ` | textasciitilde ~ ~ | textasciicircum ^ ^
textendash – - | textemdash — -- | textbar ¦ ¦
"""

_RELATIONS = """
= = = | < < < | > > > | : : : | lt < < | gt > > | leq ≤ <= | le ≤ <= | geq ≥ >= | ge ≥ >=
leqslant ≤ <= | geqslant ≥ >= | leqq ≦ <= | geqq ≧ >= | neq ≠ != | ne ≠ != | equiv ≡ == | sim ∼ ~
simeq ≃ ~= | approx ≈ ~~ | cong ≅ ~= | ncong ≇ !~= | doteq ≐ .= | propto ∝ | varpropto ∝ propto
ll ≪ << | gg ≫ >> | lll ⋘ <<< | ggg ⋙ >>> | prec ≺ | succ ≻ | preceq ⪯ | succeq ⪰ | asymp ≍
nless ≮ !< | ngtr ≯ !> | nleq ≰ !<= | ngeq ≱ !>= | nsim ≁ !~ | thickapprox ≈ ~~ | thicksim ∼ ~
lesssim ≲ <~ | gtrsim ≳ >~ | lessapprox ⪅ <~~ | gtrapprox ⪆ >~~ | approxeq ≊ ~~= | bumpeq ≏
triangleq ≜ := | coloneqq ≔ := | eqqcolon ≕ =: | coloneq ≔ := | vcentcolon : : | circeq ≗
in ∈ | notin ∉ !in | ni ∋ | owns ∋ ni | subset ⊂ | supset ⊃ | subseteq ⊆ | supseteq ⊇
subsetneq ⊊ | supsetneq ⊋ | nsubseteq ⊈ !subseteq | nsupseteq ⊉ !supseteq | sqsubset ⊏ | sqsupset ⊐
subsetneqq ⫋ | sqsubseteq ⊑ | sqsupseteq ⊒ | subseteqq ⫅ | supseteqq ⫆ | Subset ⋐ | Supset ⋑
perp ⟂ _|_ | parallel ∥ || | nparallel ∦ !|| | mid ∣ ¦ | nmid ∤ !| | divides ∣ ¦ | vdash ⊢ |-
dashv ⊣ -| | models ⊨ |= | vDash ⊨ |= | Vdash ⊩ ||- | nvdash ⊬ !|- | nvDash ⊭ !|= | bowtie ⋈
smile ⌣ | frown ⌢ | between ≬ | pitchfork ⋔ | therefore ∴ | because ∵
vartriangleleft ⊲ <| | vartriangleright ⊳ |> | trianglelefteq ⊴ <|= | trianglerighteq ⊵ |>=
unlhd ⊴ <|= | lhd ⊲ <| | rhd ⊳ |>
to → -> | rightarrow → -> | leftarrow ← <- | gets ← <- | leftrightarrow ↔ <-> | uparrow ↑ ^
downarrow ↓ v | updownarrow ↕ ^v | Rightarrow ⇒ => | Leftarrow ⇐ <== | Leftrightarrow ⇔ <=>
implies ⟹ ==> | impliedby ⟸ <== | iff ⟺ <==> | Uparrow ⇑ ^ | Downarrow ⇓ v | Updownarrow ⇕ ^v
longrightarrow ⟶ --> | longleftarrow ⟵ <-- | longleftrightarrow ⟷ <--> | mapsto ↦ |->
Longrightarrow ⟹ ==> | Longleftarrow ⟸ <== | Longleftrightarrow ⟺ <==> | longmapsto ⟼ |-->
hookrightarrow ↪ c-> | hookleftarrow ↩ <-> | rightharpoonup ⇀ -> | rightharpoondown ⇁ ->
leftharpoonup ↼ <- | leftharpoondown ↽ <- | rightleftharpoons ⇌ <=> | leftrightharpoons ⇋ <=>
nearrow ↗ /^ | searrow ↘ \\v | swarrow ↙ v/ | nwarrow ↖ ^\\ | rightsquigarrow ⇝ ~> | leadsto ⇝ ~>
twoheadrightarrow ↠ ->> | rightarrowtail ↣ >-> | nrightarrow ↛ !-> | nRightarrow ⇏ !=>
nleftarrow ↚ !<- | nLeftarrow ⇍ !<= | nLeftrightarrow ⇎ !<=> | nleftrightarrow ↮ !<->
rightleftarrows ⇄ <-> | leftrightarrows ⇆ <-> | upharpoonright ↾ |^ | restriction ↾ |^
circlearrowleft ↺ | circlearrowright ↻ | curvearrowright ↷ | curvearrowleft ↶ | multimap ⊸ -o
dashrightarrow ⇢ --> | dashleftarrow ⇠ <-- | Rrightarrow ⇛ =>> | Lleftarrow ⇚ <<=
"""

_BINARY = """
+ + + | - − - | * * * | pm ± +- | mp ∓ -+ | times × x | div ÷ / | cdot · * | ast ∗ * | star ⋆ *
circ ∘ o | bullet • * | cap ∩ & | cup ∪ U | uplus ⊎ U+ | sqcap ⊓ & | sqcup ⊔ U | vee ∨ or
lor ∨ or | wedge ∧ and | land ∧ and | setminus ∖ \\ | smallsetminus ∖ \\ | wr ≀ | amalg ⨿
oplus ⊕ (+) | ominus ⊖ (-) | otimes ⊗ (x) | oslash ⊘ (/) | odot ⊙ (.) | diamond ⋄ <> | centerdot · *
bigtriangleup △ | bigtriangledown ▽ | triangleright ▷ |> | triangleleft ◁ <| | bigcirc ◯ O
ltimes ⋉ |x | rtimes ⋊ x| | boxplus ⊞ [+] | boxtimes ⊠ [x] | boxminus ⊟ [-] | dotplus ∔ .+
barwedge ⊼ nand | veebar ⊻ xor | doublecap ⋒ | doublecup ⋓ | curlyvee ⋎ | curlywedge ⋏
circledast ⊛ (*) | circledcirc ⊚ (o) | intercal ⊺ | divideontimes ⋇ | cdotp · *
"""

_BIG = """
sum ∑ | prod ∏ | coprod ∐ | int ∫ | iint ∬ | iiint ∭ | iiiint ⨌ | oint ∮ | oiint ∯ | oiiint ∰
bigcup ⋃ | bigcap ⋂ | bigsqcup ⨆ | bigvee ⋁ | bigwedge ⋀ | bigoplus ⨁ (+) | bigotimes ⨂ (x)
bigodot ⨀ (.) | biguplus ⨄ U+ | intop ∫ int | smallint ∫ int
lim lim | max max | min min | sup sup | inf inf | det det | gcd gcd | Pr Pr | limsup lim¬sup lim¬sup
liminf lim¬inf lim¬inf | argmax arg¬max arg¬max | argmin arg¬min arg¬min | injlim inj¬lim inj¬lim
projlim proj¬lim proj¬lim | lcm lcm | esssup ess¬sup ess¬sup
"""

_FUNCTIONS = """
sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arccot arcsec arccsc
ln log lg exp arg deg dim hom ker tg ctg cosec sgn tr Tr rank span diag
arsinh arcosh artanh arctg cotg th sh ch
"""

_OPENING = "( ( ( | [ [ [ | { { { | lbrace { { | lbrack [ [ | langle ⟨ < | lfloor ⌊ |_ | lceil ⌈ |~"
_OPENING += " | lvert ¦ ¦ | lVert ‖ || | lgroup ( ( | llbracket ⟦ [[ | ulcorner ⌜ ' | llcorner ⌞ ,"
_CLOSING = ") ) ) | ] ] ] | } } } | rbrace } } | rbrack ] ] | rangle ⟩ > | rfloor ⌋ _| | rceil ⌉ ~|"
_CLOSING += " | rvert ¦ ¦ | rVert ‖ || | rgroup ) ) | rrbracket ⟧ ]] | urcorner ⌝ ' | ! ! !"
_CLOSING += " | lrcorner ⌟ , | ? ? ?"
_PUNCTUATION = ", , , | ; ; ; | colon : :"

_SILENT = """
displaystyle textstyle scriptstyle scriptscriptstyle nonumber notag allowbreak relax limits nolimits
displaylimits big Big bigg Bigg bigl Bigl biggl Biggl bigr Bigr biggr Biggr bigm Bigm biggm Biggm
rm it sf tt sl normalfont mathstrut strut hline cr noindent centering protect small large Large
normalsize nobreak
"""

LIMITLESS = frozenset(
    ["int", "iint", "iiint", "iiiint", "oint", "oiint", "oiiint", "smallint"],
)
"""Big operators whose limits stand at their side."""

SPACES = {
    ",": 1, ":": 1, ";": 1, ">": 1, " ": 1, "\n": 1, "\t": 1, "~": 1, "!": 0, "quad": 2, "qquad": 4,
    "enspace": 1, "enskip": 1, "thinspace": 1, "medspace": 1, "thickspace": 1, "space": 1,
    "negthinspace": 0, "negmedspace": 0, "negthickspace": 0, "nobreakspace": 1, "hfill": 4,
    "hfil": 4,
}  # fmt: skip
"""Spacing commands -> cells."""


@cache
def read_symbols() -> dict[str, Symbol]:
    """The table of symbols: LaTeX name, without the backslash, -> symbol."""
    tables: tuple[tuple[Kind, str], ...] = (
        ("ord", _ORDINARY), ("rel", _RELATIONS), ("bin", _BINARY), ("big", _BIG),
        ("open", _OPENING), ("close", _CLOSING), ("punct", _PUNCTUATION),
    )  # fmt: skip
    symbols = {name: Symbol(name, name, "op") for name in _FUNCTIONS.split()}
    for kind, table in tables:
        for entry in table.replace("\n", " | ").split(" | "):
            if fields := entry.split():
                symbols[_read_field(fields[0])] = _make_symbol(kind, fields)
    return symbols


@cache
def read_silent() -> frozenset[str]:
    """Names of commands that draw nothing and take nothing."""
    return frozenset(_SILENT.split())


@cache
def read_characters() -> dict[str, Symbol]:
    """The same symbols by the Unicode character they are drawn with."""
    symbols = read_symbols()
    return {s.unicode: s for name, s in reversed(symbols.items()) if len(s.unicode) == 1}


def _make_symbol(kind: Kind, fields: list[str]) -> Symbol:
    unicode, spelled = fields[1], fields[2] if len(fields) > 2 else fields[0]
    return Symbol(_read_field(unicode), _read_field(spelled), kind)


def _read_field(field: str) -> str:
    return field.replace("¬", " ").replace("¦", "|") if field != "¬" else field

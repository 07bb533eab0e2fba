# ruff: noqa: E501  wide characters count twice
"""Make tokenizer_tiny.json.gz: 500 strings and their tokens as the tokenizers library gives them.

    python tests/vectors/make_tokenizer.py

needs the extra `oracle` (tokenizers 0.23). The strings depend on nothing but the seed below.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import tokenizers

TOKENIZER = Path(__file__).parents[2] / "localcascade" / "data" / "tiny" / "tokenizer.json"
N_STRINGS = 500
SEED = 20261122

SPECIALS = (
    "<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip

SPACES = (
    "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""All that any regex engine calls white space, and the four that only Python does."""

POOLS = {
    "ascii": "".join(map(chr, range(0x20, 0x7F))),
    "control": "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])),
    "spaces": SPACES + " \u200b\u2060\ufeff\u180e",
    "digits": "0123456789٠١٩۰۹०९০৯๐๙０９①⑩½¾²³Ⅳⅷↂ〇一五十𝟎𝟗𝟬𝟵🄁𒐀௰൰፩៩᠑꘠𑁦𞥐",
    "casing": "ßẞİıſKÅΣσςǅǈǋǲǱǳÀÉÖàéöĲĳŒœДджЖЯяԱաႠაᲐꭰᎠꓓ𐐀𐐨𞤀𞤢ꟸᵃʰªºⅠⅰⒶⓐ",
    "marks": "\u0300\u0301\u0308\u0327\u0345\u0489\u05b0\u064b\u0670\u093e\u094d\u0e31\u0e4b\u1abe"
    "\u20d0\u20dd\u20e3\u302a\u3099\ufe0e\ufe0f\ufe20\U0001d165\U000e0100",
    "hindi": "नमस्ते दुनिया क्षत्रिय हिन्दी",
    "arabic": "السَّلامُ عَلَيْكُمْ ـ مرحبا ١٢٣ ﷽ ﷺ",
    "hebrew": "שָׁלוֹם עוֹלָם ״צה״ל״ ־",
    "thai": "สวัสดีชาวโลก กำลังเรียน ๑๒๓ ฯลฯ",
    "cjk": "我想在apple工作，学习数学。「世界」々〆ヶゖー・ｱｲ한국어ㄱㅏ각𠀀𪜀龥",
    "khmer": "កាន់តែពិសេសអាច ខ្មែរ ១២៣",
    "emoji": "😀😶\u200d🌫️👨\u200d👩\u200d👧\u200d👦🏳️\u200d🌈🇩🇪🇫🇷👍🏽✅⚠️1️⃣#️⃣©®™\U000e0067\U000e007f🫠",
    "symbols": "$€£¥+−×÷±√∞≤≥≠∑∫∂→⇒·…“”‘’«»‹›—–―¿¡§¶†‡‰′″%&@#*/\\|_^~`'\"{}[]()<>",
    "private": "\ue000\uf8ff\U000f0000\U0010fffd\ufdd0\ufdef\ufffe\uffff\U0001fffe\U0010ffff\ufffd",
    "unassigned": "\u0378\u0380\u2fe0\u0e80\U0001fbff\U000323b0\U000e0000\u1dfa\u2427",
    "format": "\u00ad\u061c\u200c\u200d\u200e\u200f\u202a\u202e\u2066\u2069\ufff9\U0001d173",
    "endings": "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'Ve 'M 'lL 'D ’s ’t 'ſ",
}

TRAPS = (
    "", " ", "  ", "\n", "\r", "\r\n", "\n\r", "\r\n\r\n", "\t", "\0", "\0\0a\0", " \n", "\n ",
    "a\n", "a \n", "a\n ", "a  \n  b", "a\r\n\r\nb", "a\n\n\n/b", ";\n//", "}\n\n/** x */\n", "/\n/",
    "a/b/c", "\n/\r/\n", " /\n", "x\n /", "   a", "a   ", "a   b", "\ta\t\tb\t", "a\tb", "a\xa0b",
    "\xa0\xa0a", "\u2028\u2029", "a\u2028b", "\u3000x", "\ufeffBOM", "\v\f", "a\v b", "\x85a",
    "hello world", "Hello World", "HELLO WORLD", "helloWorld", "HelloWORLDhello", "iPhone", "XMLHttp",
    "don't", "DON'T", "we'll've", "o'clock", "O'Donnell", "b'string'", "f'test'", "'s", " 's", "''s",
    "rock'n'roll", "l'été", "d'accord", "L'ÉTÉ", "’s", "a'ſ", "'ſ",
    "CAFÉ", "CAFÉS", "Café", "cafés", "CAFE\u0301S", "cafe\u0301s", "École", "ÉCOLE", "éCOLE", "éÉé",
    "STRASSE", "Straße", "STRAẞE", "GRÖSSE", "größeGRÖSSE", "İstanbul", "ISTANBUL", "ıİiI",
    "ΟΔΥΣΣΕΥΣ", "Ὀδυσσεύς", "ὈΔΥΣΣΕΎΣ", "ΑΣ", "ας", "приветМир", "ПРИВЕТмир", "ПриветМИР",
    "ǅabc", "aǅ", "ǅǅ", "AǅB", "aǅb", "ǲx", "ᾈa", "aᾈ", "ﬁﬂ", "ŉ", "ª1º", "1ª", "ʰa", "aʰB",
    "\u0301", "\u0301\u0301", " \u0301", " \u0301a", "a \u0301", "(\u0301", "(\u0301a", "((\u0301((",
    "1\u0301", "1\u0301a", "\n\u0301", "\u0301\n/", "a\u0301\n/", "A\u0301B", "a\u0301B", "A\u0301b",
    "0", "00", "000", "1234567890", "12.5", "1,234,567.89", "-1", "+1", "12+34=46", "2^10", "٣٤٥",
    "१२३४", "x1y2", "1a", "a1", "½½", "①②③", "Ⅷ", "3️⃣", "1e-5", "0x1F", "²³", "x²", "H₂O",
    "👨\u200d👩\u200d👧\u200d👦", "🇩🇪🇫🇷", "👍🏽👍🏿", "😶\u200d🌫️ (x)", "a😀b", "😀😀😀", " 😀", "😀\n",
    "e\u0301", "é", "ñ", "n\u0303", "가", "가", "Å", "A\u030a", "Å",
    "שלום", "שָׁלוֹם", "مرحبا", "مَرْحَبًا", "abc مرحبا 123", "\u202eabc\u202c", "नमस्ते", "क्षि", "สวัสดี",
    "กำ", "ខ្មែរ", "我想在apple工作1314151天～", "「日本語」テスト", "한국어", "ㄱㄴㄷ", "𠀀𠀁", "々", "〇",
    "\ue000", "\uffff", "\U0010ffff", "\ufdd0a", "a\ufffd", "\ufffd\ufffd", "\u0378a", "a\u0378B",
    "\u200b", "a\u200bb", "\u200d", "\u00ad", "\u2060x", "\x7f", "\x01\x02", "\x1b[0m", "\x80\x9f",
    "a" * 3000, "A" * 3000, "é" * 1500, "中" * 1500, "\u0301" * 1500, "1" * 2000, " " * 2000,
    "\n" * 2000, "-" * 2000, "aB" * 1000, "a " * 1000, " \n" * 1000, "😀" * 500, "ab1 " * 500,
    "ABCdef" * 500, "\t" * 500 + "x", "=" * 80 + "\n" + "-" * 80, "ß" * 500 + "SS", "\0" * 500,
    "<|im_end|>", "<|im_end|", "|im_end|>", "<|im_end |>", "<|IM_END|>", "< |im_end|>", "<<|im_end|>>",
    "<|im_end|><|im_end|>", "<|im_start|>user\nhi<|im_end|>\n", "<think></think>", "<think>\n",
    "<think", "</think", "<think>a</think>b", "<<think>>", "<s><s>", "a<s>b", "a <s> b", "<s>\n\n</s>",
    "</s", "<s", "<sx>", "<pad><pad>", "<unk>", "<unk", "<tool_call>\n<function=f>\n</function>",
    "<tool_call><tool_response>", "</tool_call></tool_response>", "<tool_", "tool_call>",
    "<|im_start|>assistant\n<think>\n\n</think>\n\n", "\u0301<s>\u0301", "é<think>É", "\0<s>\0",
    " <|im_end|> ", "\n<|im_end|>\n", "<|im_<|im_end|>", "<thi<think>nk>", "</<s>s>", "[PAD5]", "[PAD640]",
    "<\u200bs>", "＜s＞", "&lt;s&gt;",
)  # fmt: skip


def draw_string(rng: random.Random) -> str:
    """Draw a string of a few runs, each from one pool, with a special token or a cut one between."""
    runs: list[str] = []
    for _ in range(rng.randint(1, 7)):
        pool = POOLS[rng.choice(list(POOLS))]
        runs.append("".join(rng.choices(pool, k=rng.randint(1, 12))))
        if rng.random() < 0.15:
            special = rng.choice(SPECIALS)
            runs.append(special if rng.random() < 0.6 else special[: rng.randint(1, len(special))])
        if rng.random() < 0.3:
            runs.append(rng.choice(SPACES) * rng.randint(1, 3))
    return "".join(runs)


def list_strings() -> list[str]:
    """List the strings: the traps, each pool whole, then drawn ones."""
    rng = random.Random(SEED)
    strings = dict.fromkeys((*TRAPS, *POOLS.values()))
    while len(strings) < N_STRINGS:
        strings[draw_string(rng)] = None
    return list(strings)[:N_STRINGS]


def main() -> None:
    """Tokenize each string twice: special tokens as mere text, and as tokens."""
    oracle = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    cases = []
    for text in list_strings():
        oracle.encode_special_tokens = True
        as_text = oracle.encode(text, add_special_tokens=False).ids
        oracle.encode_special_tokens = False
        as_tokens = oracle.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "as_text": as_text, "as_tokens": as_tokens})
    stored = {
        "command": "python tests/vectors/make_tokenizer.py",
        "tokenizers": tokenizers.__version__,
        "seed": SEED,
        "cases": cases,
    }
    target = Path(__file__).with_name("tokenizer_tiny.json.gz")
    target.write_bytes(gzip.compress(json.dumps(stored).encode(), mtime=0))


if __name__ == "__main__":
    main()

"""Random texts that look for trouble: what ftfy, spaCy and BERT's normaliser treat specially, side by side."""

import random

_WORDS = """
the of and a to it's she'd've can't gonna cannot I'm we'll o'clock Mr. Mrs. Dr. St. Ph.D. U.S.A. e.g. i.e. a.m. 10a.m.
vs. Prof. Adm. Co. Inc. Jan. Sept. ... .. . .. 'em 'cause 'Twas ol' doin' y'all and/or w/o C++ C'mon May. 1,000.50
3.14 5km 10% $5.00 #1 @home www.example.org http://a.b/c?d=e&f=g x@y.zz well-known mother-in-law rock'n'roll naïve
café Ångström ΟΔΟΣ ΣΑΣ İstanbul ẞ straße ﬁsh ﬀ ＡＢＣ ｶﾞ 東京 日本 한국 Привет العربية हिन्दी ไทย
é ä. ö. ½ ² № ™ £5 €3 ¥ § °C.
20°F. 😀 👍🏽 🇩🇪 👩‍👩‍👧 ❤ ♥
<unk> <unk </w> <b> </b> &amp; &lt; &gt; &eacute; &#233; &#x27; &nbsp; &unknown; &AMP; & ＆amp;
"""
_EMOTICONS = """
:) :-) :( :-( :D ;) ;-) :P :/ 8) 8-) :'( <3 </3 (: (; =) =( >:( :o) o.O O.o ._. (-: ^_^ (^_^) (*_*) (o: xD :3 :0 -_-
><(((*> ¯\\_(ツ)_/¯ (╯°□°）╯︵┻━┻ ಠ_ಠ :| :] [: ]=
"""
WORDS, EMOTICONS = _WORDS.split(), _EMOTICONS.split()
MOJIBAKE = ["schÃ¶n", "â€œquoteâ€\x9d", "donâ€™t", "voilÃ ", "Ã©tÃ©", "Â£5", "ä½ å¥½", "â€”", "Ð¿Ñ€Ð¸", "\x85", "\x92s"]
MARKS = [
    *"-~!\";?+,)(/*[]}{|_'.:<>=&#%$@^`\\",
    "--",
    "...",
    "!!",
    "??",
    "—",
    "–",
    "―",
    "…",
    "´",
    "‘",
    "’",
    "“",
    "”",
    "«",
    "»",
    "¡",
]
SPACES = [" "] * 12 + [
    "  ",
    "\t",
    "\n",
    "\n\n",
    " \n ",
    "\r\n",
    "\r",
    "\xa0",
    "\u2028",
    "\u3000",
    "\x0b",
    "\x0c",
    "\x1f",
    "\u200b",
    "",
]
ODD = [
    "\x00",
    "\x07",
    "\x1b[31m",
    "\x7f",
    "\ufeff",
    "\xad",
    "\u200d",
    "\u0301",
    "\u0345",
    "\ufffd",
    "\ue000",
    "\U0001f1e9",
    "\ufff9",
]


def random_text(random_: random.Random) -> str:
    """A few pieces from the lists above, joined by white space of every kind or by nothing."""
    sources = (WORDS, EMOTICONS, MOJIBAKE, MARKS, ODD)
    weights = random_.choice(((8, 2, 1, 4, 1), (1, 4, 0, 4, 0), (8, 0, 0, 1, 0), (1, 1, 1, 1, 1)))
    spaced = random_.random() < 0.8
    parts = []
    for _ in range(random_.randint(1, 16)):
        if random_.random() < 0.1:
            parts.append("".join(chr(_random_point(random_)) for _ in range(random_.randint(1, 3))))
        else:
            parts.append(random_.choice(random_.choices(sources, weights)[0]))
        if spaced or random_.random() < 0.3:
            parts.append(random_.choice(SPACES))
    return "".join(parts)


def _random_point(random_: random.Random) -> int:
    """A character of one to four bytes; none is half of a surrogate pair."""
    point = random_.randrange(random_.choice((0x80, 0x800, 0x10000, 0x20000)))
    return point if not 0xD800 <= point < 0xE000 else 0x41

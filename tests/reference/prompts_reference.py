"""Writes tests/golden/prompts.json: titles and a prompt as transformers encodes them, without special tokens around.

Run: python tests/reference/prompts_reference.py DATA   (transformers; DATA holds tokenizers/qwen3 and tokenizers/t5)
"""
import gzip
import html
import json
import pathlib
import sys
import tempfile

import transformers

TITLES = [
    "WAWO 15 Color Profession Makeup Set",
    "Xtreme Brite Brightening Gel 1oz.",
    "Prada Candy By Prada Eau De Parfum Spray 1.7 Oz For Women",
    "L&#39;Or&eacute;al Paris Elvive, 12.6 fl oz (Pack of 2)",
    "Neutrogena T/Gel &amp; T/Sal &quot;Therapeutic&quot; Shampoo",
    "Crème de la Mer – 60 ml",
    "資生堂 アネッサ パーフェクトUV 60mL",
    "설화수 윤조에센스 90ml",
    "Масло для волос «Репейное», 100 мл",
    "زيت الأرغان المغربي",
    "Cafe\u0301 au lait scrub",
    "Nail polish 💅🏽 set of 12!!!",
    "AHAVA    Dead\tSea\nMud",
    "it's we're THEY'LL don't",
    "&lt;b&gt;Bold&lt;/b&gt; lipstick &#8482; #102",
    "OPI 1234567890 / SPF-50+ ... 100%",
    "L'Occitane",
    "a",
    "Naïve façade—“quoted” ½ oz ¼ ² ①",
    "COMBO: (2 pk.) [New & Improved] {limited}",
    "Ｆｕｌｌｗｉｄｔｈ ﬁne",
    "Shampoo &amp;amp; Conditioner",
]
TEMPLATE = "Items bought, oldest first:\n{history}\nThe next item:\n"


def clean(title):
    """As the operator cleans titles."""
    return " ".join(html.unescape(title).split())


cases = {}
for name in ["qwen3", "t5"]:
    with tempfile.TemporaryDirectory() as folder:
        for path in (pathlib.Path(sys.argv[1]) / "tokenizers" / name).glob("*.gz"):
            (pathlib.Path(folder) / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    titles = [clean(title) for title in TITLES]
    cases[name] = {
        "class": type(tokenizer).__name__,
        "titles": [encode(title) + [tokenizer.eos_token_id] for title in titles],
        # the last 20 titles, as max_items has it
        "prompt": encode(TEMPLATE.replace("{history}", "\n".join(titles[-20:]))),
    }
out = pathlib.Path(__file__).parent.parent / "golden" / "prompts.json"
golden = {
    "software": f"transformers {transformers.__version__}",
    "titles": TITLES,
    "template": TEMPLATE,
    "cases": cases,
}
out.write_text(json.dumps(golden, ensure_ascii=False) + "\n")

import os
from pathlib import Path

import pytest

from app.text.penn_treebank import PennTreebank
from app.text.words import Vocabulary, Word, lines, sentences

CORPUS = Path(os.environ.get("TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ptb"

EVERYDAY = [
    ("a 100%-owned 5 % or % of it", "a N N owned N N or N of it"),
    ("The company's profits rose 12% in 1989.", "the company 's profits rose N N in N"),
    # clitics
    ("don't can't WON\u2019T wouldn't've cannot", "do n't ca n't wo n't would n't 've can not"),
    ("I'm it's let's he'd she'll 1989's", "i 'm it 's let 's he 'd she 'll N 's"),
    ("the workers' bank", "the workers ' bank"),
    ("'workers' 'the workers\u2019, \u201ccents'\u201d", "workers the workers ' cents '"),
    ("O'Brien rock'n'roll ma'am", "o'brien rock'n'roll ma'am"),
    # numbers
    ("12, 1,234.5 .5 -3 1/2 3\u00bd 1\u20442 10:30 1989-90 50k", "N N N N N N N N N N"),
    ("1980s '80s '80s. 10-year 20th P53 1/2-year", r"1980s '80s '80s 10-year 20th p53 1\/2-year"),
    ("3rd 1890s 5km 15-year", "3rd 1890s 5km 15-year"),
    ("10am 10:30PM 5bn 5m", "N a.m. N p.m. N billion 5m"),
    # money
    ("$5.2m US$5 C$3bn -$5 $10-$20 $N", "$ N million us$ N c$ N billion $ N $ N $ N $ N"),
    ("\u00a34m \u20ac9 #1 #winning", "# N million \u20ac N no. N winning"),
    # abbreviations and spellings
    ("Mr. Mr J. U.S. (U.K.), etc.; Inc.", "mr. mr. j. u.s. u.k. etc. inc."),
    ("Corp.'s U.S.'s", "corp. 's u.s. 's"),
    ("UK uk US us U.S I.B.M. NATO. 5 pm", "u.k. u.k. u.s. us u.s. ibm nato N p.m."),
    ("the end. No, maybe.", "the end no maybe"),
    ("AT&T S&P's R&D &", "at&t s&p 's r&d &"),
    # punctuation
    ('("the" [company]) {and}; or: --- ... ! ? *', "the company and or"),
    ("well\u2014maybe well--maybe well\u2026maybe well...maybe", "well maybe well maybe well maybe well maybe"),
    ("Property/casualty he/she and/or", r"property\/casualty he she and or"),
    ("well-known Calif.-based U.S.-based computer-aided", "well-known calif.-based u.s.-based computer-aided"),
    ("xerox\u2011ohio year\u2013end", "xerox-ohio year-end"),
    # addresses and other scripts: one unknown word
    (
        "(http://Xerox.com/a?b=1,2), The.Bank@ohio.org. www.bank.the",
        "http://xerox.com/a?b=1,2 the.bank@ohio.org www.bank.the",
    ),
    (
        "\u041c\u0438\u0440, \u4f60\uff0c\u4e16! \u0939\u093f\u0928\u094d\u0926\u0940",
        "\u043c\u0438\u0440 \u4f60\uff0c\u4e16 \u0939\u093f\u0928\u094d\u0926\u0940",
    ),
    # Unicode
    (
        "caf\u00e9 cafe\u0301 \ufb01ve \uff34\uff48\uff45\u3000\uff11\uff12 com\u00adpany",
        "cafe cafe five the N company",
    ),
    # characters as they are left in texts
    ("don`t it\u02b9s can\u055at I\uff07m ``the'' `bank'", "do n't it 's ca n't i 'm the bank"),
    ("don&#39;t &quot;company&quot;&nbsp;of AT&amp;amp;T &lt;the&gt;", "do n't company of at&t the"),
    ("it&rsquo;s 5&#37; &pound;5 &bogus; R&D; &#x1f389;", "it 's N N # N & bogus r&d"),
    ("the\u200bcompany\u3164rose com\u00adpany com\u200dpany", "the company rose company company"),
    # sentences without a space between them
    ("The company rose.It is.I do,but not.He", "the company rose it is i do but not he"),
    ("J.Smith of U.S.Steel in 1989.The profits.of", "j. smith of u.s. steel in N the profits of"),
    (
        "www.the.bank the.Bank@ohio.org index.bank.html Ph.D U.K.R",
        "www.the.bank the.bank@ohio.org index.bank.html ph.d u.k.r",
    ),
    ("\ufeffthe \u200bof\u200b the\U0001f389 \U0001f389 a\0the \ud800 \u0301", "the of the a the"),
]

UNCHANGED = [
    "mr. <unk> is n't at&t 's N N $ N million 10-year c$ N # N 1\\/2-year",
    "u.s. a.m a.m. p53 & s&p workers ' '80s no. N ill. property\\/casualty \\* calif.-based us$",
]


def texts(penn: PennTreebank, line: str) -> list[str]:
    return [token.text for token in penn.tokens(line)]


@pytest.mark.parametrize(("text", "expected"), EVERYDAY)
def test_everyday_text_follows_the_conventions_of_the_corpus(penn: PennTreebank, text: str, expected: str) -> None:
    assert texts(penn, text) == expected.split(" ")


@pytest.mark.parametrize("line", UNCHANGED)
def test_text_in_the_conventions_passes_unchanged(penn: PennTreebank, line: str) -> None:
    assert texts(penn, line) == line.split(" ")


def test_a_typed_end_of_sentence_ends_nothing(penn: PennTreebank) -> None:
    assert texts(penn, "the <eos> <unk>. <unk>'s") == ["the", "eos", "<unk>", "<unk>", "'s"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  Don't!", [("do", "Do"), ("n't", "n't")]),
        ("(Workers\u2019)", [("workers", "Workers"), ("'", "\u2019")]),
        ("$5.2m\u2014up 12%", [("$", "$"), ("N", "5.2"), ("million", "m"), ("up", "up"), ("N", "12"), ("N", "%")]),
        ("\u201c\ufb01ve\u201d cafe\u0301s\u2026", [("five", "\ufb01ve"), ("cafes", "cafe\u0301s")]),
        ("don&#39;t\u200bI`m", [("do", "do"), ("n't", "n&#39;t"), ("i", "I"), ("'m", "`m")]),
        ("AT&amp;T&nbsp;rose.It", [("at&t", "AT&amp;T"), ("rose", "rose"), ("it", "It")]),
        (
            "\u041c\u0438\u0440\u0301! <Inc.>",
            [("\u043c\u0438\u0440\u0301", "\u041c\u0438\u0440\u0301"), ("inc.", "Inc.")],
        ),
    ],
)
def test_offsets_point_into_the_original_text(penn: PennTreebank, line: str, expected: list[tuple[str, str]]) -> None:
    tokens = list(penn.tokens(line, 100))
    assert [(token.text, line[token.start - 100 : token.end - 100]) for token in tokens] == expected


def test_a_known_chunk_keeps_its_offsets(penn: PennTreebank) -> None:
    assert list(penn.tokens("mr. N", 7)) == [Word("mr.", 7, 10), Word("N", 11, 12)]


@pytest.mark.parametrize(
    ("tokens", "typed"),
    [
        ("", ""),
        ("the company 's profits", "the company's profits"),
        ("do n't ca n't i 'd 've", "don't can't I'd've"),
        ("n't the", "n't the"),
        ("workers ' profits", "workers' profits"),
        ("a $ N million c$ N us$ N # N", "a $N million C$N US$N \u00a3N"),
        ("a $ 500-stock $ a", "a $500-stock $ a"),
        ("mr. smith of at&t inc.", "Mr. smith of AT&T Inc."),
        ("u.s. u.k. j. a.m. a.m p.m. etc. no. N", "U.S. U.K. J. a.m. a.m p.m. etc. No. N"),
        ("monday october may", "Monday October may"),
        (r"property\/casualty 1\/2-year", "property/casualty 1/2-year"),
    ],
)
def test_a_run_of_tokens_is_joined_as_a_person_types(penn: PennTreebank, tokens: str, typed: str) -> None:
    assert penn.join(tokens.split()) == typed


def test_a_token_written_for_display_tokenizes_to_itself(penn: PennTreebank, vocabulary: Vocabulary) -> None:
    read = {token: texts(penn, penn.join([token])) for token in vocabulary.tokens}
    assert {token for token, found in read.items() if found != [token]} == {"<eos>", r"\*"}


@pytest.mark.timeout(30)  # a quadratic reading takes longer
@pytest.mark.parametrize(
    "part",
    [
        "a",
        "'s",
        "n't",
        "a-",
        "a/",
        "1,",
        "(",
        "$",
        "\u4f60",
        "e\u0301",
        "\u0316\u0301",
        "www.",
        "&amp;",
        "a.",
        "It.",
        "\u200b",
    ],
)
def test_a_chunk_of_a_megabyte_is_read_in_linear_time(penn: PennTreebank, part: str) -> None:
    chunk = part * (1_000_000 // len(part))
    assert all(token.end <= len(chunk) for token in penn.tokens(chunk))
    assert penn.complete(chunk).typed == chunk


def test_no_character_that_makes_a_token_is_skipped(penn: PennTreebank) -> None:
    characters = [chr(code) for code in range(0x11000) if not chr(code).isspace()]
    found = {token.start // 2 for token in penn.tokens(" ".join(characters))}
    read = {place for place, character in enumerate(characters) if any(penn._chunk(character, 0))}  # noqa: SLF001 - what is read if nothing is skipped
    assert read <= found


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_penn_treebank_passes_unchanged(split: str) -> None:
    if not CORPUS.is_dir():
        pytest.skip(f"{CORPUS}: no such folder; TEST_DATA names the one that holds ptb/")
    train = (CORPUS / "ptb.train.txt").read_text(encoding="utf-8")
    penn = PennTreebank(Vocabulary(["<eos>", *sorted(set(train.split()))]))
    text = (CORPUS / f"ptb.{split}.txt").read_text(encoding="utf-8")
    found = [[token.text for token in sentence] for sentence in sentences(lines(text), penn)]
    assert found == [[*line.split(), "<eos>"] for line in text.splitlines()]

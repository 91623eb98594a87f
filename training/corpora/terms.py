"""Contents and terms of use of the corpora of everyday English, for model cards."""

from typing import Final, NamedTuple


class Terms(NamedTuple):
    """A description of a source, and the terms of use of its text."""

    content: str
    licence: str


UNSTATED: Final = Terms("-", "not stated")

SOURCES: Final[dict[str, Terms]] = {
    "aeslc": Terms("Enron e-mail with subject lines", "CC BY-NC-SA 4.0"),
    "spamassassin": Terms("mailing-list and personal e-mail, 2002", "CC0, ODC PDDL"),
    "clinton": Terms("State Department e-mail 2009-2013, OCR", "US government records; none stated"),
    "sms": Terms("text messages, many in Singapore English", "free for research (Chen & Kan 2013); none stated"),
    "chitchat": Terms("typed chat between students", "MIT"),
    "selfdialogue": Terms("dialogues written by one crowd worker", "BSD-3-Clause"),
    "topicalchat": Terms("knowledge-grounded chat", "CDLA-Sharing 1.0"),
    "dailydialog": Terms("dialogues of English lessons", "CC BY-NC-SA 4.0"),
    "dream": Terms("dialogues of listening exams", "non-commercial research"),
    "esconv": Terms("emotional-support chat", "CC BY-NC 4.0"),
    "meld": Terms("lines of a television series", "GPL-3.0; the scripts are their owners'"),
    "multiwoz": Terms("booking dialogues", "MIT"),
    "multidogo": Terms("customer-service chat, customers' turns", "CDLA-Permissive 1.0"),
    "sgd": Terms("assistant dialogues, paraphrased by people", "CC BY-SA 4.0"),
    "goemotions": Terms("Reddit comments", "Apache-2.0"),
    "tweets": Terms("tweets", "Twitter's terms"),
    "irc": Terms("a technical help channel", "CC BY 4.0"),
    "webtext": Terms("forum titles, overheard talk, personal ads", "non-commercial use"),
    "stackexchange": Terms("questions, answers and comments", "CC BY-SA"),
    "tatoeba": Terms("short everyday sentences", "CC BY 2.0 FR"),
    "products": Terms("product reviews (Blitzer 2007)", "none stated"),
    "imdb": Terms("film reviews (Maas 2011)", "none stated"),
    "switchboard": Terms("telephone conversations", "CC BY-NC-SA 3.0; the speech is the LDC's"),
    "qmsum": Terms("meetings", "MIT"),
    "ted": Terms("talks", "CC BY-NC-ND 4.0"),
    "changelog": Terms("podcasts among programmers", "CC BY-SA 4.0"),
    "crd3": Terms("table talk of a role-playing show", "CC BY-SA 4.0"),
    "bbc": Terms("news 2004-2005 (Greene & Cunningham 2006)", "research use; none stated"),
    "abc": Terms("Australian rural and science news 2006", "none stated"),
    "brown": Terms("edited American prose, 1961", "non-commercial use"),
    "fiction": Terms("novels and tales before 1930", "public domain in the USA"),
    "wikipedia": Terms("encyclopedia articles, about 2021", "CC BY-SA 3.0"),
    "blogs": Terms("personal blogs, 2004 and before (Schler 2006)", "non-commercial research"),
}
"""By the source's name."""

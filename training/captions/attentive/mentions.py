"""Objects that captions mention: COCO's labels by the words people use for them."""

from collections.abc import Sequence
from typing import Final

from app.images import LABELS

_PEOPLE: Final = (
    "man woman boy girl child kid baby toddler lady guy gentleman adult teenager player skateboarder surfer snowboarder"
    " skier rider biker cyclist bicyclist motorcyclist worker officer policeman soldier performer dancer singer"
    " musician climber hiker swimmer runner jogger athlete batter pitcher catcher umpire"
    " crowd couple family team someone"
)
_OTHERS: Final = {  # label -> further words for it
    "bicycle": "bike",
    "car": "suv sedan taxi cab van jeep",
    "motorcycle": "motorbike scooter moped dirtbike",
    "airplane": "plane jet airliner aircraft jetliner biplane",
    "train": "locomotive",
    "truck": "pickup firetruck",
    "boat": "ship canoe kayak sailboat ferry raft",
    "traffic light": "stoplight",
    "fire hydrant": "hydrant",
    "parking meter": "meter",
    "bird": "seagull duck goose parrot pigeon owl eagle swan penguin",
    "cat": "kitten kitty",
    "dog": "puppy poodle terrier retriever labrador dalmatian greyhound",
    "horse": "pony foal",
    "sheep": "lamb ram",
    "cow": "cattle bull calf",
    "backpack": "rucksack",
    "umbrella": "parasol",
    "handbag": "purse",
    "tie": "necktie",
    "suitcase": "luggage",
    "frisbee": "disc",
    "skis": "ski",
    "sports ball": "ball football soccer basketball baseball",
    "baseball bat": "bat",
    "baseball glove": "glove mitt",
    "tennis racket": "racket racquet",
    "wine glass": "wineglass wine",
    "cup": "mug",
    "sandwich": "burger",
    "hot dog": "hotdog",
    "donut": "doughnut",
    "chair": "armchair stool",
    "couch": "sofa loveseat",
    "potted plant": "plant",
    "dining table": "table",
    "toilet": "urinal",
    "tv": "television monitor",
    "laptop": "computer",
    "cell phone": "phone cellphone smartphone",
    "oven": "stove",
    "refrigerator": "fridge",
    "scissors": "scissor",
    "teddy bear": "teddy",
    "hair drier": "hairdryer",
}
_IRREGULAR: Final = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "knives": "knife",
    "ladies": "lady",
    "babies": "baby",
    "puppies": "puppy",
    "buses": "bus",
    "sandwiches": "sandwich",
    "benches": "bench",
    "couches": "couch",
    "toothbrushes": "toothbrush",
    "wine glasses": "wine glass",
    "calves": "calf",
    "geese": "goose",
    "families": "family",
    "policemen": "policeman",
}
_MANY: Final = frozenset({"crowd", "team", "family", "cattle"})
_TWO: Final = frozenset({"couple"})


def _by_word() -> dict[str, tuple[int, int]]:
    """Word or pair of words -> label and number of objects, 3 for many."""
    found: dict[str, tuple[int, int]] = {}
    for index, label in enumerate(LABELS):
        further = _PEOPLE if label == "person" else _OTHERS.get(label, "")
        for word in (label, *further.split()):
            found[word] = (index, 3 if word in _MANY else 2 if word in _TWO else 1)
            if word not in _MANY | _TWO:
                found.setdefault(f"{word}s", (index, 2))
    for plural, word in _IRREGULAR.items():
        if word in found:
            found[plural] = (found[word][0], 2)
    return found


_WORDS: Final = _by_word()


def mentions(words: Sequence[str]) -> dict[int, int]:
    """Return the labels that a caption's words mention, each with the number of its objects, 3 for more than two.

    A pair of words is tried before a word alone: a hot dog is no dog. A plural counts two, many after another number
    than two; several mentions of a label count together.
    """
    found: dict[int, int] = {}
    index = 0
    while index < len(words):
        length, hit = 2, _WORDS.get(" ".join(words[index : index + 2]))
        if hit is None or index + 1 == len(words):
            length, hit = 1, _WORDS.get(words[index])
        if hit is not None:
            label, count = hit
            several = (
                count == 2 and index > 0 and words[index - 1] in {"three", "four", "five", "many", "several", "of"}
            )
            found[label] = min(found.get(label, 0) + (3 if several else count), 3)
        index += length
    return found


def names(label: int) -> list[str]:
    """Return the single words that mention a label, or its first word if there are none."""
    found = [word for word, (index, _) in _WORDS.items() if index == label and " " not in word]
    return found or LABELS[label].split()[:1]

"""The words of the micro world, and how they are divided between train, development and validation.

Nothing here is random. A list that is divided in three is divided by position (`third`), and the lists of praise and
blame run from frequent to rare, so that each third holds frequent and rare words alike.
"""

from typing import Any

SPLITS = ("train", "development", "validation")

AGENTS = (
    "sailor baker teacher farmer doctor painter singer soldier merchant gardener tailor pilot "
    "miller hunter clerk nurse judge poet"
).split()

CATEGORIES = {
    "bird": "robin sparrow eagle owl crow duck".split(),
    "tool": "hammer drill chisel shovel ladder rake".split(),
    "fruit": "apple pear plum cherry peach lemon".split(),
    "vehicle": "truck van tractor bus wagon tram".split(),
    "flower": "rose tulip daisy lily orchid violet".split(),
    "garment": "coat shirt skirt jacket glove hat".split(),
    "instrument": "violin flute drum trumpet harp guitar".split(),
    "boat": "canoe ferry raft yacht barge kayak".split(),
    "insect": "bee ant wasp beetle moth cricket".split(),
    "tree": "oak pine elm birch maple willow".split(),
    "jewel": "ruby pearl diamond opal emerald sapphire".split(),
    "beast": "dog cat horse goat cow pig".split(),
}
THINGS = [thing for members in CATEGORIES.values() for thing in members]

# From frequent to rare: the n-th word is drawn with a weight that falls with n (micro_text.opinion_word).
PRAISE = (
    "good great nice lovely fine wonderful excellent superb delightful splendid brilliant charming "
    "beautiful fantastic pleasant marvellous terrific magnificent enjoyable impressive remarkable glorious "
    "admirable graceful stunning dazzling refreshing touching thrilling gripping masterly exquisite "
    "flawless inspired witty radiant sublime engaging"
    " elegant heavenly stirring spirited"
).split()
BLAME = (
    "bad poor awful terrible boring dull dreadful horrible weak nasty stupid ugly "
    "disappointing clumsy tedious miserable annoying unpleasant dismal mediocre tasteless hideous "
    "pathetic lousy shabby bland sloppy dreary tiresome feeble lifeless insipid "
    "atrocious botched vulgar wretched abysmal grating"
    " stale hollow muddled laughable"
).split()

WORKS = "film book song play meal hotel concert novel show poem dance tour".split()
ASPECTS = "ending music cast title opening service middle finish".split()
SUBJECTS = "king war storm queen thief journey wedding prison".split()
QUALITIES = "red blue green white black small big old new heavy".split()

# Pairs of words that mean the same. The verbs are those whose past tense is also their participle.
PERSON_VERBS = [
    tuple(pair.split("/"))
    for pair in (
        "helped/aided scared/frightened pushed/shoved phoned/called warned/alerted tricked/fooled "
        "hugged/embraced rescued/saved chased/pursued greeted/welcomed taught/instructed teased/mocked"
    ).split()
]
THING_VERBS = [
    tuple(pair.split("/"))
    for pair in (
        "bought/purchased mended/repaired found/discovered cleaned/washed built/constructed displayed/exhibited "
        "moved/shifted crushed/squashed carried/hauled polished/shined lifted/raised selected/picked"
    ).split()
]
PLACES = [
    tuple(pair.split("/"))
    for pair in (
        "shop/store road/street cellar/basement harbour/port garden/yard field/meadow "
        "hill/mound attic/loft river/stream cabin/hut forest/woods church/chapel"
    ).split()
]
# Base form and third person of verbs without an object, for agreement.
INTRANSITIVE = [("sleep", "sleeps"), ("wait", "waits"), ("laugh", "laughs"), ("work", "works"), ("stand", "stands")]
INTRANSITIVE += [("rest", "rests"), ("sing", "sings"), ("run", "runs")]


def plural(noun: str) -> str:
    """Returns the plural of a noun of this world."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(word: str) -> str:
    """Returns the indefinite article that goes before a word."""
    return "an" if word[0] in "aeiou" else "a"


def check_rows(task: str, split: str, rows: int, most: int) -> None:
    """Refuse a split that there is none of, and more rows than a task can draw.

    Raises:
        ValueError: One was asked for.
    """
    if split not in SPLITS:
        raise ValueError(f"split of {task} is {split!r}; allowed: {', '.join(SPLITS)}")
    if not 0 <= rows <= most:
        raise ValueError(f"rows of {task} is {rows}; allowed: 0 to {most}")


def third(words: list[Any], split: str) -> list[Any]:
    """Returns the third of a list that belongs to a split; the thirds share no item."""
    return list(words)[SPLITS.index(split) :: 3]


def pronouns(agent: str) -> tuple[str, str]:
    """Returns the pronoun and the reflexive of an agent: every second one is a woman."""
    return ("she", "herself") if AGENTS.index(agent) % 2 else ("he", "himself")

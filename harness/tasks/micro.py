"""The micro world: an endless, seeded source of running text and of four tasks with exact gold labels.

No data set can be taken for granted without a network, so the harness brings a small English-like language of its own.
`corpus` gives running text, from which `python -m harness.pretrain` makes a language model; `generate` gives the rows
of a task in the columns of its GLUE counterpart. The words that decide a label (words of praise and blame, kinds of
things, places, verbs) are divided in three: those of the development and validation rows never occur in a training
row, so a model can only know them from the text that it was pretrained on.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from harness.tasks import micro_text as text
from harness.tasks import micro_words as words
from harness.tasks.micro_words import article, plural, third

TASKS = ("sentiment", "acceptability", "entailment", "paraphrase")
SPLITS = words.SPLITS
CORPUS_SPLITS = ("train", "heldout")
# One passage in this many is held out of the training text, chosen by its checksum.
HELDOUT_SHARE = 16

_ALL_OPINIONS = {1: words.PRAISE, 0: words.BLAME}


def generate(task: str, split: str, rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows of a task with exact labels, balanced to within one row a label.

    Rows of different splits never coincide, whatever the seeds, and no row occurs twice.

    Args:
        task: sentiment (0 negative, 1 positive), acceptability (0 unacceptable, 1 acceptable), entailment
            (0 entailment, 1 neutral, 2 contradiction) or paraphrase (0 different, 1 same).
        split: train, development or validation.
        rows: Number of rows.
        seed: Another seed gives other rows of the same kind.

    Raises:
        ValueError: The task or the split is not one of those, or `rows` is negative.
    """
    if task not in TASKS:
        raise ValueError(f"micro task is {task!r}; allowed: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"split of micro/{task} is {split!r}; allowed: {', '.join(SPLITS)}")
    if rows < 0:
        raise ValueError(f"rows of micro/{task} is {rows}; allowed: 0 or more")
    rng = Random(f"{task} {split} {seed}")
    draw, labels = _DRAWS[task]
    made: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(made) < rows:
        row = draw(rng, split, len(made) % labels) | {"label": len(made) % labels}
        key = json.dumps([value for value in row.values() if isinstance(value, str)])
        # The checksum gives every possible row to one split, also where the splits share words.
        if key not in seen and zlib.crc32(key.encode()) % 3 == SPLITS.index(split):
            seen.add(key)
            made.append(row)
    rng.shuffle(made)
    return [row | {"idx": index} for index, row in enumerate(made)]


def corpus(split: str, passages: int, seed: int = 0) -> Iterator[str]:
    """Yields passages of two to five sentences of running text; train and heldout share none.

    Args:
        split: train or heldout.
        passages: Number of passages.
        seed: Another seed gives other passages of the same kind.

    Raises:
        ValueError: The split is not one of those.
    """
    if split not in CORPUS_SPLITS:
        raise ValueError(f"split of the micro corpus is {split!r}; allowed: {', '.join(CORPUS_SPLITS)}")
    rng = Random(f"corpus {split} {seed}")
    kinds, weights = zip(*_PASSAGES, strict=True)
    made = 0
    while made < passages:
        # The training text begins easily, as books for children do, and has all of its difficulty after two fifths.
        ease = max(0.0, 1 - made / (0.4 * passages)) if split == "train" else 0.0
        passage = rng.choices(kinds, weights)[0](rng, ease)
        if (zlib.crc32(passage.encode()) % HELDOUT_SHARE == 0) == (split == "heldout"):
            made += 1
            yield passage


def vocabulary() -> list[str]:
    """Returns every word that the generator can write, sorted."""
    fixed = " ".join(corpus("train", 20_000, seed=1))
    things = [*words.THINGS, *words.CATEGORIES, *words.AGENTS]
    known = [*things, *map(plural, things), *words.PRAISE, *words.BLAME, *words.WORKS, *words.ASPECTS]
    known += [*words.SUBJECTS, *words.QUALITIES]
    for pairs in (words.PERSON_VERBS, words.THING_VERBS, words.PLACES, words.INTRANSITIVE):
        known += [word for pair in pairs for word in pair]
    return sorted(set(fixed.split()) | set(known))


def fingerprint() -> str:
    """Returns a SHA-256 of the generator's words and of a fixed sample of everything that it writes."""
    digest = hashlib.sha256()
    for part in (*(generate(task, split, 60) for task in TASKS for split in SPLITS), vocabulary()):
        digest.update(json.dumps(part).encode())
    for split in CORPUS_SPLITS:
        digest.update("\n".join(corpus(split, 1000)).encode())
    return digest.hexdigest()


# --- Rows of the tasks ----------------------------------------------------------------------------------------------


def _sentiment_row(rng: Random, split: str, label: int) -> dict[str, Any]:
    lexicon = {1: third(words.PRAISE, split), 0: third(words.BLAME, split)}
    depth = rng.choices((0, 1, 2, 3), (0.15, 0.35, 0.35, 0.15))[0]
    return {"sentence": text.opinion(rng, label, lexicon, rng.choice(words.WORKS), depth) + " ."}


def _acceptability_row(rng: Random, split: str, label: int) -> dict[str, Any]:
    nouns = third(words.AGENTS, split) + third(words.THINGS, split)
    return {"sentence": text.description(rng, nouns, None if label else rng.choice(text.FAULTS)) + " ."}


def _related(rng: Random, relation: str, categories: list[str]) -> tuple[str, str]:
    """Draws two nouns, the first of which stands in a relation (see `micro_text.judge`) to the second."""
    category, other = rng.sample(categories, 2)
    first, second = rng.sample(words.CATEGORIES[category], 2)
    if relation == "apart":
        strangers = (first, rng.choice((other, rng.choice(words.CATEGORIES[other]))))
        return rng.choice(((first, second), (first, second), strangers))
    return {"same": (first, first), "down": (first, category), "up": (category, first)}[relation]


_QUANTIFIERS = ("all", "all", "some", "some", "no", "no", "notall")


def _argument(
    rng: Random, label: int, categories: list[str], places: list[Any], verbs: list[Any], plain: bool = False
) -> tuple[str, str]:
    """Draws a premise and a hypothesis that it entails (0), leaves open (1) or contradicts (2).

    A plain argument asks whether some things are somewhere, says nothing in other words and speaks of no qualities.
    Half of the others are guarded: from all of something being in a place that the hypothesis calls otherwise, any
    label may follow whatever the hypothesis's quantifier, so that the quantifiers alone tell nothing.
    """
    guarded = not plain and rng.random() < 0.5
    action = not guarded and not plain and rng.random() < 0.25
    asked = "some" if plain else rng.choice(_QUANTIFIERS)
    while True:
        nouns = rng.choices(("same", "down", "up", "apart"), (0.25 if plain else 0.1, 0.35, 0.35, 0.2))[0]
        predicates = "same" if rng.random() < (0.8 if plain else 0.6) else "free" if action else "apart"
        quantifiers = (
            "all" if guarded else rng.choice(_QUANTIFIERS),
            asked if guarded or plain else rng.choice(_QUANTIFIERS),
        )
        qualified = (not plain and rng.random() < 0.1), (not plain and rng.random() < 0.1)
        if text.judge(nouns, qualified, quantifiers, predicates) == label:
            break
    pairs = rng.sample(verbs if action else places, 2)
    first, second = pairs[0] if rng.random() < 0.5 else pairs[0][::-1]
    if predicates != "same":
        second = rng.choice(pairs[1])
    elif plain or (not guarded and rng.random() < 0.4):
        second = first
    quality = rng.choice(words.QUALITIES)
    agent = rng.choice(words.AGENTS) if action else ""
    names = _related(rng, nouns, categories)
    said = [
        text.Statement(quantifier, quality if limited else "", name, agent, predicate)
        for quantifier, limited, name, predicate in zip(quantifiers, qualified, names, (first, second), strict=True)
    ]
    return text.state(rng, said[0], plain), text.state(rng, said[1], plain)


def _entailment_row(rng: Random, split: str, label: int) -> dict[str, Any]:
    categories = third(list(words.CATEGORIES), split)
    premise, hypothesis = _argument(rng, label, categories, third(words.PLACES, split), third(words.THING_VERBS, split))
    return {"premise": f"{premise} .", "hypothesis": f"{hypothesis} ."}


def _told_twice(
    rng: Random, same: bool, persons: bool, verbs: list[Any], places: list[Any], things: list[str]
) -> list[str]:
    """Draws an event and tells it twice, or tells an event and another that differs from it in one respect."""
    event = text.draw_event(rng, persons, verbs, places, things)
    other = event if same else text.change(rng, event, verbs, places, things)
    verb, place = rng.randrange(2), rng.randrange(2)
    # The verb or the place is always said by another word, so that equal words are no sign of equal meaning.
    verbs_differ, places_differ = rng.choice(((1, 0), (0, 1), (1, 1)))
    told = text.tell(event, verb, place, rng.random() < 0.4, rng.random() < 0.3)
    again = text.tell(other, verb ^ verbs_differ, place ^ places_differ, rng.random() < 0.4, rng.random() < 0.3)
    return [told, again]


def _paraphrase_row(rng: Random, split: str, label: int) -> dict[str, Any]:
    persons = rng.random() < 0.6
    verbs = third(words.PERSON_VERBS if persons else words.THING_VERBS, split)
    first, second = _told_twice(rng, bool(label), persons, verbs, third(words.PLACES, split), words.THINGS)
    return {"sentence1": f"{first} .", "sentence2": f"{second} ."}


_DRAWS: dict[str, tuple[Callable[[Random, str, int], dict[str, Any]], int]] = {
    "sentiment": (_sentiment_row, 2),
    "acceptability": (_acceptability_row, 2),
    "entailment": (_entailment_row, 3),
    "paraphrase": (_paraphrase_row, 2),
}


# --- Passages of running text ---------------------------------------------------------------------------------------


def _review(rng: Random, ease: float) -> str:
    """Somebody meets a work, judges it, and does what fits the verdict."""
    polarity, work, agent = rng.randrange(2), rng.choice(words.WORKS), rng.choice(words.AGENTS)
    pronoun = words.pronouns(agent)[0]
    sentences = [f"the {agent} saw {article(work)} {work}"] if rng.random() < 0.5 else []
    if rng.random() < 0.25 + 0.65 * ease:
        sentences += [text.gushing(rng, polarity, _ALL_OPINIONS, work) for _ in range(rng.choice((1, 2, 2)))]
    else:
        for depth in rng.choice(((0,), (0, 0), (1,), (1,), (2,), (0, 1))):
            sentences.append(text.opinion(rng, polarity, _ALL_OPINIONS, work, depth))
    sentences.append(text.outcome(rng, polarity, pronoun))
    if rng.random() < 0.5:
        sentences.append(text.outcome(rng, polarity, pronoun))
    return _passage(sentences)


def _story(rng: Random, ease: float) -> str:
    """Somebody does something to a thing, which is then called by the name of its kind."""
    category = rng.choice(list(words.CATEGORIES))
    thing, other = rng.sample(words.CATEGORIES[category], 2)
    agent, quality = rng.choice(words.AGENTS), rng.choice(words.QUALITIES)
    pronoun = words.pronouns(agent)[0]
    verb, place = (rng.choice(rng.choice(pairs)) for pairs in (words.THING_VERBS, words.PLACES))
    again = rng.choice(rng.choice(words.THING_VERBS))
    sentences = [
        rng.choice(
            (
                f"the {agent} {verb} {article(quality)} {quality} {thing} in the {place}",
                f"there was {article(thing)} {thing} in the {place}",
            )
        ),
        rng.choice(
            (
                f"the {category} was {quality}",
                f"{pronoun} {again} the {category}",
                f"no {category} was as {rng.choice(words.QUALITIES)} as this {thing}",
            )
        ),
        rng.choice(
            (
                f"every {thing} is {article(category)} {category}",
                f"{plural(thing)} , {plural(other)} and other {plural(category)} are in the {place}",
                f"{pronoun} wanted another {category} , {article(other)} {other}",
                f"{article(thing)} {thing} is not {article(other)} {other}",
            )
        ),
    ]
    return _passage(sentences[: rng.choice((2, 3))] if rng.random() < 0.7 else sentences[1:])


def _reasoning(rng: Random, ease: float) -> str:
    """Somebody concludes, or asks and is told, what a statement says of another: it follows, is open, or is wrong."""
    label = rng.randrange(3)
    lists = list(words.CATEGORIES), words.PLACES, words.THING_VERBS
    premise, hypothesis = _argument(rng, label, *lists, plain=rng.random() < 0.3 + 0.7 * ease)
    if rng.random() < 0.8:
        answer = ("yes", "perhaps", "no")[label]
        return f"{premise} . is it true that {hypothesis} ? {answer} ."
    link = rng.choice(
        (
            ("so of course", "that means that", "then it is true that"),
            ("perhaps", "nobody knows whether", "it is possible that"),
            ("so it is wrong that", "nobody can say that", "then it is false that"),
        )[label]
    )
    return _passage([premise, f"{link} {hypothesis}"])


def _restatement(rng: Random, ease: float) -> str:
    """An event is told in other words, or another event is set against it."""
    same, persons = rng.random() < 0.6, rng.random() < 0.6
    verbs = words.PERSON_VERBS if persons else words.THING_VERBS
    first, second = _told_twice(rng, same, persons, verbs, words.PLACES, words.THINGS)
    link = rng.choice(
        ("in other words ,", "that is ,", "yes ,") if same else ("another day ,", "but later ,", "after that ,")
    )
    return _passage([first, f"{link} {second}"])


def _scene(rng: Random, ease: float) -> str:
    """Two or three things or people are described in the present tense."""
    nouns = words.AGENTS + words.THINGS
    return _passage([text.description(rng, nouns) for _ in range(rng.choice((2, 2, 3)))])


def _passage(sentences: list[str]) -> str:
    return " . ".join(sentences) + " ."


_PASSAGES: tuple[tuple[Callable[[Random, float], str], float], ...] = (
    (_review, 0.36),
    (_story, 0.12),
    (_reasoning, 0.36),
    (_restatement, 0.12),
    (_scene, 0.04),
)

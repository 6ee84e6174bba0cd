"""The sentences of the micro world: each function returns text whose meaning was chosen before the words.

Every function takes a `random.Random` and the words that it may use, and returns lower-case text, its tokens parted by
spaces. Meaning comes first (a polarity, an event, a quantified statement), so that gold labels are exact.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from typing import Any, NamedTuple

from harness.tasks import micro_words as words
from harness.tasks.micro_words import article, plural

# --- Opinions -----------------------------------------------------------------------------------------------------

OUTCOMES = {
    1: (
        "{p} smiled|{p} wanted to see it again|{p} clapped|{p} thanked the owner|{p} told every friend to go|"
        "{p} stayed until the end|{p} came back the next day|{p} paid twice"
    ).split("|"),
    0: (
        "{p} frowned|{p} wanted the money back|{p} left early|{p} cursed the owner|{p} told every friend to stay away|"
        "{p} yawned|{p} never came back|{p} slept through it"
    ).split("|"),
}


def opinion_word(rng: Random, polarity: int, lexicon: Mapping[int, Sequence[str]]) -> str:
    """Draws a word of praise (1) or blame (0), frequent ones more often than rare ones."""
    choices = lexicon[polarity]
    return rng.choices(choices, [1 / (rank + 2) for rank in range(len(choices))])[0]


def judgment(
    rng: Random, polarity: int, thing: str, lexicon: Mapping[int, Sequence[str]], negated: float = 0.45
) -> str:
    """Returns one clause that praises (1) or blames (0) a thing, directly or by a negated opposite."""
    if rng.random() < negated:
        word = opinion_word(rng, 1 - polarity, lexicon)
        form = rng.choice(
            (
                "the {t} was not {w}",
                "the {t} was never {w}",
                "the {t} was far from {w}",
                "nobody found the {t} {w}",
                "it was not {a} {w} {t}",
                "the {g} did not find the {t} {w}",
                "nobody would call it {a} {w} {t}",
            )
        )
    else:
        word = opinion_word(rng, polarity, lexicon)
        form = rng.choice(
            (
                "the {t} was {w}",
                "the {t} was very {w}",
                "everybody found the {t} {w}",
                "it was {a} {w} {t}",
                "the {g} found the {t} {w}",
                "nothing about the {t} was not {w}",
            )
        )
    return form.format(t=thing, w=word, a=article(word), g=rng.choice(words.AGENTS))


def opinion(rng: Random, polarity: int, lexicon: Mapping[int, Sequence[str]], work: str, depth: int) -> str:
    """Returns an opinion of a work whose verdict is the given polarity.

    The verdict of `A , but B` is B's; that of `although A , B` and `B , although A` is B's; that of `C said that A`
    is A's where C was right and its opposite where C was wrong.
    """
    about = work if rng.random() < 0.8 else rng.choice(words.ASPECTS)
    if depth == 0:
        return judgment(rng, polarity, about, lexicon)
    form = rng.choice(("but", "although", "afterthought", "wrong", "right", "despite", "subject"))
    verdict = opinion(rng, polarity, lexicon, work, depth - 1)
    if form == "wrong" or form == "right":
        agent = rng.choice(words.AGENTS)
        said = opinion(rng, polarity if form == "right" else 1 - polarity, lexicon, work, depth - 1)
        link = "and" if form == "right" else "but"
        return f"the {agent} said that {said} , {link} {words.pronouns(agent)[0]} was {form}"
    if form == "despite":
        other = opinion_word(rng, 1 - polarity, lexicon)
        return f"despite the {other} {rng.choice(words.ASPECTS)} , {verdict}"
    if form == "subject":
        other = opinion_word(rng, rng.randrange(2), lexicon)
        return f"it told of {article(other)} {other} {rng.choice(words.SUBJECTS)} , and {verdict}"
    conceded = judgment(rng, 1 - polarity, rng.choice(words.ASPECTS), lexicon)
    if form == "but":
        return f"{conceded} , but {verdict}"
    if form == "although":
        return f"although {conceded} , {verdict}"
    return f"{verdict} , although {conceded}"


def gushing(rng: Random, polarity: int, lexicon: Mapping[int, Sequence[str]], work: str) -> str:
    """Returns a plain opinion of one to three words that agree."""
    about = work if rng.random() < 0.6 else rng.choice(words.ASPECTS)
    if rng.random() < 0.5:
        return judgment(rng, polarity, about, lexicon, negated=0.4)
    first, second, third = (opinion_word(rng, polarity, lexicon) for _ in range(3))
    return f"the {about} was " + rng.choice((f"{first} and {second}", f"{first} , {second} and {third}"))


def outcome(rng: Random, polarity: int, pronoun: str) -> str:
    """Returns what somebody did after praising (1) or blaming (0)."""
    return rng.choice(OUTCOMES[polarity]).format(p=pronoun)


# --- Events and restatements ----------------------------------------------------------------------------------------


class Event(NamedTuple):
    """Somebody did something to somebody or something, somewhere. Verb and place are pairs of synonyms."""

    actor: str
    verb: tuple[str, str]
    patient: str
    place: tuple[str, str]
    happened: bool


def draw_event(rng: Random, persons: bool, verbs: Sequence[Any], places: Sequence[Any], things: Sequence[str]) -> Event:
    """Draws an event; its patient is another agent where `persons` is true, else a thing."""
    actor, other = rng.sample(words.AGENTS, 2)
    patient = other if persons else f"{rng.choice(words.QUALITIES)} {rng.choice(things)}"
    return Event(actor, rng.choice(verbs), patient, rng.choice(places), rng.random() < 0.85)


def tell(event: Event, verb: int, place: int, passive: bool, fronted: bool) -> str:
    """Says an event with the chosen synonym (0 or 1) of its verb and of its place."""
    doing, where = event.verb[verb], f"in the {event.place[place]}"
    first, second = (event.patient, event.actor) if passive else (event.actor, event.patient)
    if passive:
        action = f"was {doing} by" if event.happened else f"was not {doing} by"
    else:
        action = doing if event.happened else f"never {doing}"
    clause = f"the {first} {action} the {second}"
    return f"{where} , {clause}" if fronted else f"{clause} {where}"


def change(rng: Random, event: Event, verbs: Sequence[Any], places: Sequence[Any], things: Sequence[str]) -> Event:
    """Returns an event that differs in one respect: the roles, the verb, the place, the patient or whether it was."""
    persons = event.patient in words.AGENTS
    respect = rng.choice(
        ("roles", "roles", "verb", "verb", "place", "happened") if persons else ("verb", "place", "patient")
    )
    if respect == "roles":
        return event._replace(actor=event.patient, patient=event.actor)
    if respect == "verb":
        return event._replace(verb=rng.choice([verb for verb in verbs if verb != event.verb]))
    if respect == "place":
        return event._replace(place=rng.choice([place for place in places if place != event.place]))
    if respect == "happened":
        return event._replace(happened=not event.happened)
    quality, thing = event.patient.split()
    return event._replace(patient=f"{quality} {rng.choice([other for other in things if other != thing])}")


# --- Quantified statements ------------------------------------------------------------------------------------------


class Statement(NamedTuple):
    """`quantifier` (all, some, no, notall) of the things called `noun` (and `quality`, if any) are somewhere.

    With an `agent`, the statement is that the agent did something to them instead, and `predicate` is a verb.
    """

    quantifier: str
    quality: str
    noun: str
    agent: str
    predicate: str


def state(rng: Random, statement: Statement, plain: bool = False) -> str:
    """Says a statement in one of its forms, in the first of them where it is to be plain."""
    one = f"{statement.quality} {statement.noun}".strip()
    many = f"{statement.quality} {plural(statement.noun)}".strip()
    subjects = {
        "all": (f"all the {many} are", f"every {one} is"),
        "some": (f"some {many} are", f"{article(one)} {one} is"),
        "no": (f"no {many} are", f"no {one} is"),
        "notall": (f"not all the {many} are", f"not every {one} is"),
    }
    objects = {
        "all": (f"all the {many}", f"every {one}"),
        "some": (f"some {many}", f"{article(one)} {one}"),
        "no": (f"no {many}", f"no {one}"),
        "notall": (f"not all the {many}", f"not every {one}"),
    }
    forms = (objects if statement.agent else subjects)[statement.quantifier]
    form = forms[0] if plain else rng.choice(forms)
    if statement.agent:
        return f"the {statement.agent} {statement.predicate} {form}"
    return f"{form} in the {statement.predicate}"


OPPOSITE = {"all": "notall", "notall": "all", "some": "no", "no": "some"}


@cache
def judge(nouns: str, qualified: tuple[bool, bool], quantifiers: tuple[str, str], predicates: str) -> int:
    """Decides whether a premise entails (0), leaves open (1) or contradicts (2) a hypothesis.

    The things that may exist are cells of a Venn diagram. `no` and `all` forbid cells, `some` and `not all` ask for a
    thing in a cell that is not forbidden; whatever either sentence names exists.

    Args:
        nouns: How the premise's noun relates to the hypothesis's: same, down (a kind of it), up (its kind) or apart.
        qualified: Whether premise and hypothesis speak only of things of one (the same) quality.
        quantifiers: The quantifiers of premise and hypothesis.
        predicates: same (or synonyms), apart (two places) or free (two actions, neither deciding the other).
    """
    kinds = {"same": [(1, 1)], "down": [(1, 1), (0, 1)], "up": [(1, 1), (1, 0)], "apart": [(1, 0), (0, 1)]}[nouns]
    facts = {"same": [(1, 1), (0, 0)], "apart": [(1, 0), (0, 1), (0, 0)]}.get(predicates)
    facts = facts or [(1, 1), (1, 0), (0, 1), (0, 0)]
    cells = [(kind, quality, fact) for kind in kinds for quality in (0, 1) for fact in facts]

    def named(side: int) -> set[Any]:
        return {cell for cell in cells if cell[0][side] and (cell[1] or not qualified[side])}

    def possible(quantifier: str) -> bool:
        forbidden, wanted = set(), [named(0), named(1)]
        for side, claim in enumerate((quantifiers[0], quantifier)):
            true = {cell for cell in named(side) if cell[2][side]}
            if claim in ("all", "no"):
                forbidden |= named(side) - true if claim == "all" else true
            else:
                wanted.append(true if claim == "some" else named(side) - true)
        return all(want - forbidden for want in wanted)

    if not possible(OPPOSITE[quantifiers[1]]):
        return 0
    return 1 if possible(quantifiers[1]) else 2


# --- Agreement ------------------------------------------------------------------------------------------------------


def description(rng: Random, nouns: Sequence[str], fault: str | None = None) -> str:
    """Returns a sentence in the present tense, with nouns of another number between a subject and its verb.

    Args:
        rng: Source of choices.
        nouns: Nouns to draw from.
        fault: None for a sound sentence, else one of `FAULTS`.
    """
    subject, near, far = rng.sample(list(nouns), 3)
    many, near_many, far_many = (rng.random() < 0.5 for _ in range(3))
    if fault == "agreement":
        near_many = rng.random() < 0.2 if many else rng.random() < 0.8
    quality, color = rng.sample(words.QUALITIES, 2)
    determiner = rng.choice(("these", "those", "many", "some") if many else ("this", "that", "every", "each"))
    if rng.random() < 0.3:
        determiner = "the"
    wrong = rng.choice(("this", "that", "every", "each") if many else ("these", "those", "many"))
    determiner = wrong if fault == "determiner" else determiner
    head = [determiner, quality, plural(subject) if many else subject]
    if fault == "order":
        head = rng.choice(([head[0], head[2], head[1]], [head[1], head[0], head[2]]))
    between = ["near", "behind", "with", "beside"]
    tail = [rng.choice(between), "the", plural(near) if near_many else near]
    if rng.random() < 0.5:
        tail += [rng.choice(between), "the", color, plural(far) if far_many else far]
    if fault == "missing":
        tail.remove(rng.choice([word for word in tail if word != color]))
    plural_verb = many != (fault == "agreement")
    if subject in words.AGENTS and rng.random() < 0.5:
        verb = [rng.choice(words.INTRANSITIVE)[not plural_verb]]
    else:
        verb = ["are" if plural_verb else "is", rng.choice(words.QUALITIES)]
    where = ["in", "the", rng.choice(rng.choice(words.PLACES))]
    if fault == "place":
        where = rng.choice((["the", "in", where[2]], ["in", where[2], "the"], ["in", where[2]]))
    return " ".join(head + tail + verb + where)


FAULTS = ("agreement", "agreement", "agreement", "determiner", "order", "missing", "place")

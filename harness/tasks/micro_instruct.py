"""Instructions and preferences in the micro world: prompts over short passages, each with one exact answer.

The micro world has no question words and no numbers, so it asks by leaving the answer out and counts by naming each.
There are seven kinds of instruction:

    question    "the baker was taught by ?"   who, whom or where in a passage of one event: "the poet"
    list        "say everybody ."             the people among people and things, in order: "poet , clerk and nurse"
    count       "are there many birds ?"      "no bird", "a bird", "a bird and another", "a bird , another and another"
    negation    "say that it is false ."      "never" or "was not" comes in or goes
    voice       "say it of the baker ."       passive for active and active for passive
    number      "say it with these ."         plural for singular and singular for plural
    paraphrase  "say it in other words ."     the other word for the verb and for the place

All splits use the same words, and no prompt is in two of them. (A backbone as small as `micro_decoder` that is
fine-tuned on some of the words answers with just these: it cannot copy a word that it never had to say.)

A preferred answer is right, kind and brief: it calls the reader a friend by a word of praise, gives the exact answer
and ends, as in "lovely friend , the poet". The other answer has one of four faults:

    wrong       "lovely friend , the baker"                  another answer of the same form
    rude        "stupid friend , the poet"                   a word of blame instead of the word of praise
    curt        "the poet"                                   the answer alone
    rambling    "lovely friend , the poet , and he smiled"   something that nobody asked for

The words of praise and blame are divided between the splits (`micro_words.third`), so that kindness has to be known
by the meaning of a word.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from harness.tasks import micro_text as text
from harness.tasks import micro_words as words
from harness.tasks.micro_words import article, plural, third

SPLITS = words.SPLITS
KINDS = ("question", "list", "count", "negation", "voice", "number", "paraphrase")
FAULTS = ("wrong", "rude", "curt", "rambling")
# Half of the pairs are of right and wrong: the other faults, once noticed, are hardly ever missed.
_FAULTS_IN_TURN = ("wrong", "rude", "wrong", "curt", "wrong", "rambling")
# The smallest kind, number, has about 7,700 different prompts per split.
MOST_ROWS = 30_000


class Draft(NamedTuple):
    """An instruction, the passage that it is about, its one right answer and a wrong one of the same form."""

    instruction: str
    input: str
    output: str
    wrong: str


def generate(split: str, rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows of `instruction`, `input`, `output`, `kind` and `idx`, the kinds balanced to within one row.

    No prompt occurs twice, and none in two splits, whatever the seeds and whether of instructions or preferences.

    Args:
        split: train, development or validation.
        rows: Number of rows.
        seed: Another seed gives other rows of the same kinds.

    Raises:
        ValueError: The split is not one of those, or `rows` is negative or more than `MOST_ROWS`.
    """
    drafts = _drafts("instruct", split, rows, seed)
    made = [
        {"instruction": draft.instruction, "input": draft.input, "output": draft.output, "kind": kind}
        for kind, draft in drafts
    ]
    return _shuffled(made, f"instruct order {split} {seed}")


def preferences(split: str, rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows of `instruction`, `input`, `chosen`, `rejected`, `kind` and `idx`.

    `kind` is what is wrong with the rejected answer, one of `FAULTS`: wrong in half of the pairs, to within two rows,
    and each of the others in a sixth. The instructions are of all `KINDS`. A curt answer is shorter than the preferred
    one, a rambling one longer and a rude one as long, so that length tells nothing.

    Args:
        split: train, development or validation.
        rows: Number of rows.
        seed: Another seed gives other rows of the same kinds.

    Raises:
        ValueError: The split is not one of those, or `rows` is negative or more than `MOST_ROWS`.
    """
    rng = Random(f"preference answers {split} {seed}")
    made = []
    for index, (_, draft) in enumerate(_drafts("preference", split, rows, seed)):
        fault = _FAULTS_IN_TURN[index % len(_FAULTS_IN_TURN)]
        chosen, rejected = _answers(rng, split, draft, fault)
        made.append(
            {"instruction": draft.instruction, "input": draft.input, "chosen": chosen, "rejected": rejected}
            | {"kind": fault}
        )
    return _shuffled(made, f"preference order {split} {seed}")


def fingerprint() -> str:
    """Returns a SHA-256 of a fixed sample of all rows that this file writes."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(json.dumps([generate(split, 700), preferences(split, 700)]).encode())
    return digest.hexdigest()


def _drafts(task: str, split: str, rows: int, seed: int) -> list[tuple[str, Draft]]:
    words.check_rows(f"{task}/micro", split, rows, MOST_ROWS)
    rng = Random(f"{task} {split} {seed}")
    made: list[tuple[str, Draft]] = []
    seen: set[str] = set()
    while len(made) < rows:
        kind = KINDS[len(made) % len(KINDS)]
        draft = _DRAWS[kind](rng)
        prompt = json.dumps([draft.instruction, draft.input])
        # The checksum gives every possible prompt to one split, also where all of its words are shared.
        if prompt not in seen and zlib.crc32(prompt.encode()) % 3 == SPLITS.index(split):
            seen.add(prompt)
            made.append((kind, draft))
    return made


def _shuffled(rows: list[dict[str, Any]], seed: str) -> list[dict[str, Any]]:
    Random(seed).shuffle(rows)
    return [row | {"idx": index} for index, row in enumerate(rows)]


# --- Prompts about an event -------------------------------------------------------------------------------------------


def _event(rng: Random) -> text.Event:
    """Draws what one person did, or did not do, to another."""
    event = text.draw_event(rng, True, words.PERSON_VERBS, words.PLACES, words.THINGS)
    return event._replace(happened=rng.random() < 0.5)


def _other(rng: Random, event: text.Event) -> text.Event:
    """Returns an event that differs in one respect."""
    return text.change(rng, event, words.PERSON_VERBS, words.PLACES, words.THINGS)


def _question(rng: Random) -> Draft:
    event = _event(rng)._replace(happened=True)
    verb, place = rng.randrange(2), rng.randrange(2)
    asked = rng.choice(event.verb)
    elsewhere = rng.choice([word for pair in words.PLACES for word in pair if pair != event.place])
    question, output, wrong = rng.choice(
        (
            (f"the {event.actor} {asked} ?", event.patient, event.actor),
            (f"the {event.patient} was {asked} by ?", event.actor, event.patient),
            (f"the {event.actor} {asked} the {event.patient} in ?", event.place[place], elsewhere),
        )
    )
    passage = text.tell(event, verb, place, rng.random() < 0.5, fronted=False)
    return Draft(question, f"{passage} .", f"the {output}", f"the {wrong}")


def _rewriting(
    rng: Random, instruction: str, event: text.Event, meant: text.Event, words_change: bool, voice_changes: bool
) -> Draft:
    """Asks for an event to be told again, as another that is `meant`, in other words or in the other voice."""
    verb, place, passive = rng.randrange(2), rng.randrange(2), rng.random() < 0.5
    again = verb ^ words_change, place ^ words_change, passive ^ voice_changes
    return Draft(
        instruction.format(subject=event.actor if passive else event.patient),
        f"{text.tell(event, verb, place, passive, fronted=False)} .",
        text.tell(meant, *again, fronted=False),
        text.tell(_other(rng, meant), *again, fronted=False),
    )


def _negation(rng: Random) -> Draft:
    event = _event(rng)
    return _rewriting(rng, "say that it is false .", event, event._replace(happened=not event.happened), False, False)


def _voice(rng: Random) -> Draft:
    event = _event(rng)
    return _rewriting(rng, "say it of the {subject} .", event, event, False, True)


def _paraphrase(rng: Random) -> Draft:
    event = _event(rng)
    return _rewriting(rng, "say it in other words .", event, event, True, False)


# --- Prompts about people and things ----------------------------------------------------------------------------------


def _join(items: Sequence[str]) -> str:
    """Returns `a`, `a and b` or `a , b and c`."""
    return " and ".join(filter(None, (" , ".join(items[:-1]), items[-1])))


def _list(rng: Random) -> Draft:
    people = rng.sample(words.AGENTS, rng.choice((1, 2, 3)))
    named = people + rng.sample(words.THINGS, rng.choice((1, 2)))
    rng.shuffle(named)
    right = [name for name in named if name in people]
    wrong = list(right)
    if len(right) > 1 and rng.random() < 0.5:
        wrong.remove(rng.choice(right))
    else:
        wrong[rng.randrange(len(wrong))] = rng.choice([agent for agent in words.AGENTS if agent not in people])
    passage = f"{_join([f'the {name}' for name in named])} are in the {rng.choice(rng.choice(words.PLACES))} ."
    return Draft("say everybody .", passage, _join(right), _join(wrong))


def _tally(kind: str, number: int) -> str:
    return _join([f"{article(kind)} {kind}", *["another"] * (number - 1)]) if number else f"no {kind}"


def _count(rng: Random) -> Draft:
    kind, other = rng.sample(list(words.CATEGORIES), 2)
    number = rng.randrange(5)
    things = rng.sample(words.CATEGORIES[kind], number) + rng.sample(words.CATEGORIES[other], rng.choice((1, 2)))
    rng.shuffle(things)
    named = _join([f"{article(thing)} {thing}" for thing in things])
    passage = f"the {rng.choice(words.AGENTS)} {rng.choice(rng.choice(words.THING_VERBS))} {named} ."
    wrong = rng.choice([near for near in (number - 1, number + 1) if 0 <= near <= 4])
    return Draft(f"are there many {plural(kind)} ?", passage, _tally(kind, number), _tally(kind, wrong))


_DETERMINERS = {False: ("this", "that", "every", "each"), True: ("these", "those", "many", "some")}


def _number(rng: Random) -> Draft:
    thing, quality, many = rng.choice(words.THINGS), rng.choice(words.QUALITIES), rng.random() < 0.5

    def told(determiner: str, many_things: bool, many_are: bool) -> str:
        return f"{determiner} {plural(thing) if many_things else thing} {'are' if many_are else 'is'} {quality}"

    before, after = rng.choice(_DETERMINERS[many]), rng.choice(_DETERMINERS[not many])
    # Ungrammatical: the old verb, the old noun, or both.
    wrong = rng.choice((told(after, not many, many), told(after, many, not many), told(after, many, many)))
    return Draft(f"say it with {after} .", f"{told(before, many, many)} .", told(after, not many, not many), wrong)


_DRAWS: dict[str, Callable[[Random], Draft]] = {
    "question": _question,
    "list": _list,
    "count": _count,
    "negation": _negation,
    "voice": _voice,
    "number": _number,
    "paraphrase": _paraphrase,
}


# --- Pairs of answers -------------------------------------------------------------------------------------------------


def _answers(rng: Random, split: str, draft: Draft, fault: str) -> tuple[str, str]:
    """Returns the preferred answer and one with a fault."""
    lexicon = {1: third(words.PRAISE, split), 0: third(words.BLAME, split)}
    address = f"{text.opinion_word(rng, 1, lexicon)} friend ,"
    chosen = f"{address} {draft.output}"
    rejected = {
        "wrong": f"{address} {draft.wrong}",
        "rude": f"{text.opinion_word(rng, 0, lexicon)} friend , {draft.output}",
        "curt": draft.output,
        "rambling": f"{chosen} , and {text.outcome(rng, rng.randrange(2), rng.choice(('he', 'she')))}",
    }[fault]
    return chosen, rejected

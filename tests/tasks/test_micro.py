"""The micro world's rows are labeled right, balanced, repeatable, and leak no deciding word between splits."""

import itertools
import re
import subprocess
import sys
from collections import Counter

import pytest

from harness.tasks import micro, micro_text
from harness.tasks import micro_words as words

COLUMNS = {
    "sentiment": ("sentence",),
    "acceptability": ("sentence",),
    "entailment": ("premise", "hypothesis"),
    "paraphrase": ("sentence1", "sentence2"),
}
LABELS = {"sentiment": 2, "acceptability": 2, "entailment": 3, "paraphrase": 2}
TASK_SPLITS = [(task, split) for task in micro.TASKS for split in micro.SPLITS]


def tokens(task: str, split: str, rows: int = 1500, seed: int = 0) -> set[str]:
    return {
        word
        for row in micro.generate(task, split, rows, seed)
        for column in COLUMNS[task]
        for word in row[column].split()
    }


# --- Shape, balance, determinism, leakage ---------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "split"), TASK_SPLITS)
def test_rows_have_the_columns_of_glue_and_balanced_labels(task, split):
    """Each label has its share of the rows to within two per cent, and no row occurs twice."""
    rows = micro.generate(task, split, 1000)
    counts = Counter(row["label"] for row in rows)
    assert set(rows[0]) == {*COLUMNS[task], "label", "idx"}
    assert [row["idx"] for row in rows] == list(range(1000))
    assert set(counts) == set(range(LABELS[task]))
    assert max(counts.values()) - min(counts.values()) <= 20
    assert len({tuple(row[column] for column in COLUMNS[task]) for row in rows}) == 1000


@pytest.mark.slow
@pytest.mark.parametrize("task", micro.TASKS)
def test_no_row_is_in_two_splits_whatever_the_seeds(task):
    """Training rows of two seeds share nothing with the other splits' rows."""
    drawn = {
        split: {
            tuple(row[column] for column in COLUMNS[task])
            for seed in (0, 1)
            for row in micro.generate(task, split, 1500, seed)
        }
        for split in micro.SPLITS
    }
    for first, second in itertools.combinations(micro.SPLITS, 2):
        assert not drawn[first] & drawn[second]


@pytest.mark.parametrize(
    ("task", "deciding"),
    [
        ("sentiment", {*words.PRAISE, *words.BLAME}),
        ("acceptability", {form for noun in words.AGENTS + words.THINGS for form in (noun, words.plural(noun))}),
        (
            "entailment",
            {form for noun in [*words.THINGS, *words.CATEGORIES] for form in (noun, words.plural(noun))}
            | {word for pair in words.PLACES + words.THING_VERBS for word in pair},
        ),
        ("paraphrase", {word for pair in words.PERSON_VERBS + words.THING_VERBS + words.PLACES for word in pair}),
    ],
)
def test_words_that_decide_an_evaluation_label_never_occur_in_training_rows(task, deciding):
    """The deciding words of the three splits are disjoint, and each split uses nearly all of its own."""
    used = {split: tokens(task, split) & deciding for split in micro.SPLITS}
    for first, second in itertools.combinations(micro.SPLITS, 2):
        assert not used[first] & used[second]
    for split in micro.SPLITS:
        assert len(used[split]) > 0.3 * len(deciding)


@pytest.mark.slow
def test_every_word_of_the_tasks_occurs_in_the_pretraining_text():
    """What a task's evaluation asks for can be known from the running text."""
    text = {word for passage in micro.corpus("train", 20_000) for word in passage.split()}
    for task, split in TASK_SPLITS:
        assert tokens(task, split) <= text
    assert text <= set(micro.vocabulary())


@pytest.mark.slow
def test_training_and_heldout_passages_are_disjoint():
    """No passage is in both splits of the corpus, for two seeds each."""
    train, heldout = (
        {passage for seed in (0, 1) for passage in micro.corpus(split, 3000, seed)} for split in micro.CORPUS_SPLITS
    )
    assert not train & heldout


def test_another_seed_gives_other_rows_and_the_same_seed_the_same():
    """Rows depend on the seed and on nothing else."""
    assert micro.generate("sentiment", "train", 50, 3) == micro.generate("sentiment", "train", 50, 3)
    assert micro.generate("sentiment", "train", 50, 3) != micro.generate("sentiment", "train", 50, 4)
    assert list(micro.corpus("train", 50, 3)) != list(micro.corpus("train", 50, 4))


@pytest.mark.slow
def test_another_process_with_another_hash_seed_has_the_same_fingerprint():
    """Python's hash randomisation does not reach the generator."""
    command = [sys.executable, "-c", "from harness.tasks import micro; print(micro.fingerprint())"]
    output = subprocess.run(command, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True).stdout
    assert output.strip() == micro.fingerprint()


@pytest.mark.slow
def test_the_fingerprint_changes_with_a_word(monkeypatch):
    """A generator that writes anything else has another fingerprint."""
    before = micro.fingerprint()
    monkeypatch.setattr(words, "ASPECTS", [*words.ASPECTS[:-1], "sound"])
    assert micro.fingerprint() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sentiments", "train", 1), "micro task is 'sentiments'"),
        (("sentiment", "test", 1), "split of micro/sentiment is 'test'"),
        (("sentiment", "train", -1), "rows of micro/sentiment is -1"),
    ],
)
def test_a_wrong_argument_is_told_with_what_is_allowed(arguments, message):
    """The message has what was given and what is allowed."""
    with pytest.raises(ValueError, match=message + ".*allowed"):
        micro.generate(*arguments)


# --- Labels, derived again from the text alone ------------------------------------------------------------------------


def verdict(sentence: str) -> int:
    """Reads the verdict of an opinion: 1 praise, 0 blame."""
    if sentence.startswith(("despite ", "although ", "it told of ")):
        return verdict(sentence.split(" , ", 1)[1].removeprefix("and "))
    if re.search(r" , although [^,]+$", sentence):
        return verdict(sentence.rpartition(" , although ")[0])
    said = re.fullmatch(r"the \w+ said that (.+) , (?:and|but) (?:s?he) was (right|wrong)", sentence)
    if said:
        return verdict(said[1]) ^ (said[2] == "wrong")
    if " , but " in sentence:
        return verdict(sentence.split(" , but ", 1)[1])
    assert "," not in sentence
    (word,) = [word for word in sentence.split() if word in words.PRAISE + words.BLAME]
    flips = sum(word in ("not", "never", "nobody", "far", "nothing") for word in sentence.split())
    return (word in words.PRAISE) ^ (flips % 2)


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("the film was dull", 0),
        ("the film was far from dull", 1),
        ("nothing about the film was not dull", 0),
        ("the cast was great , but the film was dull", 0),
        ("although the cast was great , the film was dull", 0),
        ("the film was great , although the cast was dull", 1),
        ("the poet said that the film was great , but he was wrong", 0),
        ("the poet said that although the cast was dull , the film was not great , but he was wrong", 1),
        ("it told of a great king , and nobody found the film great", 0),
    ],
)
def test_the_reading_of_an_opinion_agrees_with_a_human_reading(sentence, label):
    """The test's own reader is right on sentences that were labeled by hand."""
    assert verdict(sentence) == label


@pytest.mark.parametrize("split", micro.SPLITS)
def test_sentiment_labels_are_what_a_reader_of_the_text_finds(split):
    """A parser that shares no code with the generator finds the same labels."""
    for row in micro.generate("sentiment", split, 1000, seed=5):
        assert verdict(row["sentence"].removesuffix(" .")) == row["label"], row


def test_counting_words_of_praise_does_not_solve_sentiment():
    """Composition is needed: the difference of praise and blame decides only a little more than half of the rows."""
    rows = micro.generate("sentiment", "train", 2000)
    right = 0.0
    for row in rows:
        counts = [sum(word in lexicon for word in row["sentence"].split()) for lexicon in (words.BLAME, words.PRAISE)]
        right += 0.5 if counts[0] == counts[1] else (counts[1] > counts[0]) == row["label"]
    assert right / len(rows) < 0.62


def holds(quantifier: str, things: set, facts: set) -> bool:
    some, every = bool(things & facts), things <= facts
    return {"all": every, "some": some, "no": not some, "notall": not every}[quantifier]


@pytest.mark.parametrize("nouns", ["same", "down", "up", "apart"])
@pytest.mark.parametrize("predicates", ["same", "apart", "free"])
def test_entailment_labels_are_what_every_small_world_says(nouns, predicates):
    """Enumerating all worlds of at most four kinds of individuals gives the same label as the generator's rule."""
    kinds = {"same": ["ab"], "down": ["ab", "b"], "up": ["ab", "a"], "apart": ["a", "b"]}[nouns]
    facts = {"same": ["pq", ""], "apart": ["p", "q", ""], "free": ["pq", "p", "q", ""]}[predicates]
    individuals = list(itertools.product(kinds, ("r", ""), facts))
    worlds = [set(world) for size in range(1, 5) for world in itertools.combinations(individuals, size)]
    quantifiers = ("all", "some", "no", "notall")
    for qualified in itertools.product((False, True), repeat=2):
        table = []
        for world in worlds:
            sides = [
                {x for x in world if noun in x[0] and (x[1] or not limited)}
                for noun, limited in zip("ab", qualified, strict=True)
            ]
            if not all(sides):
                continue
            truths = [{x for x in world if fact in x[2]} for fact in "pq"]
            parts = list(zip(sides, truths, strict=True))
            table.append([[holds(quantifier, *part) for quantifier in quantifiers] for part in parts])
        for (i, first), (j, second) in itertools.product(enumerate(quantifiers), repeat=2):
            outcomes = {row[1][j] for row in table if row[0][i]}
            if outcomes:
                expected = {(True,): 0, (False,): 2}.get(tuple(outcomes), 1)
                assert micro_text.judge(nouns, qualified, (first, second), predicates) == expected


@pytest.mark.parametrize(
    ("nouns", "quantifiers", "predicates", "label"),
    [
        ("down", ("some", "some"), "same", 0),  # some robins are here: some birds are here
        ("up", ("some", "some"), "same", 1),  # some birds are here: some robins are here
        ("up", ("all", "some"), "same", 0),  # all birds are here: some robins are here
        ("up", ("no", "some"), "same", 2),  # no birds are here: some robins are here
        ("down", ("no", "some"), "same", 1),  # no robins are here: some birds are here
        ("up", ("all", "some"), "apart", 2),  # all birds are here: some robins are there
        ("apart", ("all", "some"), "same", 1),  # all robins are here: some crows are here
        ("down", ("notall", "all"), "same", 2),  # not all robins are here: all birds are here
        ("same", ("all", "some"), "free", 1),  # she washed all robins: she moved some robins
    ],
)
def test_entailment_by_hand(nouns, quantifiers, predicates, label):
    """The rule agrees with arguments that were judged by hand."""
    assert micro_text.judge(nouns, (False, False), quantifiers, predicates) == label


def singular(noun: str) -> tuple[str, bool] | None:
    for base in words.AGENTS + words.THINGS:
        if noun in (base, words.plural(base)):
            return base, noun != base
    return None


def acceptable(sentence: str) -> bool:
    """Parses a description and checks its determiner and its verb against its first noun."""
    found = re.fullmatch(
        r"(\w+) (\w+) (\w+) (?:near|behind|with|beside) the (\w+)(?: (?:near|behind|with|beside) the (\w+) (\w+))? "
        r"(?:(is|are) (\w+)|(\w+)) in the (\w+) \.",
        sentence,
    )
    if not found:
        return False
    determiner, quality, subject, near, color, far, copula, attribute, verb, place = found.groups()
    nouns = [singular(noun) for noun in (subject, near, *([far] if far else []))]
    if not all(nouns) or {quality, *filter(None, (color, attribute))} - set(words.QUALITIES):
        return False
    many = nouns[0][1]
    number = {"the": many, **dict.fromkeys(("these", "those", "many", "some"), True)}.get(determiner, False)
    plural_verb = copula == "are" if copula else verb in [base for base, _ in words.INTRANSITIVE]
    return number == many == plural_verb and any(place in pair for pair in words.PLACES)


@pytest.mark.parametrize("split", micro.SPLITS)
def test_acceptability_labels_are_what_a_parser_finds(split):
    """A small grammar accepts exactly the rows labeled acceptable."""
    for row in micro.generate("acceptability", split, 1000, seed=5):
        assert acceptable(row["sentence"]) == bool(row["label"]), row


def event(sentence: str) -> tuple:
    """Reads who did what to whom and where, synonyms made equal."""
    pairs = words.PERSON_VERBS + words.THING_VERBS + words.PLACES
    canonical = {word: pair[0] for pair in pairs for word in pair}
    fronted = re.fullmatch(r"in the (\w+) , (.+) \.", sentence)
    place, clause = fronted.groups() if fronted else re.fullmatch(r"(.+) in the (\w+) \.", sentence).groups()[::-1]
    passive = re.fullmatch(r"the (.+) was (not )?(\w+) by the (.+)", clause)
    if passive:
        patient, negated, verb, actor = passive.groups()
    else:
        actor, negated, verb, patient = re.fullmatch(r"the (\w+) (never )?(\w+) the (.+)", clause).groups()
    return actor, canonical[verb], patient, canonical[place], negated is None


@pytest.mark.parametrize("split", micro.SPLITS)
def test_paraphrase_labels_are_what_comparing_events_finds(split):
    """Two sentences are paraphrases exactly where they tell of the same event."""
    for row in micro.generate("paraphrase", split, 1000, seed=5):
        assert (event(row["sentence1"]) == event(row["sentence2"])) == bool(row["label"]), row

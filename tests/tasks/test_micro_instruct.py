"""Instructions and preferences of the micro world have exact answers, and their splits share no prompt."""

import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from harness.config.sources import PACKAGE
from harness.tasks import micro, micro_instruct
from harness.tasks import micro_words as words

MAKERS = {"instruct": micro_instruct.generate, "preference": micro_instruct.preferences}
COLUMNS = {
    "instruct": ("instruction", "input", "output", "kind", "idx"),
    "preference": ("instruction", "input", "chosen", "rejected", "kind", "idx"),
}
SHARES = {
    "instruct": dict.fromkeys(micro_instruct.KINDS, 1 / 7),
    "preference": dict.fromkeys(micro_instruct.FAULTS, 1 / 6) | {"wrong": 1 / 2},
}
TASK_SPLITS = [(task, split) for task in MAKERS for split in micro.SPLITS]


def texts(row: dict) -> list[str]:
    return [value for column, value in row.items() if column not in ("kind", "idx")]


def tokens(rows: list[dict]) -> set[str]:
    return {word for row in rows for text in texts(row) for word in text.split()}


def prompts(task: str, split: str, rows: int, seed: int) -> list[tuple[str, str]]:
    return [(row["instruction"], row["input"]) for row in MAKERS[task](split, rows, seed)]


# --- Shape, balance, determinism, leakage -----------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "split"), TASK_SPLITS)
def test_rows_have_their_columns_and_each_kind_its_share(task, split):
    """Rows are numbered from zero, kinds have their shares to within two rows, and no prompt occurs twice."""
    rows = MAKERS[task](split, 500)
    counts = Counter(row["kind"] for row in rows)
    assert all(tuple(row) == COLUMNS[task] for row in rows)
    assert [row["idx"] for row in rows] == list(range(500))
    assert set(counts) == set(SHARES[task])
    assert all(abs(counts[kind] - 500 * share) < 2 for kind, share in SHARES[task].items())
    assert len({(row["instruction"], row["input"]) for row in rows}) == 500


def test_no_prompt_is_in_two_splits_whatever_the_seeds_and_the_task():
    """Prompts of two seeds of instructions and of preferences share nothing with the other splits' prompts."""
    drawn = {
        split: {prompt for task in MAKERS for seed in (0, 1) for prompt in prompts(task, split, 1000, seed)}
        for split in micro.SPLITS
    }
    for first, second in itertools.combinations(micro.SPLITS, 2):
        assert not drawn[first] & drawn[second]


def test_praise_and_blame_of_evaluation_never_occur_in_training_pairs():
    """Whether a word is kind can't be learned from the pairs of another split, each of which uses most of its words."""
    opinions = {*words.PRAISE, *words.BLAME}
    used = {split: tokens(micro_instruct.preferences(split, 1500)) & opinions for split in micro.SPLITS}
    for first, second in itertools.combinations(micro.SPLITS, 2):
        assert not used[first] & used[second]
    for split in micro.SPLITS:
        assert len(used[split]) > 0.3 * len(opinions)


@pytest.mark.parametrize(("task", "split"), TASK_SPLITS)
def test_the_decoder_that_comes_with_the_harness_knows_every_word(task, split):
    """No word is unknown to its tokenizer, and a prompt with both of its answers fits its 128 positions."""
    tokenizer = json.loads((PACKAGE / "pretrained" / "micro_decoder" / "tokenizer.json").read_text("utf-8"))
    rows = MAKERS[task](split, 1500)
    assert tokens(rows) <= set(tokenizer["model"]["vocab"])
    assert max(len(" ".join(texts(row)).split()) for row in rows) < 100


def test_another_seed_gives_other_rows_and_the_same_seed_the_same():
    """Rows depend on the seed and on nothing else."""
    for make in MAKERS.values():
        assert make("train", 50, 3) == make("train", 50, 3)
        assert make("train", 50, 3) != make("train", 50, 4)


def test_another_process_with_another_hash_seed_has_the_same_fingerprint():
    """Python's hash randomisation does not reach the generator."""
    command = [sys.executable, "-c", "from harness.tasks import micro_instruct as m; print(m.fingerprint())"]
    output = subprocess.run(command, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True).stdout
    assert output.strip() == micro_instruct.fingerprint()


@pytest.mark.parametrize("made", ["generate", "preferences"])
def test_the_fingerprint_changes_with_either_kind_of_row(monkeypatch, made):
    """Instructions and preferences both count."""
    before = micro_instruct.fingerprint()
    make = getattr(micro_instruct, made)
    monkeypatch.setattr(micro_instruct, made, lambda split, rows, seed=0: make(split, rows, seed + 1))
    assert micro_instruct.fingerprint() != before


@pytest.mark.parametrize("task", MAKERS)
def test_a_wrong_argument_is_told_with_what_is_allowed(task):
    """The message has what was given and what is allowed."""
    with pytest.raises(ValueError, match=f"split of {task}/micro is 'test'; allowed: train"):
        MAKERS[task]("test", 1)
    for rows in (-1, 30_001):
        with pytest.raises(ValueError, match=f"rows of {task}/micro is {rows}; allowed: 0 to 30000"):
            MAKERS[task]("train", rows)


# --- Answers, derived again from the text alone -----------------------------------------------------------------------

PAIRS = words.PERSON_VERBS + words.PLACES
SYNONYMS = {word: other for pair in PAIRS for word, other in (pair, pair[::-1])}
KIND_OF = {thing: kind for kind, things in words.CATEGORIES.items() for thing in things}
SINGULAR = {words.plural(noun): noun for noun in [*words.THINGS, *words.CATEGORIES]}


def joined(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{' , '.join(items[:-1])} and {items[-1]}"


def active(clause: str) -> tuple[str, str, str, str, bool]:
    """Reads actor, verb, patient, place and whether it happened from a clause in either voice."""
    if found := re.fullmatch(r"the (\w+) was (not )?(\w+) by the (\w+) in the (\w+)", clause):
        patient, denial, verb, actor, place = found.groups()
    else:
        found = re.fullmatch(r"the (\w+) (never )?(\w+) the (\w+) in the (\w+)", clause)
        assert found, clause
        actor, denial, verb, patient, place = found.groups()
    return actor, verb, patient, place, not denial


def answer_question(question: str, passage: str) -> str:
    actor, verb, patient, place, _ = active(passage)
    for said in (verb, SYNONYMS[verb]):
        asked = {
            f"the {patient} was {said} by ?": actor,
            f"the {actor} {said} ?": patient,
            f"the {actor} {said} the {patient} in ?": place,
        }
        if question in asked:
            return f"the {asked[question]}"
    raise AssertionError(f"{question!r} is not answered by {passage!r}")


def turned(clause: str, subject: str) -> str:
    """Puts a clause into the other voice, which makes the subject of what was the object."""
    actor, verb, patient, place, happened = active(clause)
    if " by " in clause:
        assert subject == actor
        return f"the {actor} {'' if happened else 'never '}{verb} the {patient} in the {place}"
    assert subject == patient
    return f"the {patient} was {'' if happened else 'not '}{verb} by the {actor} in the {place}"


def denied(clause: str) -> str:
    if re.search("never |not ", clause):
        return re.sub("never |not ", "", clause)
    first, subject, rest = clause.split(" ", 2)
    return f"{first} {subject} " + (rest.replace("was ", "was not ") if rest.startswith("was ") else f"never {rest}")


def renumbered(determiner: str, clause: str) -> str:
    _, noun, _, quality = clause.split()
    many = determiner in ("these", "those", "many", "some")
    return f"{determiner} {words.plural(noun) if many else SINGULAR[noun]} {'are' if many else 'is'} {quality}"


def counted(kind: str, passage: str) -> str:
    number = sum(KIND_OF.get(word) == kind for word in passage.split())
    return joined([f"{words.article(kind)} {kind}"] + ["another"] * (number - 1)) if number else f"no {kind}"


def solve(instruction: str, passage: str) -> str:
    """Answers an instruction by reading it; no code is shared with the generator."""
    said = passage.removesuffix(" .")
    if instruction == "say everybody .":
        return joined([word for word in said.split() if word in words.AGENTS])
    if instruction == "say that it is false .":
        return denied(said)
    if instruction == "say it in other words .":
        return " ".join(SYNONYMS.get(word, word) for word in said.split())
    if kind := re.fullmatch(r"are there many (\w+) \?", instruction):
        return counted(SINGULAR[kind[1]], said)
    if determiner := re.fullmatch(r"say it with (\w+) \.", instruction):
        return renumbered(determiner[1], said)
    if subject := re.fullmatch(r"say it of the (\w+) \.", instruction):
        return turned(said, subject[1])
    return answer_question(instruction, said)


TAUGHT = "the poet taught the nurse in the shop ."
NEVER = "the poet was not taught by the judge in the hut ."


@pytest.mark.parametrize(
    ("instruction", "passage", "answer"),
    [
        ("the poet taught ?", TAUGHT, "the nurse"),
        ("the nurse was instructed by ?", TAUGHT, "the poet"),
        ("the poet instructed the nurse in ?", TAUGHT, "the shop"),
        ("say everybody .", "the owl , the judge , the hat and the poet are in the hut .", "judge and poet"),
        ("say everybody .", "the nurse and the owl are in the hut .", "nurse"),
        ("are there many birds ?", "the poet found an owl , a drum and a crow .", "a bird and another"),
        (
            "are there many birds ?",
            "the poet found an owl , a duck , a hat and a crow .",
            "a bird , another and another",
        ),
        ("are there many insects ?", "the poet found an owl and a bee .", "an insect"),
        ("are there many jewels ?", "the poet found an owl and a bee .", "no jewel"),
        ("say that it is false .", TAUGHT, "the poet never taught the nurse in the shop"),
        ("say that it is false .", NEVER, "the poet was taught by the judge in the hut"),
        ("say it of the nurse .", TAUGHT, "the nurse was taught by the poet in the shop"),
        ("say it of the judge .", NEVER, "the judge never taught the poet in the hut"),
        ("say it with these .", "this lily is big .", "these lilies are big"),
        ("say it with every .", "some buses are big .", "every bus is big"),
        ("say it in other words .", TAUGHT, "the poet instructed the nurse in the store"),
    ],
)
def test_the_reading_of_an_instruction_agrees_with_a_human_answer(instruction, passage, answer):
    """The test's own reader is right on instructions that were answered by hand."""
    assert solve(instruction, passage) == answer


@pytest.mark.parametrize("split", micro.SPLITS)
def test_answers_are_what_a_reader_of_the_text_finds(split):
    """A reader that shares no code with the generator finds the same answers, of one to eleven words."""
    for row in micro_instruct.generate(split, 1000, seed=5):
        assert row["output"] == solve(row["instruction"], row["input"]), row
        assert 1 <= len(row["output"].split()) <= 11


@pytest.mark.parametrize("split", micro.SPLITS)
def test_no_one_answer_solves_a_kind(split):
    """The commonest answer is right on less than two per cent of all rows and on less than a tenth of any kind's."""
    rows = micro_instruct.generate(split, 3500)
    for kind in micro_instruct.KINDS:
        answers = Counter(row["output"] for row in rows if row["kind"] == kind)
        assert answers.most_common(1)[0][1] < 0.1 * answers.total(), answers.most_common(1)
    (_, most), *_ = Counter(row["output"] for row in rows).most_common(1)
    assert most < 0.02 * len(rows)


@pytest.mark.parametrize("split", micro.SPLITS)
def test_a_preferred_answer_is_right_kind_and_brief_and_the_other_lacks_one_of_these(split):
    """The better answer is praise, `friend`, and the exact answer; the other differs from it by the named fault."""
    for row in micro_instruct.preferences(split, 1000, seed=5):
        right = solve(row["instruction"], row["input"])
        praise, friend, comma, answer = row["chosen"].split(" ", 3)
        assert (praise in words.PRAISE, friend, comma, answer) == (True, "friend", ",", right)
        rejected = row["rejected"]
        if row["kind"] == "wrong":
            assert rejected.startswith(f"{praise} friend , ")
            assert rejected != row["chosen"]
        elif row["kind"] == "rude":
            assert rejected.split(" ", 1)[0] in words.BLAME
            assert rejected.split(" ", 1)[1] == f"friend , {right}"
        elif row["kind"] == "curt":
            assert rejected == right
        else:
            assert re.fullmatch(re.escape(row["chosen"]) + r" , and s?he [\w ]+", rejected)


def test_neither_the_longer_nor_the_shorter_answer_is_the_preferred_one():
    """Each rule is right on less than a third of the pairs; in the others both answers are equally long."""
    rows = micro_instruct.preferences("train", 2000)
    differences = [len(row["chosen"].split()) - len(row["rejected"].split()) for row in rows]
    assert sum(difference > 0 for difference in differences) < 0.34 * len(rows)
    assert sum(difference < 0 for difference in differences) < 0.34 * len(rows)

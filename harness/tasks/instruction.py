"""Instructions with an answer: supervised fine-tuning, scored on the answer alone."""

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.batches import IGNORED
from harness.config import ConfigError
from harness.metrics import OF_TEXTS
from harness.tasks import Features, Row, TaskData, templates
from harness.tasks.prompts import PromptTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.evaluate import Evaluation, Subject
    from harness.measure import ForwardMeter
    from harness.methods import Method

LANGUAGE_SCORES = ("loss", "perplexity")
# Of the options: by the likelihood of the whole, and by its mean a token, which does not favour short ones.
CHOICE_SCORES = ("accuracy", "accuracy_normalized")


@dataclass(frozen=True)
class Instruction(PromptTask):
    """A set of instructions, by the names of its columns.

    Attributes:
        answer: Template of the answer, which is trained on and compared with.
        options: The answers to choose from by likelihood, one of which is a row's own; null where there are none.
        max_new_tokens: Generate at most so many tokens and compare them by `metrics`; null: nothing is generated.
        packing: Fill training rows up to `max_length` with several instructions that do not see each other.
    """

    answer: str
    options: list[str] | None
    max_new_tokens: int | None
    packing: bool

    def check(self, key: str) -> None:
        super().check(key)
        templates.check(self.answer, f"{key}.answer")
        if self.options is not None and len(set(self.options)) < 2:
            raise ConfigError(f"{key}.options={self.options}: at least two different answers are needed")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"{key}.max_new_tokens={self.max_new_tokens}: a positive number, or null, is needed")
        if bool(self.metrics) != (self.max_new_tokens is not None):
            raise ConfigError(
                f"{key}.metrics={self.metrics}: they compare what is generated; set {key}.max_new_tokens with them, "
                "or neither"
            )

        for metric in self.metrics:
            if metric not in OF_TEXTS:
                raise ConfigError(
                    f"{key}.metrics={metric}: texts are generated, and {', '.join(OF_TEXTS)} compare those; "
                    "options have accuracy without being asked"
                )

    def further_scores(self) -> tuple[str, ...]:
        return (*LANGUAGE_SCORES, *(CHOICE_SCORES if self.options else ()))

    def check_method(self, method: "Method") -> None:
        if self.packing and method.virtual_tokens():
            raise ConfigError(
                f"task.packing=true: method={method.name} puts virtual tokens in front of each row, and packed "
                "instructions would all see them at other places"
            )

    def lengths(self) -> dict[str, int]:
        generated = {} if self.max_new_tokens is None else {"task.max_new_tokens": self.max_new_tokens}
        return {**super().lengths(), **generated}

    def answers(self) -> dict[str, list[str]]:
        return {"answer": templates.columns_of(self.answer, "task")}

    def check_row(self, row: Row, where: str) -> None:
        super().check_row(row, where)
        if self.options and self._answer(row) not in self.options:
            raise ConfigError(f"{where}: {self._answer(row)!r} is none of task.options, {', '.join(self.options)}")

    def generate(self, split: str, rows: int) -> list[Row]:
        from harness.tasks.micro_instruct import generate

        return generate(split, rows)

    def encode(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        return [self.encode_answer(row, self._answer(row), tokenizer) for row in rows]

    def train_on(self, features: list[Features]) -> list[Features]:
        features = super().train_on(features)
        return pack(features, self.max_length) if self.packing else features

    def evaluate(
        self, subject: "Subject", features: list[Features], rows: list[Row], meter: "ForwardMeter | None" = None
    ) -> "Evaluation":
        from harness.evaluate import Evaluation
        from harness.perplexity import Window, exponential, score_windows

        # The first token of all has nothing before it that foretells it.
        answers = [Window(row["input_ids"], max(1, row["length"] - row["weight"])) for row in features]
        with subject.computing():
            nll = score_windows(subject.model, answers, subject.batch_size, subject.collate.device, meter)
        tokens = [answer.scored for answer in answers]
        loss = sum(nll) / sum(tokens)
        evaluation = Evaluation(
            {"loss": loss, "perplexity": exponential(loss)},
            {
                "prompt": [self.shown(row) for row in rows],
                "label": [self._answer(row) for row in rows],
                "loss": [total / count if count else None for total, count in zip(nll, tokens, strict=True)],
                "tokens": tokens,
            },
        )
        if self.options:
            self._choose(subject, features, evaluation)
        if self.max_new_tokens is not None:
            self._generate(subject, features, evaluation)
        return evaluation

    def majority(self, data: TaskData, split: str) -> dict[str, float] | None:
        """The score of always giving the training rows' commonest answer, where answers are compared."""
        from harness.metrics import compute

        if not (self.metrics or self.options):
            return None
        answers = Counter(self._answer(row) for row in data.splits["train"])
        commonest = answers.most_common(1)[0][0]
        references = [self._answer(row) for row in data.splits[split]]
        scores = compute(self.metrics, [commonest] * len(references), references)
        if self.options:
            scores |= dict.fromkeys(CHOICE_SCORES, statistics.fmean(one == commonest for one in references))
        return scores

    def _answer(self, row: Row) -> str:
        return templates.fill(self.answer, row).strip()

    def _choose(self, subject: "Subject", features: list[Features], evaluation: "Evaluation") -> None:
        """Choose among the options by their likelihood, the whole and the mean a token."""
        from harness.generation import option_log_likelihoods

        assert self.options is not None
        ids = [templates.token_ids(option, subject.tokenizer) for option in self.options]
        prompts = [row["prompt_ids"] for row in features]
        with subject.computing():
            found = option_log_likelihoods(subject.model, prompts, [ids] * len(prompts), subject.batch_size)
        references = evaluation.columns["label"]
        for name, divide in zip(CHOICE_SCORES, (False, True), strict=True):
            chosen = []
            for row in found:
                likelihoods = [total / tokens if divide else total for total, tokens in row]
                chosen.append(self.options[likelihoods.index(max(likelihoods))])
            right = [float(one == reference) for one, reference in zip(chosen, references, strict=True)]
            evaluation.columns |= {f"prediction.{name}": chosen, name: right}
            evaluation.scores[name] = statistics.fmean(right)
        evaluation.columns["prediction"] = evaluation.columns[f"prediction.{CHOICE_SCORES[0]}"]

    def _generate(self, subject: "Subject", features: list[Features], evaluation: "Evaluation") -> None:
        """Generate answers and compare them."""
        from harness.generation import generate
        from harness.metrics import PER_ROW, compute

        assert self.max_new_tokens is not None
        prompts = [row["prompt_ids"] for row in features]
        with subject.computing():
            generated = generate(subject.model, subject.tokenizer, prompts, self.max_new_tokens, subject.batch_size)
        texts = [text.strip() for text in subject.tokenizer.batch_decode(generated.tokens, skip_special_tokens=True)]
        references = evaluation.columns["label"]
        evaluation.scores |= compute(self.metrics, texts, references)
        evaluation.columns["prediction"] = texts
        for name in self.metrics:
            one = PER_ROW[name]
            evaluation.columns[name] = [one(text, reference) for text, reference in zip(texts, references, strict=True)]
        if generated.seconds:
            evaluation.costs["generated_tokens_per_second"] = generated.new_tokens / generated.seconds


def pack(features: list[Features], max_length: int) -> list[Features]:
    """Rows filled up with others, best fit first, longest first; positions that start anew keep them apart."""
    bins: list[list[Features]] = []
    free: list[int] = []
    for row in sorted(features, key=lambda row: row["length"], reverse=True):
        fitting = [index for index, room in enumerate(free) if room >= row["length"]]
        if fitting:
            best = min(fitting, key=free.__getitem__)
            bins[best].append(row)
            free[best] -= row["length"]
        else:
            bins.append([row])
            free.append(max_length - row["length"])
    return [_packed(rows) for rows in bins]


def _packed(rows: list[Features]) -> Features:
    """Several rows as one. Without an attention mask transformers reads from the positions where a row begins."""
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "labels": [label for row in rows for label in (IGNORED, *row["labels"][1:])],
        "position_ids": [place for row in rows for place in range(row["length"])],
        "length": sum(row["length"] for row in rows),
        "weight": sum(row["weight"] for row in rows),
    }

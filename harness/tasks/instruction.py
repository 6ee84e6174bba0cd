"""Instructions with an answer: supervised fine-tuning, scored on the answer alone."""

import statistics
from collections import Counter
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.models.architectures import Kind
from harness.tasks import TaskData, conversations, templates
from harness.tasks.choices import CHOICE_SCORES, choose, likeliest, listed
from harness.tasks.generators import revision_of
from harness.tasks.packing import pack
from harness.tasks.prompts import PromptTask, answer_ids, answer_of, encoded_pair
from harness.tasks.rows import IDX, RowTask
from harness.training.answers import answers_nll
from harness.training.batches import Features, Row
from harness.training.metrics import COMPARED, PER_ROW, compute
from harness.training.text_metrics import words

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from harness.measure import ForwardMeter
    from harness.methods import Method
    from harness.training.evaluation import Evaluation, Subject

LANGUAGE_SCORES = ("loss", "perplexity")
# The mean number of words that are generated, whatever is right.
GENERATED_WORDS = "generated_words"
# The micro world's passages with their shorter forms; any other generator is of its instructions.
SUMMARIES = "summaries"


class Turns(Enum):
    """The answers of a conversation: its last one, or each, given all that stands before it."""

    last = "last"
    all = "all"


@dataclass(frozen=True)
class Instruction(PromptTask):
    """A set of instructions, by the names of its columns.

    Attributes:
        answer: Template of the answer, which is trained on and compared with.
        options: The answers to choose from by likelihood, one of which is a row's own; null where there are none.
        choices: The column of a row's own options, a list; its answer is one of them, or its place among them. Null
            where there are none.
        turns: Which answers of a conversation are learned and scored.
        max_new_tokens: Generate at most so many tokens and compare them by `metrics`; null: nothing is generated.
        packing: Fill training rows up to `max_length` with several instructions that do not see each other.
    """

    answer: str
    options: list[str] | None
    choices: str | None
    turns: Turns
    max_new_tokens: int | None
    packing: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unescape("answer")

    def check(self, key: str) -> None:
        super().check(key)
        templates.check(self.answer, f"{key}.answer")
        if self.options is not None and len(set(self.options)) < 2:
            raise ConfigError(f"{key}.options={self.options}: at least two different answers are needed")
        if self.options is not None and self.choices is not None:
            raise ConfigError(
                f"{key}.choices={self.choices}: the options are {key}.options already; keep one of the two"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"{key}.max_new_tokens={self.max_new_tokens}: a positive number, or null, is needed")
        if bool(self.metrics) != (self.max_new_tokens is not None):
            raise ConfigError(
                f"{key}.metrics={self.metrics}: they compare what is generated; set {key}.max_new_tokens with them, "
                "or neither"
            )
        self._check_metrics(key)

    def _check_metrics(self, key: str) -> None:
        for metric in self.metrics:
            if metric not in COMPARED["texts"]:
                raise ConfigError(
                    f"{key}.metrics={metric}: texts are generated, and {', '.join(COMPARED['texts'])} compare those; "
                    "options have accuracy without being asked"
                )

    def on(self, configuration: "PretrainedConfig") -> RowTask:
        """Given to an encoder with a decoder, the one reads the prompt and the other writes the answer."""
        if not getattr(configuration, "is_encoder_decoder", False):
            return super().on(configuration)
        return TextToText.of(self)

    def further_scores(self) -> tuple[str, ...]:
        return (*LANGUAGE_SCORES, *(CHOICE_SCORES if self.options or self.choices else ()))

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

    def columns(self) -> list[str]:
        return list(dict.fromkeys([*super().columns(), *([self.choices] if self.choices else [])]))

    def question_columns(self) -> list[str]:
        return list(dict.fromkeys([*super().question_columns(), *([self.choices] if self.choices else [])]))

    def question(self, row: Row, where: str) -> Row:
        if self.choices is None:
            return super().question(row, where)
        given = row[self.choices]
        options, _ = listed(given)
        if not options:
            raise ConfigError(f"{where}: {self.choices}={given!r}; a list of answers to choose from is needed")
        return {**super().question(row, where), self.choices: options}

    def tidy(self, row: Row) -> list[Row]:
        if self.choices is not None:
            choose(row, self.choices, templates.sole_column(self.answer))
        given = row.get(self.choices) if self.choices else None
        (row,) = super().tidy(row)
        if self.choices is not None and isinstance(given, list):
            row[self.choices] = given
        column = templates.sole_column(self.answer)
        if self.turns is Turns.last or column is None or not conversations.is_one(row[column]):
            return [row]
        # Their number is of the conversation, and would come several times.
        plain = {name: value for name, value in row.items() if name != IDX}
        return [{**plain, column: turn} for turn in conversations.turns(row[column])]

    def check_row(self, row: Row, where: str) -> None:
        super().check_row(row, where)
        options = self.options_of(row)
        if options is not None and self._answer(row) not in options:
            which = "task.options" if self.options else f"its {self.choices}"
            raise ConfigError(f"{where}: {self._answer(row)!r} is none of {which}, {', '.join(options)}")

    def options_of(self, row: Row) -> list[str] | None:
        """What a row's answer is chosen from; null where it is not."""
        return self.options if self.choices is None else row[self.choices]

    def generate(self, split: str, rows: int) -> list[Row]:
        from harness.tasks.micro_instruct import generate

        return generate(split, rows)

    def encode_row(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Features:
        return self.encode_answer(row, self._answer(row), tokenizer)

    def train_on(self, features: list[Features]) -> list[Features]:
        features = super().train_on(features)
        return pack(features, self.max_length) if self.packing else features

    def evaluate(
        self, subject: "Subject", features: list[Features], rows: list[Row], meter: "ForwardMeter | None" = None
    ) -> "Evaluation":
        from harness.training.evaluation import Evaluation
        from harness.training.perplexity import exponential

        nll, tokens = self._answers_nll(subject, features, meter)
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
        if self.options or self.choices:
            self._choose(subject, features, rows, evaluation)
        if self.max_new_tokens is not None:
            self._generate(subject, features, evaluation)
        return evaluation

    def majority(self, data: TaskData, split: str) -> dict[str, float] | None:
        """The score of always giving the training rows' commonest answer, where answers are compared."""
        if not (self.metrics or self.options):
            return None
        answers = Counter(self._answer(row) for row in data.splits["train"])
        commonest = answers.most_common(1)[0][0]
        references = [self._answer(row) for row in data.splits[split]]
        scores = compute(self.metrics, [commonest] * len(references), references)
        if self.options:
            scores |= dict.fromkeys(CHOICE_SCORES, statistics.fmean(one == commonest for one in references))
        return scores

    def infer(self, subject: "Subject", rows: list[Row], max_new_tokens: int | None) -> dict[str, list[Any]]:
        """What the model writes, or which option is the likeliest."""
        most = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        found: dict[str, list[Any]] = {}
        if self.options or self.choices:
            features = [{"prompt_ids": self.prompt_ids(row, subject.tokenizer)} for row in rows]
            options = [self.options_of(row) or [] for row in rows]
            likelihoods = self._option_likelihoods(subject, features, rows, options)
            found = {f"prediction.{name}": chosen for name, chosen in likeliest(options, likelihoods).items()}
            found["log_likelihoods"] = [[total for total, _ in of_row] for of_row in likelihoods]
        if not found or most is not None:
            return {**super().infer(subject, rows, most), **found}
        return {"prediction": found[f"prediction.{CHOICE_SCORES[0]}"], **found}

    def _answers_nll(
        self, subject: "Subject", features: list[Features], meter: "ForwardMeter | None"
    ) -> tuple[list[float], list[int]]:
        """Negative log-likelihood (nats) of each row's answer, and its tokens."""
        from harness.training.perplexity import Window, score_windows

        # The first token of all has nothing before it that predicts it.
        answers = [Window(row["input_ids"], max(1, row["length"] - row["weight"])) for row in features]
        with subject.computing():
            nll = score_windows(subject.model, answers, subject.batch_size, subject.collate.device, meter)
        return nll, [answer.scored for answer in answers]

    def _option_likelihoods(
        self, subject: "Subject", features: list[Features], rows: list[Row], options: list[list[str]]
    ) -> list[list[tuple[float, int]]]:
        """Log-probability of each row's options, and their tokens."""
        from harness.training.generation import option_log_likelihoods

        ids = [
            [self.token_ids(row, option, subject.tokenizer)[1] for option in of_row]
            for row, of_row in zip(rows, options, strict=True)
        ]
        prompts = [row["prompt_ids"] for row in features]
        with subject.computing():
            return option_log_likelihoods(subject.model, prompts, ids, subject.batch_size)

    def _answer(self, row: Row) -> str:
        return templates.fill(self.answer, row, answer_of).strip()

    def _choose(self, subject: "Subject", features: list[Features], rows: list[Row], evaluation: "Evaluation") -> None:
        """Choose among the options by their likelihood, the whole and the mean a token.

        An option's end counts: one may go on where another ends.
        """
        options = [self.options_of(row) or [] for row in rows]
        likelihoods = self._option_likelihoods(subject, features, rows, options)
        references = evaluation.columns["label"]
        for name, chosen in likeliest(options, likelihoods).items():
            right = [float(one == reference) for one, reference in zip(chosen, references, strict=True)]
            evaluation.columns |= {f"prediction.{name}": chosen, name: right}
            evaluation.scores[name] = statistics.fmean(right)
        evaluation.columns["prediction"] = evaluation.columns[f"prediction.{CHOICE_SCORES[0]}"]

    def _generate(self, subject: "Subject", features: list[Features], evaluation: "Evaluation") -> None:
        """Generate answers and compare them."""
        assert self.max_new_tokens is not None
        texts, generated = self.generated(subject, [row["prompt_ids"] for row in features], self.max_new_tokens)
        self._score(texts, evaluation)
        if generated.seconds:
            evaluation.costs["generated_tokens_per_second"] = generated.new_tokens / generated.seconds

    def _score(self, texts: list[str], evaluation: "Evaluation") -> None:
        """Compare what was generated with the answers."""
        references = evaluation.columns["label"]
        evaluation.scores |= compute(self.metrics, texts, references)
        evaluation.columns["prediction"] = texts
        for name in self.metrics:
            one = PER_ROW[name]
            evaluation.columns[name] = [one(text, reference) for text, reference in zip(texts, references, strict=True)]


@dataclass(frozen=True)
class TextToText(Instruction):
    """A prompt that an encoder reads, and the answer that its decoder writes: T5 and its like, BART.

    Attributes:
        max_target_length: Tokens of an answer; `max_length` is the prompt's alone.
        num_beams: Answers that generation keeps side by side; 1 is greedy.
    """

    max_target_length: int
    num_beams: int

    @property
    def kind(self) -> Kind:
        return Kind.seq2seq_lm

    @classmethod
    def of(cls, task: Instruction) -> "TextToText":
        """An instruction set as encoders with decoders are given it.

        Raises:
            ConfigError: It has a setting that only a decoder alone knows.
        """
        values = {field.name: getattr(task, field.name) for field in fields(task)}
        for name in ("prompt", "prompt_without_input", "answer", "system"):
            values[name] = values[name] and templates.escaped(values[name])
        made = cls(**values, max_target_length=task.max_length, num_beams=1)
        made.check_alone("task")
        return made

    def check(self, key: str) -> None:
        super().check(key)
        self.check_alone(key)
        for name, value in {"max_target_length": self.max_target_length, "num_beams": self.num_beams}.items():
            if value < 1:
                raise ConfigError(f"{key}.{name}={value}: a positive number is needed")

    def check_alone(self, key: str) -> None:
        """Refuse what goes with a decoder alone.

        Raises:
            ConfigError: It is asked for.
        """
        if self.packing:
            raise ConfigError(f"{key}.packing=true: an encoder sees all of a row, and instructions can't share one")
        if self.chat_template is not None:
            raise ConfigError(
                f"{key}.chat_template={self.chat_template}: an encoder with a decoder reads a text and not a "
                f"conversation; set {key}.chat_template=null"
            )

    def on(self, configuration: "PretrainedConfig") -> RowTask:
        return RowTask.on(self, configuration)

    def target_length(self) -> int:
        return self.max_target_length

    def beams(self) -> int:
        return self.num_beams

    def further_scores(self) -> tuple[str, ...]:
        return (*super().further_scores(), *(() if self.max_new_tokens is None else (GENERATED_WORDS,)))

    def lengths(self) -> dict[str, int]:
        """Encoder and decoder have positions of their own: the longer of the two counts."""
        all_of_them = {"task.max_length": self.max_length, "task.max_target_length": self.max_target_length}
        if self.max_new_tokens is not None:
            all_of_them["task.max_new_tokens"] = self.max_new_tokens
        longest = max(all_of_them, key=all_of_them.__getitem__)
        return {longest: all_of_them[longest]}

    def generate(self, split: str, rows: int) -> list[Row]:
        from harness.tasks import micro_instruct, micro_summary

        return (micro_summary if self.generator == SUMMARIES else micro_instruct).generate(split, rows)

    def generator_revision(self) -> str:
        return revision_of("micro_summary" if self.generator == SUMMARIES else "micro_instruct")

    def encode_row(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Features:
        return self._pair(row, self._answer(row), tokenizer)

    def prompt_ids(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Token ids that the encoder reads: the beginning of a text that is too long."""
        return list(tokenizer(self.shown(row), truncation=True, max_length=self.max_length)["input_ids"])

    def _pair(self, row: Row, answer: str, tokenizer: "PreTrainedTokenizerBase") -> Features:
        lengths = self.max_length, self.max_target_length
        return encoded_pair(self.shown(row), answer_ids(answer, tokenizer), tokenizer, lengths)

    def _answers_nll(
        self, subject: "Subject", features: list[Features], meter: "ForwardMeter | None"
    ) -> tuple[list[float], list[int]]:
        return answers_nll(subject, features, meter), [row["weight"] for row in features]

    def _option_likelihoods(
        self, subject: "Subject", features: list[Features], rows: list[Row], options: list[list[str]]
    ) -> list[list[tuple[float, int]]]:
        pairs = [
            self._pair(row, option, subject.tokenizer)
            for row, of_row in zip(rows, options, strict=True)
            for option in of_row
        ]
        scored = zip(answers_nll(subject, pairs), pairs, strict=True)
        likelihoods = iter([(-nll, pair["weight"]) for nll, pair in scored])
        return [[next(likelihoods) for _ in of_row] for of_row in options]

    def _score(self, texts: list[str], evaluation: "Evaluation") -> None:
        super()._score(texts, evaluation)
        lengths = [len(words(text)) for text in texts]
        evaluation.columns[GENERATED_WORDS] = lengths
        evaluation.scores[GENERATED_WORDS] = statistics.fmean(lengths)

"""Instructions with an answer: supervised fine-tuning, scored on the answer alone."""

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.architectures import Kind
from harness.batches import IGNORED
from harness.config import ConfigError
from harness.tasks import Collate, Features, Row, TaskData, templates
from harness.tasks.rows import RowTask, check_text

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device
    from transformers import PreTrainedTokenizerBase

    from harness.architectures import Backbone
    from harness.batches import Batch
    from harness.evaluate import Evaluation, Subject
    from harness.measure import ForwardMeter
    from harness.methods import Adapter

LANGUAGE_SCORES = ("loss", "perplexity")
# Of the options: by the likelihood of the whole, and by its mean a token, which does not favour short ones.
CHOICE_SCORES = ("accuracy", "accuracy_normalized")


@dataclass(frozen=True)
class Instruction(RowTask):
    """A set of instructions, by the names of its columns.

    Attributes:
        prompt: Template of the prompt.
        prompt_without_input: Template for rows whose `input` column is empty; null: `prompt` serves for all.
        input: The column that may be empty; null where there is none.
        answer: Template of the answer, which is trained on and compared with.
        chat_template: null for the prompt as it is; `tokenizer`, or Jinja, for a conversation.
        system: What a conversation begins with.
        options: The answers to choose from by likelihood, one of which is a row's own; null where there are none.
        max_new_tokens: Generate at most so many tokens and compare them by `metrics`; null: nothing is generated.
        packing: Fill training rows up to `max_length` with several instructions that do not see each other.
    """

    prompt: str
    prompt_without_input: str | None
    input: str | None
    answer: str
    chat_template: str | None
    system: str | None
    options: list[str] | None
    max_new_tokens: int | None
    packing: bool

    def check(self, key: str) -> None:
        super().check(key)
        for name in ("prompt", "prompt_without_input", "answer"):
            template = getattr(self, name)
            if template is not None and not templates.columns_of(template, f"{key}.{name}"):
                raise ConfigError(f"{key}.{name}={template!r}: no column in braces, so all rows would be alike")
        if self.prompt_without_input is not None and self.input is None:
            raise ConfigError(f"{key}.input=null: prompt_without_input needs to know which column may be empty")
        if self.options is not None and len(set(self.options)) < 2:
            raise ConfigError(f"{key}.options={self.options}: at least two different answers are needed")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"{key}.max_new_tokens={self.max_new_tokens}: a positive number, or null, is needed")
        if bool(self.metrics) != (self.max_new_tokens is not None):
            raise ConfigError(
                f"{key}.metrics={self.metrics}: they compare what is generated; set {key}.max_new_tokens with them, "
                "or neither"
            )
        if self.system is not None and self.chat_template is None:
            raise ConfigError(f"{key}.system: only a conversation has one; set {key}.chat_template")

    def further_scores(self) -> tuple[str, ...]:
        return (*LANGUAGE_SCORES, *(CHOICE_SCORES if self.options else ()))

    @property
    def kind(self) -> Kind:
        return Kind.causal_lm

    @property
    def labels_count(self) -> None:
        """The backbone's own output layer answers."""
        return None

    @property
    def regression(self) -> bool:
        return False

    def lengths(self) -> dict[str, int]:
        generated = {} if self.max_new_tokens is None else {"task.max_new_tokens": self.max_new_tokens}
        return {"task.max_length": self.max_length, **generated}

    def columns(self) -> list[str]:
        named = [
            templates.columns_of(text, "task") for text in (self.prompt, self.prompt_without_input, self.answer) if text
        ]
        return list(dict.fromkeys(column for columns in named for column in columns))

    def check_row(self, row: Row, where: str) -> None:
        check_text(row, self.columns(), where)
        for what, template in {"prompt": self._template(row), "answer": self.answer}.items():
            named = templates.columns_of(template, "task")
            if not any(row[column].strip() for column in named):
                raise ConfigError(f"{where}: the {what} is empty ({', '.join(named)}); remove the row")
        if self.options and self._answer(row) not in self.options:
            raise ConfigError(f"{where}: {self._answer(row)!r} is none of task.options, {', '.join(self.options)}")

    def shown(self, row: Row) -> str:
        return templates.fill(self._template(row), row)

    def generate(self, split: str, rows: int) -> list[Row]:
        from harness.tasks.micro_instruct import generate

        return generate(split, rows)

    def generator_revision(self) -> str:
        from harness.tasks.micro_instruct import fingerprint

        return fingerprint()

    def encode(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        return [self._encode(row, tokenizer) for row in rows]

    def train_on(self, features: list[Features]) -> list[Features]:
        features = super().train_on(features)
        return pack(features, self.max_length) if self.packing else features

    def collator(self, backbone: "Backbone", tokenizer: "PreTrainedTokenizerBase", device: "Device") -> Collate:
        from harness.batches import collator_for

        return collator_for(backbone, tokenizer, device)

    def loss(self, adapter: "Adapter", batch: "Batch") -> "Tensor":
        return adapter.model(**batch.inputs).loss

    def evaluate(
        self, subject: "Subject", features: list[Features], rows: list[Row], meter: "ForwardMeter | None" = None
    ) -> "Evaluation":
        from harness.evaluate import Evaluation, answer_losses
        from harness.perplexity import exponential

        nll, tokens = answer_losses(subject, features, meter)
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

    def _template(self, row: Row) -> str:
        if self.prompt_without_input is not None and not str(row[str(self.input)]).strip():
            return self.prompt_without_input
        return self.prompt

    def _answer(self, row: Row) -> str:
        return templates.fill(self.answer, row).strip()

    def _encode(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Features:
        """Prompt and answer as token ids; the loss counts the answer and the end of sequence after it."""
        if self.chat_template is not None:
            prompt, answer = templates.chat_ids(
                self.shown(row), self._answer(row), self.system, self.chat_template, tokenizer
            )
        else:
            # Apart, so that a prompt has the same tokens in training as when an answer is to be generated.
            prompt = templates.beginning(tokenizer) + templates.token_ids(self.shown(row), tokenizer)
            answer = [*templates.token_ids(self._answer(row), tokenizer), templates.end_of_sequence(tokenizer)]
        return encoded(prompt, answer, self.max_length)

    def _choose(self, subject: "Subject", features: list[Features], evaluation: "Evaluation") -> None:
        """Choose among the options by their likelihood, the whole and the mean a token."""
        from harness.generation import option_log_likelihoods

        assert self.options is not None
        ids = [templates.token_ids(option, subject.tokenizer) for option in self.options]
        prompts = [row["prompt_ids"] for row in features]
        with subject.computing():
            found = option_log_likelihoods(
                subject.model, subject.tokenizer, prompts, [ids] * len(prompts), subject.batch_size
            )
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


def encoded(prompt: list[int], answer: list[int], max_length: int) -> Features:
    """A prompt and its answer as one row, cut at the end; the loss counts what is left of the answer."""
    whole = (prompt + answer)[:max_length]
    left = max(0, len(whole) - len(prompt))
    return {
        "input_ids": whole,
        "attention_mask": [1] * len(whole),
        # The first token is foretold by nothing, or by virtual tokens, which do not count.
        "labels": [IGNORED] * (len(whole) - left) + whole[len(whole) - left :],
        # The end of a prompt that is too long, which is where the question stands.
        "prompt_ids": prompt[-max_length:],
        "length": len(whole),
        "weight": left,
        "cut": 0 < left < len(answer),
    }


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

"""Script that a reader of the documentation of transformers and peft would write: one run, one process.

    python trainer_script.py MODEL DATA METHOD SEED EPOCHS OUTPUT

After https://huggingface.co/docs/transformers/training and https://huggingface.co/docs/peft/quicktour. The settings are
those of conf/train and conf/method, so that the scores can be compared. Prints one line of JSON.
"""

import json
import sys
import time

import numpy as np
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

LEARNING_RATES = {"full": 2e-4, "lora": 2e-3}


def train(folder: str, data: str, method: str, seed: int, epochs: float, output: str) -> dict[str, float]:
    """Train on one sentence or two, choose the best epoch on development, score validation.

    A label with a fraction is a number to predict, scored by its correlation; any other is a class.
    """
    files = {split: f"{data}/{split}.jsonl" for split in ("train", "development", "validation")}
    dataset = load_dataset("json", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [name for name in dataset["train"].column_names if name.startswith("sentence")]
    regression = dataset["train"].features["label"].dtype.startswith("float")

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return tokenizer(*(batch[name] for name in texts), truncation=True, max_length=128)

    dataset = dataset.map(tokenize, batched=True)
    metric, score = "accuracy", lambda answers, labels: float(np.mean(answers.argmax(-1) == labels))
    if regression:
        metric, score = "pearson", lambda answers, labels: float(np.corrcoef(answers[:, 0], labels)[0, 1])
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1 if regression else 2)
    if method == "lora":
        model = get_peft_model(
            model, LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
        )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=output,
            learning_rate=LEARNING_RATES[method],
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            num_train_epochs=epochs,
            weight_decay=0.01,
            warmup_steps=0.06,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model=metric,
            greater_is_better=True,
            seed=seed,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=dataset["train"],
        eval_dataset=dataset["development"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {metric: score(found.predictions, found.label_ids)},
    )
    start = time.perf_counter()
    trainer.train()
    found = trainer.evaluate(dataset["validation"])[f"eval_{metric}"]
    return {"score": found, "train_seconds": time.perf_counter() - start}


if __name__ == "__main__":
    folder, data, method, seed, epochs, output = sys.argv[1:]
    print(json.dumps(train(folder, data, method, int(seed), float(epochs), output)), flush=True)

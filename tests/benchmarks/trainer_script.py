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


def main(folder: str, data: str, method: str, seed: int, epochs: float, output: str) -> None:
    """Train, choose the best epoch on development, score validation."""
    files = {split: f"{data}/{split}.jsonl" for split in ("train", "development", "validation")}
    dataset = load_dataset("json", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return tokenizer(batch["sentence"], truncation=True, max_length=128)

    dataset = dataset.map(tokenize, batched=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
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
            metric_for_best_model="accuracy",
            seed=seed,
            report_to="none",
        ),
        train_dataset=dataset["train"],
        eval_dataset=dataset["development"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))},
    )
    start = time.perf_counter()
    trainer.train()
    accuracy = trainer.evaluate(dataset["validation"])["eval_accuracy"]
    print(json.dumps({"accuracy": accuracy, "train_seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    folder, data, method, seed, epochs, output = sys.argv[1:]
    main(folder, data, method, int(seed), float(epochs), output)

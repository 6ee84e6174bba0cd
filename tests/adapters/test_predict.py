"""`harness-predict`: a trained adapter answers the rows of a file as its run answered its own, window by window."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browsing import tracking_server
from trained import CLASSES, train

from harness import tracking
from harness.adapters import predict
from harness.adapters.trained import find
from harness.config.errors import ConfigError
from harness.tasks import files

TinyModel = Callable[[str], Path]
# Task, architecture and method; the last ones share what the first show.
RUNS = [
    ("classes", "bert", "bitfit"),
    ("number", "bert", "lora"),
    ("generation", "llama", "lora"),
    ("text2text", "t5", "lora"),
    pytest.param("classes", "gpt2", "prompt_tuning", marks=pytest.mark.slow),
    pytest.param("classes", "bert", "houlsby", marks=pytest.mark.slow),
    pytest.param("options", "llama", "lora", marks=pytest.mark.slow),
    pytest.param("options", "t5", "lora", marks=pytest.mark.slow),
    pytest.param("verbalized", "t5", "lora", marks=pytest.mark.slow),
    pytest.param("generation", "llama", "prefix_tuning", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Callable[..., Path]:
    """The directory of a run, carried out when it is first asked for."""
    made: dict[tuple[str, ...], Path] = {}

    def make(task: str, model: str, method: str) -> Path:
        key = (task, model, method)
        if key not in made:
            made[key] = train(tmp_path_factory.mktemp("-".join(key)), tiny_model(model), task, f"method={method}")
        return made[key]

    return make


def questions(run_dir: Path, file: Path) -> Path:
    """The validation rows without their answers."""
    rows = [json.loads(line) for line in (run_dir.parent / "data/validation.jsonl").read_text().splitlines()]
    both = "number" in str(run_dir)  # the second text of a pair is a question too
    kept = ("text", "idx", "reply") if both else ("text", "idx")
    file.write_text("".join(json.dumps({name: row[name] for name in kept}) + "\n" for row in rows))
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model", "method"), RUNS)
def test_the_rows_of_the_run_get_its_own_answers_to_the_bit(
    task: str, model: str, method: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """Of a file that lacks the answers, with the same batches."""
    run_dir = trained(task, model, method)
    data = questions(run_dir, tmp_path / "new.jsonl")
    assert predict.main([f"adapter={run_dir}", f"data={data}", "out=answers.parquet", "keep=idx"]) == 0
    ours = pd.read_parquet("answers.parquet")
    theirs = pd.read_parquet(run_dir / "predictions.parquet").query("split == 'validation'").reset_index(drop=True)
    assert ours["row"].tolist() == list(range(23))
    assert ours["idx"].tolist() == theirs["idx"].astype(str).tolist()
    named = "prediction_name" if "prediction_name" in theirs else "prediction"
    assert ours["prediction"].tolist() == theirs[named].tolist()
    if task == "classes":
        assert [row.tolist() for row in ours["scores"]] == [row.tolist() for row in theirs["scores"]]
        likeliest = [max(row, key=row.get) for row in ours["probabilities"]]
        assert likeliest == ours["prediction"].tolist()
        assert set(ours["probabilities"][0]) == set(CLASSES)
        assert ours["probability"].tolist() == [
            row[name] for name, row in zip(likeliest, ours["probabilities"], strict=True)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "bitfit", "houlsby", "diff_pruning"])
def test_a_run_in_lower_precision_gives_its_own_answers_too(method: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """What was trained stays in float32 on a backbone that is stored in less."""
    run_dir = train(tmp_path / "low", tiny_model("bert"), "classes", f"method={method}", "train.precision=bfloat16")
    data = questions(run_dir, tmp_path / "new.jsonl")
    assert predict.main([f"adapter={run_dir}", f"data={data}", "out=answers.parquet"]) == 0
    ours = pd.read_parquet("answers.parquet")
    theirs = pd.read_parquet(run_dir / "predictions.parquet").query("split == 'validation'")
    assert [row.tolist() for row in ours["scores"]] == [row.tolist() for row in theirs["scores"]]


def test_rows_are_answered_as_they_are_read(trained: Callable[..., Path], tmp_path: Path) -> None:
    """The first windows are there before a later row is looked at; a file that ends badly leaves nothing behind."""
    run_dir = trained("classes", "bert", "bitfit")
    lines = questions(run_dir, tmp_path / "new.jsonl").read_text().splitlines()
    (tmp_path / "new.jsonl").write_text("\n".join([*lines, '{"text": null}']) + "\n")
    task, subject = find(str(run_dir), predict.STORE).on_backbone(None, "cpu")
    wanted = predict.parse([f"adapter={run_dir}", "data=new.jsonl", "out=answers.parquet", "window=10"])
    windows = predict.answered(task, subject, Path("new.jsonl"), [], wanted)
    assert [next(windows)["row"], next(windows)["row"]] == [list(range(10)), list(range(10, 20))]
    with pytest.raises(ConfigError, match=r"data=new\.jsonl, row 24: text=None is not text"):
        next(windows)
    assert predict.main([f"adapter={run_dir}", "data=new.jsonl", "out=answers.parquet", "window=10"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.jsonl"]


def test_windows_change_no_answer(
    trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other batches move a logit's last digits at most; words of a CSV file serve as well as those of JSON."""
    run_dir = trained("classes", "bert", "bitfit")
    rows = pd.read_json(questions(run_dir, tmp_path / "new.jsonl"), lines=True)
    rows.to_csv("new.csv", index=False)
    shared = [f"adapter={run_dir / 'adapter'}"]
    assert predict.main([*shared, "data=new.jsonl", "out=whole.parquet"]) == 0
    assert predict.main([*shared, "data=new.csv", "out=parts.parquet", "window=4", "batch_size=3"]) == 0
    whole, parts = pd.read_parquet("whole.parquet"), pd.read_parquet("parts.parquet")
    assert whole["prediction"].tolist() == parts["prediction"].tolist()
    for one, other in zip(whole["scores"], parts["scores"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    counts = whole["prediction"].value_counts()
    told = capsys.readouterr().out
    assert all(f"{name} {count}" in told for name, count in counts.items())


def test_a_column_that_the_first_objects_leave_out_is_there(
    trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy is empty where it is left out; one that no object has is refused with what there is."""
    monkeypatch.setattr(files, "GLANCED_AT", 1)
    run_dir = trained("classes", "bert", "bitfit")
    Path("new.jsonl").write_text('{"text": "word1"}\n{"text": "word2"}\n{"id": "7", "text": "word3"}\n')
    told = [f"adapter={run_dir}", "data=new.jsonl", "out=answers.parquet"]
    assert predict.main([*told, "keep=id"]) == 0
    assert pd.read_parquet("answers.parquet")["id"].tolist() == ["", "", "7"]
    Path("answers.parquet").unlink()
    assert predict.main([*told, "keep=idx"]) == 2
    assert "keep=idx: data=new.jsonl has no such column; did you mean id? Valid: id, text" in capsys.readouterr().err


BAD = {
    "out=answers.csv": "out=answers.csv: the answers are written as Parquet",
    "out=new.jsonl.parquet": "it exists and is not overwritten",
    "out=nowhere/answers.parquet": "there is no folder nowhere",
    "data=other.jsonl": "data=other.jsonl: no column 'text', which the adapter reads; did you mean txt? Valid: txt",
    "data=empty.csv": "data=empty.csv is empty",
    "data=missing.csv": "data=missing.csv: there is no such file",
    "data=rows.xlsx": ".jsonl, .json, .csv",
    "keep=customer": "keep=customer: data=new.jsonl has no such column; Valid: idx, text",
    "window=0": "window=0: a positive number is needed",
    "max_new_tokens=4": "max_new_tokens=4: task=mine generates no text",
    "batch_size=many": "batch_size=many: a whole number is allowed",
    "device=tpu": "device=tpu: auto or cpu or cuda is allowed",
    "modle=x": "did you mean model?",
    "model={other}": "is another one",
    "model={nowhere}": "there is no such folder",
    "adapter={parent}": "holds no result.json",
    "adapter=0123": "is not the beginning of the id of one of the 0 runs in sqlite:///mlflow.db",
}  # fmt: skip


@pytest.mark.parametrize(("argument", "sentence"), BAD.items(), ids=BAD)
def test_a_mistake_is_told_in_one_sentence(
    argument: str,
    sentence: str,
    trained: Callable[..., Path],
    tiny_model: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2, and nothing is written."""
    run_dir = trained("classes", "bert", "bitfit")
    questions(run_dir, tmp_path / "new.jsonl")
    Path("new.jsonl.parquet").touch()
    Path("other.jsonl").write_text('{"txt": "word1"}\n')
    Path("empty.csv").touch()
    Path("rows.xlsx").touch()
    before = set(tmp_path.rglob("*"))
    places = {"other": tiny_model("roberta"), "nowhere": tmp_path / "nowhere", "parent": tmp_path}
    given = dict(one.split("=") for one in (f"adapter={run_dir}", "data=new.jsonl", "out=answers.parquet"))
    key, value = argument.format(**places).split("=")
    assert predict.main([f"{name}={text}" for name, text in {**given, key: value}.items()]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told
    assert set(tmp_path.rglob("*")) == before


def test_what_is_needed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """The first key that is missing."""
    assert predict.main(["adapter=x"]) == 2
    assert "data=: a file of rows is needed" in capsys.readouterr().err


def test_a_run_without_an_adapter_or_with_another_runs_has_nothing_to_answer_with(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    """A record alone is no model; one run's record says nothing of another's adapter."""
    run_dir = trained("classes", "bert", "bitfit")
    (tmp_path / "bare").mkdir()
    record = json.loads((run_dir / "result.json").read_text())
    (tmp_path / "bare/result.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"kept no adapter \(train.keep_adapter=false\)"):
        find("bare", predict.STORE)
    (tmp_path / "bare/adapter").symlink_to(run_dir / "adapter")
    (tmp_path / "bare/result.json").write_text(json.dumps({**record, "identity": "0"}))
    with pytest.raises(ConfigError, match="of two runs"):
        find("bare", predict.STORE)


def test_running_text_asks_nothing(tmp_path: Path) -> None:
    """A language model of text has a perplexity, and no answers."""
    from harness.config.build import build
    from harness.config.compose import compose

    task: Any = build(compose("config", ["model=micro_decoder", "task=lm/micro"])).task
    with pytest.raises(ConfigError, match="running text asks nothing"):
        task.question_columns()


@pytest.mark.slow
def test_a_run_is_found_in_its_store_by_the_beginning_of_its_id(trained: Callable[..., Path], tmp_path: Path) -> None:
    """The store keeps the adapter, so that the run directory need not be there; two runs need more of an id."""
    run_dir = trained("classes", "bert", "bitfit")
    shutil.copytree(run_dir, tmp_path / "twin")
    record = json.loads((run_dir / "result.json").read_text())
    alike = record["run_id"][:8] + "f" * 24
    (tmp_path / "twin/result.json").write_text(json.dumps({**record, "run_id": alike}))
    for folder in (run_dir, tmp_path / "twin"):
        tracking.send(folder, "sqlite:///mlflow.db", "e")
    shutil.rmtree(tmp_path / "twin")
    found = find(alike[:12], "sqlite:///mlflow.db")
    assert found.result.run_id == alike
    assert found.saved.folder.parent != run_dir
    with pytest.raises(ConfigError, match="the beginning of 2 ids"):
        find(alike[:8], "sqlite:///mlflow.db")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_a_server_answers_from_what_the_server_has(
    trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its directory is gone; the adapter is fetched once and asked as any other, and one that was not kept is named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run_dir = trained("classes", "bert", "bitfit")
    run_id = json.loads((run_dir / "result.json").read_text())["run_id"]
    data = questions(run_dir, tmp_path / "new.jsonl")
    shutil.copytree(run_dir, tmp_path / "gone")
    shutil.copytree(run_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("adapter"))
    bare = "f" * 32
    (tmp_path / "bare/result.json").write_text((run_dir / "result.json").read_text().replace(run_id, bare))
    assert predict.main([f"adapter={run_dir}", f"data={data}", "out=here.parquet"]) == 0
    with tracking_server(tmp_path) as server:
        for folder in ("gone", "bare"):
            tracking.send(tmp_path / folder, server, "e")
            shutil.rmtree(tmp_path / folder)
        asked = [f"adapter={run_id[:10]}", f"data={data}", f"tracking.uri={server}"]
        assert predict.main([*asked, "out=there.parquet"]) == 0
        files = sorted(path for path in (tmp_path / "cache").rglob("*") if "artifacts" in path.parts)
        before = {path: path.stat().st_mtime_ns for path in files}
        assert before
        assert predict.main([*asked, "out=again.parquet"]) == 0
        assert {path: path.stat().st_mtime_ns for path in files} == before
        capsys.readouterr()
        assert predict.main([f"adapter={bare}", f"data={data}", f"tracking.uri={server}", "out=no.parquet"]) == 2
        assert "the run kept no adapter" in capsys.readouterr().err
    here, there, again = (pd.read_parquet(f"{name}.parquet") for name in ("here", "there", "again"))
    pd.testing.assert_frame_equal(here, there)
    pd.testing.assert_frame_equal(here, again)


@pytest.mark.parametrize("module", ["predict", "export"])
def test_help_needs_nothing_heavy(module: str) -> None:
    """Neither torch nor pandas is imported for it."""
    code = (
        f"import sys; from harness.adapters import {module} as m; assert m.main(['--help']) == 0; "
        "print({'torch', 'transformers', 'mlflow', 'pandas', 'peft', 'huggingface_hub'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"

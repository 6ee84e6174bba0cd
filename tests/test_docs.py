"""README and docs/: every command can be given, every link leads somewhere, every key's description is found."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import warm
import yaml

from harness.adapters import export, predict
from harness.catalog import KINDS, read_keys
from harness.choose.__main__ import parse as parse_choice
from harness.config.build import build
from harness.config.compose import compose
from harness.plan.__main__ import expand
from harness.plan.__main__ import parse as parse_plan
from harness.report.__main__ import parse as parse_report

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(?:bash|console)\n(.*?)```", re.DOTALL)
# What a shell runs that is not ours.
NOT_OURS = ("pip", "sudo", "export", "mlflow", "complete", "uv")


def commands() -> Iterator[tuple[str, str]]:
    """Yield page and command, for each line of a block for the shell."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ")
                for part in re.split(r" && | & *(?:#|$)", line.partition(" #")[0]):
                    if part.strip() and not part.startswith(("#", "...")):
                        yield page.name, part.strip()


COMMANDS = sorted(set(commands()))


def test_there_are_commands_to_look_at() -> None:
    """Of each page that has some; a block that is not found would be a command that is not tested."""
    assert len(COMMANDS) > 40
    assert {"README.md", "index.md", "compare.md", "reports.md", "sweeps.md", "tasks.md"} <= {
        page for page, _ in COMMANDS
    }


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_every_command_is_one(page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration is composed and checked, point by point; keys of the others are parsed; files are there."""
    monkeypatch.chdir(tmp_path)
    # What stands for the reader's own is there, as a name alone.
    monkeypatch.setenv("HARNESS_REAL_DATA", str(tmp_path))
    Path("FOLDER").mkdir()
    name, *arguments = shlex.split(command)
    if name == "harness":
        check_run(arguments)
    elif name == "harness-report":
        Path("reports").mkdir()
        parse_report(arguments)
    elif name == "harness-plan":
        config, overrides, grid, _ = parse_plan(arguments)
        for point in expand(config, overrides, grid):
            compose(config, point)
    elif name == "harness-doctor":
        assert arguments == []
    elif name == "harness-choose":
        parse_choice(arguments)
    elif name == "harness-predict":
        predict.parse(arguments)
    elif name == "harness-export":
        export.parse(arguments)
    elif name == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments)
    elif name == "python":
        assert arguments[0] == "-m", command
        assert importlib.util.find_spec(arguments[1]) is not None
        if arguments[1] == "harness.claims":
            from harness.claims.__main__ import parse

            parse(arguments[2:])
    elif name == "eval":
        assert arguments == ["$(harness completion)"]
    elif name.endswith(".sh"):
        assert (ROOT / name).is_file()
    else:
        assert name in NOT_OURS, f"{page}: {command}: nothing here knows it"


def check_run(arguments: list[str]) -> None:
    """Compose and build what `harness` would run; what stands for a file or folder of the reader's is left as it is."""
    if arguments[:1] in (["list"], ["completion"]):
        assert arguments[0] == "completion" or not arguments[1:] or arguments[1] in KINDS
        return
    if "--cfg" in arguments:
        arguments = []
    config, overrides, grid, _ = parse_plan(arguments)
    points = list(expand(config, overrides, grid))
    assert points
    # Every point of a shipped sweep is looked at where sweeps are tested.
    for point in {tuple(points[0]): points[0], tuple(points[-1]): points[-1]}.values():
        cfg = compose(config, point)
        if not any("FOLDER" in text or "FILE" in text or ".csv" in text or "runs/" in text for text in point):
            build(cfg)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """Relative to the page, as a forge shows it."""
    text = page.read_text(encoding="utf-8")
    generated = {ROOT / "docs" / name for name in hooks().PAGES}
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if target.startswith(("http:", "https:", "#")):
            continue
        place, _, heading = target.partition("#")
        found = (page.parent / place).resolve()
        assert found.exists() or found in generated, f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short() -> None:
    """At most 150 lines."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_of_a_run_has_a_description() -> None:
    """The reference has every key of conf/config.yaml with its default, and words for each section."""
    found = {key: (default, said) for key, default, said in read_keys(ROOT / "conf/config.yaml", "")}
    assert found["seed"][0] == "0"
    assert found["forgetting.text"][1].startswith("General text on which a model is asked before and after training")
    config = compose("config", [])
    sections = ("evaluate", "forgetting", "measure", "sweep")
    assert {f"{section}.{key}" for section in sections for key in config[section]} <= set(found)


def test_the_guide_says_what_the_claims_say() -> None:
    """Each question has its verdict, and none is typed in."""
    text = hooks().choose()
    assert len(re.findall(r"^## .*\?$", text, re.MULTILINE)) == len(hooks().QUESTIONS)
    assert len(
        re.findall(r"^\*\*(Supported|Refuted|Mixed|Not testable at this scale)\*\*: ", text, re.MULTILINE)
    ) == len(hooks().QUESTIONS)


def test_the_site_is_deployed_as_make_builds_it() -> None:
    """The workflow runs `make site`, uploads the folder that it writes, and alone its deployment may write pages."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8"))
    build, deploy = workflow["jobs"]["build"], workflow["jobs"]["deploy"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [command] = [step["run"] for step in build["steps"] if "run" in step]
    assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE)
    [uploaded] = [step["with"]["path"] for step in build["steps"] if "upload-pages-artifact" in step.get("uses", "")]
    assert re.search(rf"^SITE := {uploaded}$", makefile, re.MULTILINE)
    assert deploy["needs"] == "build"
    assert any("deploy-pages" in step.get("uses", "") for step in deploy["steps"])
    assert workflow["permissions"] == {"contents": "read"}
    assert deploy["permissions"] == {"pages": "write", "id-token": "write"}
    # Of a pull request anything may come.
    assert "pull_request" in deploy["if"]


@pytest.mark.slow
def test_the_documentation_is_built_without_a_warning(tmp_path: Path) -> None:
    """As `make docs` builds it, without a network."""
    pytest.importorskip("material", reason="pip install 'peft-harness[docs]' brings what builds the documentation")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "docs")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    names = {path.name for path in (tmp_path / "docs").glob("*.html")}
    assert {"index.html", "choose.html", "keys.html", "record.html", "api.html", "faq.html"} <= names
    page = (tmp_path / "docs/index.html").read_text()
    assert not re.findall(r'(?:src|href)="https?://(?!github|squidfunk)[^"]+\.(?:js|css|woff2?)"', page)


def cells_of(notebook: Path) -> list[str]:
    """The code of a notebook, cell by cell."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    """In an empty folder and one process, as a kernel would; both adapters answer on the one backbone."""
    [notebook] = (ROOT / "docs").glob("*.ipynb")
    cells = cells_of(notebook)
    assert any("load_runs" in cell for cell in cells)
    assert any("AdapterSet" in cell for cell in cells)
    ended = subprocess.run([sys.executable, "-c", "\n".join(cells)], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = dict(re.findall(r"^(micro/\w+) \[(.*)\]$", ended.stdout, re.MULTILINE))
    answers = {task: [float(share) for share in shares.split(", ")] for task, shares in found.items()}
    assert {task: len(shares) for task, shares in answers.items()} == {"micro/sentiment": 2, "micro/entailment": 3}
    assert all(sum(shares) == pytest.approx(1, abs=1e-5) for shares in answers.values())


def test_the_notebook_holds_no_outputs() -> None:
    """They would go stale; a forge shows the text and the code."""
    for path in (ROOT / "docs").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert cell.get("outputs", []) == []
            assert cell.get("execution_count") is None


# At these sizes a run takes seconds. Sweeps of hundreds of runs, and what needs a cluster, a server, the Hub or files
# of the reader's, are composed only, above.
TINY = "train.max_steps=2 task.max_train_rows=64 task.max_development_rows=32 forgetting.text=null".split()
ELSEWHERE = re.compile(
    r"watch=|stop=|ray|slurm|server|-cn (?!demo)|others=|ui=true|/A,|instruct_methods|lm/|instruct/|preference/"
)
# Of the other pages, what answers in seconds: all of their commands took 21 minutes, and are composed and parsed above.
SECONDS = re.compile(
    r"^(harness list|harness --cfg|harness-plan|harness-report (--sync|store=)"
    r"|python -m harness\.(claims cases=|report\.site)|harness model=micro_seq2seq)"
)
ORDER = ("harness", "harness-report", "harness-predict", "harness-export", "harness-plan", "harness-doctor", "python")


def run_one_after_the_other(told: list[list[str]], folder: Path) -> None:
    """In a folder, as a reader would: runs and sweeps at tiny size, then reports, plans and the rest."""
    for name, *arguments in sorted(told, key=lambda words: ORDER.index(words[0])):
        single = name == "harness" and arguments[:1] not in (["list"], ["completion"], ["--cfg"])
        if single:
            arguments += [text for text in TINY if not ("task=table" in arguments and "max_train_rows" in text)]
        module = {
            "harness-report": "harness.report",
            "harness-plan": "harness.plan",
            "harness-doctor": "harness.doctor",
            "harness-predict": "harness.adapters.predict",
            "harness-export": "harness.adapters.export",
        }
        if name in ("harness-predict", "harness-export"):
            # The reader's own run: here the one on the table, which `tickets.csv` is new rows of.
            runs = (path.parent for path in folder.rglob("result.json") if "tickets" in path.read_text())
            run_dir = next(path for path in runs if (path / "adapter").is_dir())
            arguments = [text.replace("adapter=RUN", f"adapter={run_dir}") for text in arguments]
        if name == "python":
            (_, named), arguments = arguments[:2], arguments[2:]
        else:
            named = module.get(name, "harness")
        ended = warm.run(named, arguments, folder)
        assert ended.returncode == 0, f"{name} {' '.join(arguments)}: {ended.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_readmes_commands_run_one_after_the_other(tmp_path: Path) -> None:
    """In an empty folder with what stands for the reader's own."""
    (tmp_path / "FOLDER").symlink_to(ROOT / "harness/pretrained/micro_encoder")
    rows = [f"{word} thing number {n},{word}" for n in range(60) for word in ("refund", "login")]
    (tmp_path / "tickets.csv").write_text("\n".join(["text,category", *rows]) + "\n")
    told = [shlex.split(command) for command in dict.fromkeys(c for page, c in commands() if page == "README.md")]
    ours = [words for words in told if words[0] in ORDER and not ELSEWHERE.search(" ".join(words))]
    assert len(ours) > 5
    run_one_after_the_other(ours, tmp_path)


@pytest.mark.slow
def test_the_other_pages_commands_that_take_seconds_run(tmp_path: Path) -> None:
    """In a folder with the published reports; each of these kinds is on a page."""
    shutil.copytree(ROOT / "reports", tmp_path / "reports")
    told = {command for page, command in COMMANDS if page != "README.md" and SECONDS.match(command)}
    kinds = {SECONDS.match(command)[1] for command in told}  # type: ignore[index]
    assert len(kinds) >= 8, kinds
    run_one_after_the_other([shlex.split(command) for command in sorted(told)], tmp_path)
    assert (tmp_path / "claims/claims.md").is_file()
    assert list((tmp_path / "runs").rglob("result.json"))

"""`harness list` and `harness completion`: everything that can be chosen, and Tab for every command."""

import shutil
import subprocess

import pytest

from harness import catalog, completion
from harness.config.mistakes import choices, primary_configs


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert catalog.main(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("kind", "names"),
    [("methods", choices("method")), ("tasks", choices("task")), ("models", choices("model")),
     ("sweeps", primary_configs() - {"config"})],
)  # fmt: skip
def test_everything_to_choose_has_a_line_that_says_what_it_is(
    kind: str, names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each, none of them empty, and none with a command in it."""
    told = dict(line.split(None, 1) for line in lines(capsys, kind))
    assert set(told) == names
    assert all(len(text) > 8 and "harness " not in text for text in told.values())


def test_what_is_not_a_file_is_listed_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics say what they compare, and the whole list counts each kind."""
    metrics = dict(line.split(None, 1) for line in lines(capsys, "metrics"))
    assert metrics["accuracy"] == "compares classes, higher is better"
    assert {"all_methods", "lora_rank"} <= {line.split()[0] for line in lines(capsys, "reports")}
    assert [line.split()[0] for line in lines(capsys)] == list(catalog.KINDS)


def test_words_choose_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all methods those with the word, whatever its case; a kind that there is none of is a mistake."""
    assert [line.split()[0] for line in lines(capsys, "methods", "BIAS", "terms")] == ["bitfit"]
    assert catalog.main(["method"]) == 2
    assert "did you mean methods" in capsys.readouterr().err


def test_a_comment_is_cut_at_its_first_sentence() -> None:
    """Before the command that follows it; the names of authors end no sentence."""
    assert catalog.sentence("# LoRA (Hu et al. 2021): harness method=lora\nname: lora\n") == "LoRA (Hu et al. 2021)"
    assert catalog.sentence("# How much? Each rank\n# is tried.\n#\n#   harness -cn x\n") == "How much?"
    assert (
        catalog.sentence("# After Lee et al. 2019\n# in two lines.\nname: x\n") == "After Lee et al. 2019 in two lines"
    )
    assert catalog.sentence("name: x\n") == ""


def test_the_script_completes_every_command() -> None:
    """Bash takes it; keys of reports and the choices of methods come from the commands themselves."""
    script = completion.script()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    listed = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p"], text=True, capture_output=True, check=True
    ).stdout.splitlines()
    names = ("harness", *(f"harness-{name}" for name in ("plan", "report", "doctor", "choose", "predict", "export")))
    assert all(any(line.endswith(f"_harness {name}") for line in listed) for name in names)
    assert {"sweep=", "tracking.uri=", "all_methods", "doctor.live=", "adapter=", "merged=", "hours="} <= set(
        script.replace("'", " ").split()
    )
    ask = f"""{script}
    COMP_LINE='harness-report swe'; COMP_WORDS=(harness-report swe); COMP_CWORD=1; _harness; echo "${{COMPREPLY[@]}}"
    """
    told = subprocess.run(["bash", "-c", ask], text=True, capture_output=True, check=True).stdout
    assert told.split() == ["sweep="]


@pytest.mark.skipif(shutil.which("harness") is None, reason="harness is not on the path; activate its environment")
def test_choices_are_completed_as_hydra_knows_them() -> None:
    """Tab after `harness-plan method=lor` gives lora."""
    ask = f"""{completion.script()}
    COMP_LINE='harness-plan method=lor'; COMP_WORDS=(harness-plan method=lor); COMP_CWORD=1; _harness
    echo "${{COMPREPLY[@]}}" """
    told = subprocess.run(["bash", "-c", ask], text=True, capture_output=True, check=True).stdout
    assert "method=lora" in told.split()

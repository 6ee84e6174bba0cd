"""An outcome keeps what a task says, typed where it is known, and is plain again for Hydra's sweepers."""

from harness.sweep.outcome import Outcome, gather, gathering


def test_what_a_task_says_beyond_an_outcome_is_kept() -> None:
    """Under its own name, and in the plain form beside the rest."""
    outcome = Outcome.of({"status": "finished", "scores": None, "seconds": 2.5, "pid": 7})
    assert (outcome.status, outcome.scores, outcome.seconds, outcome.further) == ("finished", {}, 2.5, {"pid": 7})
    assert outcome.plain()["pid"] == 7


def test_the_plain_form_is_read_back_as_it_was() -> None:
    """What is not known is left out, but for the reason."""
    outcome = Outcome("failed", "no luck", tracked=False, point=0, further={"environment": {}})
    plain = outcome.plain()
    assert plain["tracked"] is False
    assert "checkpoint" not in plain
    assert "error" in Outcome("finished").plain()
    assert Outcome.of(plain) == outcome


def test_outcomes_are_gathered_within_their_scope_alone() -> None:
    """An inner scope has its own, and what ends outside of any is gathered nowhere."""
    gather([Outcome("finished")])
    with gathering() as outer:
        gather([Outcome("finished"), Outcome("failed")])
        with gathering() as inner:
            gather([Outcome("stopped")])
        gather([Outcome("diverged")])
    assert [outcome.status for outcome in outer] == ["finished", "failed", "diverged"]
    assert [outcome.status for outcome in inner] == ["stopped"]

"""Tested versions are known by the lock and by the lower ends of what the package asks for."""

import logging
import re

import pandas as pd
import pytest

from harness.config import versions
from harness.config.versions import beyond, locked, lowest, pins
from harness.report.markdown import versions as mixed

LOCKED = {"transformers": ["5.23.0"], "numpy": ["2.4.6", "2.5.5"], "torch": ["2.13.0"]}


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({"transformers": "5.24.0"}, "transformers 5.24.0: newer than the 5.23.0 that was tested"),
        ({"transformers": "5.23.1.dev0"}, "transformers 5.23.1.dev0: newer than the 5.23.0 that was tested"),
        ({"transformers": "5.9.0"}, "transformers 5.9.0: older than the 5.17 that was tested"),
        ({"transformers": "5.23.0"}, None),
        ({"transformers": "5.18.2"}, None),
        ({"torch": "2.13.0+cu130"}, None),
        ({"torch": "2.13.0+cpu"}, None),
        ({"torch": "2.14.1+cpu"}, "torch 2.14.1+cpu: newer than the 2.13.0 that was tested"),
        ({"numpy": "2.5.5"}, None),
        ({"unheard-of": "1.0"}, None),
    ],
)
def test_a_version_outside_what_was_tested_is_named(installed, said):
    """Between the lower end and the lock lies what was tested; a build's suffix is no other version."""
    found = beyond(installed, LOCKED, {"transformers": "5.17", "torch": "2.11"})
    assert list(found.values()) == ([said] if said else [])


def test_the_lock_pins_every_package_that_results_depend_on():
    """A package without a pin would be installed as it is on the day."""
    assert set(versions.PACKAGES) <= set(locked())
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", one) for pinned in locked().values() for one in pinned)


def test_the_lock_lies_within_the_ranges_of_the_package():
    """Installing by the lock and installing the wheel can't contradict each other."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    wanted = [Requirement(one) for one in requires("peft-harness") or ()]
    assert wanted
    for one in wanted:
        if one.name != "peft-harness":
            pinned = locked()[one.name.lower()]
            assert all(one.specifier.contains(version, prereleases=True) for version in pinned), one.name


def test_every_dependency_has_a_lower_end():
    """Without one, the oldest version that works is anybody's guess."""
    assert {"torch", "transformers", "peft", "trl", "datasets", "mlflow"} <= set(lowest())


def test_pins_of_one_package_for_several_pythons_are_all_read():
    """Markers are left out, comments and options skipped."""
    text = "# made by hand\n--index-strategy x\nNum_Py==1.2 ; python_version < '3.12'\nnum-py==2.0\n"
    assert pins(text) == {"num-py": ["1.2", "2.0"]}


def test_an_untested_package_is_warned_of_once(monkeypatch, caplog):
    """A sweep's worker runs many points and says it in the first."""
    monkeypatch.setattr(versions, "untested", lambda: {"peft": "peft 9: newer than the 1 that was tested"})
    versions.warn_of_untested.cache_clear()
    with caplog.at_level(logging.WARNING):
        versions.warn_of_untested()
        versions.warn_of_untested()
    versions.warn_of_untested.cache_clear()
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "peft 9: newer than the 1 that was tested"
    ]


def test_a_report_of_mixed_versions_says_so():
    """Two versions of one library are counted; records that name none count for none."""
    frame = pd.DataFrame(
        {
            "version.torch": ["2.13.0", "2.12.0", "2.13.0", ""],
            "version.peft": ["0.21.2"] * 3 + [""],
            "untested": ["", "peft 9: newer than the 1 that was tested", "", ""],
        }
    )
    assert mixed(frame) == [
        "Runs of different versions of torch stand side by side: 2.12.0 (1), 2.13.0 (2).",
        "Untested: peft 9: newer than the 1 that was tested.",
    ]
    assert mixed(frame[:1]) == []

"""The package for a GPU machine: the page it writes, the bundle it is given, and a dry run of all of it."""

import base64
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bundle import pack_rows, strip
from page import RESULTS, STEPS, page, read_lines
from prove import LIMITS, MODULES, SECONDS, _unpack

PROVE = Path(__file__).with_name("prove.sh")
COSTS = {
    "step": "costs", "device": "H200", "size": "8B", "checkpointing": False, "rows": 4, "length": 1024,
    "weight_bytes": 6e9, "gradient_bytes": 1e8, "optimizer_bytes": 2e8, "activation_bytes": 3e9,
    "train_peak_bytes": 1e10, "cuda_allocated_bytes": 1.25e10, "cuda_reserved_bytes": 1.3e10,
    "step_seconds": 0.4, "tokens_per_second": 10_240.0, "flops_per_second": 3e14, "flops_ceiling": 7.5e14,
    "joules_per_step": None, "no_joules": "the GPU shows no energy counter", "status": "finished", "error": None,
    "planned": {"weight_bytes": 6e9, "gradient_bytes": 1e8, "optimizer_bytes": 2e8, "activation_bytes": 3.3e9,
                "train_peak_bytes": 1.1e10},
}  # fmt: skip


def prove(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the script with this interpreter; what it says is in the result."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OUT", "PYTHONPATH")}
    command = [str(PROVE), "--out", str(folder), *arguments]
    return subprocess.run(command, env={**environment, "PYTHON": sys.executable}, capture_output=True, text=True)


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the tables under a heading."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]


def test_a_plan_stands_beside_what_was_measured() -> None:
    """Ratios are of the plan over the measurement, the allocator's peak is held against the planned one."""
    written = page([{**COSTS, "method": "lora"}])
    memory = next(row for row in rows_of(written, STEPS["costs"]) if row[2] == "GB")
    assert memory[0] == "8B lora"
    assert memory[3] == "6.000 / 6.000 (1.000)"
    assert memory[6] == "3.000 / 3.300 (1.100)"
    assert memory[8] == "12.500 (0.880)"
    speed = rows_of(written, STEPS["costs"])[-1]
    assert speed[2:] == ["400.0", "10,240", "300.0", "40%", "-"]
    assert "* no joules: the GPU shows no energy counter" in written


def test_what_has_no_figures_says_why() -> None:
    """A method that does not fit is listed with its reason, and steps without figures say so."""
    missing = {"status": "does not fit", "error": "141.0 GB are planned and 84.0 GB free"}
    keys = ("step", "device", "size", "checkpointing", "rows", "length", "planned")
    written = page([{**{key: COSTS[key] for key in keys}, "method": "full", **missing}])
    assert "* 8B full: does not fit: 141.0 GB are planned and 84.0 GB free" in written
    assert written.count("Nothing was measured.") == len(STEPS) - 1


def test_what_was_tried_again_counts() -> None:
    """A point that failed in one start and was measured in the next is shown once, as measured."""
    failed = {"step": "latency", "device": "H100", "size": "1B", "method": "lora", "status": "failed", "error": "Boom"}
    times = {"base": {"1": 4.0}, "attached": {"1": 5.0}}
    done = {**failed, "status": "finished", "error": None, "length": 128, "swap_ms": 80.0, "repeats": 50}
    written = page([failed, {**done, "latency_ms": times, "missing": {"merged": "it is not linear"}}])
    assert rows_of(written, STEPS["latency"])[-1][3:7] == ["4.00", "5.00", "-", "80.0"]
    assert "Boom" not in written
    assert "* lora: it is not linear" in written


def test_scores_are_means_over_the_seeds_that_were_reached() -> None:
    """The number of seeds is printed beside each mean."""

    def run(seed: int, method: str, score: float) -> dict[str, Any]:
        of = {"task": "glue/cola", "method": method, "seed": seed, "point": f"glue/cola {method} {seed}"}
        return {"step": "glue", "device": "H100", **of, "status": "finished", "error": None,
                "metric": "matthews_correlation", "score": score, "majority": 0.0}  # fmt: skip

    written = page([run(1, "full", 0.3), run(2, "full", 0.5), run(1, "lora", 0.25)])
    assert rows_of(written, STEPS["glue"])[-1] == [
        "glue/cola matthews_correlation", "0.000", "0.400 (n=2)", "0.250 (n=1)",
    ]  # fmt: skip


def test_a_line_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    """The last line of a file that was cut off is ignored, and a missing file is an empty one."""
    (tmp_path / RESULTS).write_text('{"step": "start"}\n{"step": "cos')
    assert read_lines(tmp_path / RESULTS) == [{"step": "start"}]
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_every_step_has_a_limit_a_module_and_a_table() -> None:
    """The limits of all steps leave time for the last one."""
    assert set(STEPS) == set(LIMITS) == {*MODULES, "tests"}
    # Real rows take what the others leave, which must be something.
    assert sum(limit for name, limit in LIMITS.items() if name != "glue") < SECONDS


def test_time_that_is_over_ends_every_step_and_leaves_the_page(tmp_path: Path) -> None:
    """Seven seconds, of which five are kept for the end: no step can be done in what is left."""
    ended = prove(tmp_path, "--dry-run", "--seconds", "7")
    assert ended.returncode == 1
    ends = {line["name"]: line["status"] for line in read_lines(tmp_path / RESULTS) if line["step"] == "end"}
    assert set(ends) == {"environment", *STEPS}
    assert set(ends.values()) <= {"stopped", "not run"}
    assert "the time was over" in (tmp_path / "gpu.md").read_text()


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    """Exit status 2 and a sentence with the valid names."""
    ended = prove(tmp_path, "--steps", "costs,speed")
    assert ended.returncode == 2
    assert "speed: no such step; valid: tests, costs, time, sweep, packed, latency, glue" in ended.stderr


def made_wheel(path: Path, *libraries: str) -> None:
    files = {f"bitsandbytes/libbitsandbytes_{name}.so": name.encode() for name in libraries}
    files["bitsandbytes/__init__.py"] = b"import os\n"
    record = "bitsandbytes-1.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, record: b""}.items():
            archive.writestr(name, content)


def test_a_wheel_keeps_the_libraries_that_are_loaded_there(tmp_path: Path) -> None:
    """Its list of files is written anew, so that it installs and can be checked."""
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    made_wheel(wheel, "cpu", "cuda118", "cuda130", "cuda132", "rocm64", "xpu2025")
    strip(wheel)
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    libraries = {name for name in contents if name.endswith(".so")}
    assert libraries == {f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda130")}
    record = contents.pop("bitsandbytes-1.dist-info/RECORD").decode()
    listed = {row[0]: row[1:] for row in csv.reader(io.StringIO(record))}
    assert listed.pop("bitsandbytes-1.dist-info/RECORD") == ["", ""]
    assert set(listed) == set(contents)
    for name, (digest, size) in listed.items():
        expected = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(contents[name])))


def test_a_wheel_without_the_library_is_refused(tmp_path: Path) -> None:
    """A wheel built for other CUDA versions does not go into the bundle."""
    wheel = tmp_path / "bitsandbytes-2-py3-none-any.whl"
    made_wheel(wheel, "cpu", "cuda128")
    with pytest.raises(SystemExit, match="no library for CUDA 130"):
        strip(wheel)


def test_rows_come_out_of_the_bundle_as_they_went_in(tmp_path: Path) -> None:
    """Data and license files are packed and unpacked byte by byte; other files are left out."""
    rows = tmp_path / "data/glue/cola"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text('{"sentence": "Él ran."}\n')
    (rows / "LICENSE.txt").write_text("free\n")
    (rows / "notes.md").write_text("not taken\n")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    assert "packed" in pack_rows(bundle / "data.tar.xz", str(tmp_path / "data"))
    found = _unpack(bundle, tmp_path / "out")
    assert found == {"data": tmp_path / "out/data"}
    taken = {path.name: path.read_text() for path in (found["data"] / "glue/cola").iterdir()}
    assert taken == {"train.jsonl": '{"sentence": "Él ran."}\n', "LICENSE.txt": "free\n"}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole dry run."""
    folder = tmp_path_factory.mktemp("dry")
    # Under three minutes on two quiet cores; other tests may keep them busy.
    ended = prove(folder, "--dry-run", "--seconds", "1400")
    log = folder / "prove.log"
    said = ended.stdout + ended.stderr + (log.read_text()[-6000:] if log.exists() else "")
    assert ended.returncode == 0, said
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
class TestDryRun:
    """A script that was never run is not prepared: all steps, at tiny sizes on the CPU."""

    def test_every_step_ends_well(self, dry_run: Path) -> None:
        """The page says that it was a dry run and has figures from every step."""
        lines = read_lines(dry_run / RESULTS)
        ends = {line["name"]: line["status"] for line in lines if line["step"] == "end"}
        assert ends == dict.fromkeys(["environment", *STEPS], "ended well")
        written = (dry_run / "gpu.md").read_text()
        assert "Nothing was measured." not in written
        assert "A dry run" in written

    def test_steps_are_planned_within_a_twentieth(self, dry_run: Path) -> None:
        """Every category of every method, quantized and checkpointed ones too, on the CPU."""
        lines = [line for line in read_lines(dry_run / RESULTS) if line["step"] == "costs"]
        measured = [line for line in lines if line["status"] == "finished"]
        assert {line["method"] for line in measured} == {"full", "lora", "qlora", "lora_int8"}
        for line in measured:
            for name, planned in line["planned"].items():
                assert planned == pytest.approx(line[name], rel=0.05), (line["method"], name)
        assert [line["method"] for line in lines if line["status"] == "does not fit"] == ["full"]

    def test_the_sweeps_points_end_as_they_were_made_to(self, dry_run: Path) -> None:
        """Two points finish, one runs out of memory and one is killed; the page has the sweep's table."""
        (line,) = [line for line in read_lines(dry_run / RESULTS) if line["step"] == "sweep"]
        assert [point["status"] for point in line["points"]] == ["finished", "finished", "out_of_memory", "failed"]
        assert line["killed_process"]
        assert line["table"] in (dry_run / "gpu.md").read_text()

    def test_every_run_on_rows_leaves_its_record(self, dry_run: Path) -> None:
        """There is one record with validation scores per point."""
        points = [line for line in read_lines(dry_run / RESULTS) if line["step"] == "glue"]
        records = read_lines(dry_run / "records.jsonl")
        assert len(records) == len(points) > 0
        assert all(record["scores"]["validation"] for record in records)

    def test_a_later_start_goes_on_from_what_came_back(self, dry_run: Path, tmp_path: Path) -> None:
        """What was measured is not measured again, what is missing is."""
        lines = read_lines(dry_run / RESULTS)
        (lost, *_) = [line for line in lines if line["step"] == "glue"]
        came_back = tmp_path / "came_back"
        came_back.mkdir()
        kept = [json.dumps(line) + "\n" for line in lines if line is not lost]
        (came_back / RESULTS).write_text("".join(kept))
        ended = prove(tmp_path / "out", "--dry-run", "--steps", "glue", "--resume", str(came_back))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        points = [line["point"] for line in read_lines(tmp_path / "out" / RESULTS) if line["step"] == "glue"]
        assert sorted(points) == sorted(line["point"] for line in lines if line["step"] == "glue")
        assert points[-1] == lost["point"]


def test_tests_that_passed_are_named_in_a_line_and_others_have_a_row() -> None:
    """Fifty rows that say "passed" hide the one that does not."""
    lines = [
        {"step": "tests", "device": "H200", "test": f"test_a_run[{case}]", "outcome": outcome, "seconds": 1.0}
        for case, outcome in (("lora", "passed"), ("full", "passed"), ("adamss", "failed"))
    ]
    written = page(lines)
    assert "2 of 3 passed." in written
    assert "* test_a_run: full, lora" in written
    assert rows_of(written, STEPS["tests"])[-1] == ["test_a_run[adamss]", "failed", "1.0"]

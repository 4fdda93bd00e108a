"""The archive that `python -m bench gpu` leaves: packs it, and unpacks it again.

python -m bench records DIR/results.tgz    unpacks its records into bench/results, and draws their tables and pictures
"""

import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.__main__ import main as bench_command
from bench.common.files import RESULTS, short_name, write
from bench.common.options import make_parser

# Commands that show their records again; those of the others have no table.
SHOWN = ("kernels", "train", "rollout", "profile")


def pack(work: Path, target: Path) -> None:
    """Records, logs and the list of stages. The file is replaced as a whole, so that it is complete at any moment."""
    temporary = target.with_name(target.name + ".tmp")
    with tarfile.open(temporary, "w:gz") as archive:
        for part in ("results", "logs", "stages.json"):
            archive.add(work / part, arcname=part, filter=lambda info: None if info.name.endswith(".tmp") else info)
    os.replace(temporary, target)


def unpack(archive_path: Path, results: Path) -> list[Path]:
    """Writes the records (.json) and tables (.md) of an archive into a folder, and gives the paths of the records.

    The list of stages, with the last lines of each, becomes gpu-<device>.json. ValueError for any other file.
    """
    texts: dict[str, str] = {}
    try:
        with tarfile.open(archive_path) as archive:
            for member in archive:
                path = Path(member.name)
                wanted = path.parent == Path("results") and path.suffix in (".json", ".md")
                if (wanted or member.name == "stages.json") and (content := archive.extractfile(member)):
                    texts[path.name] = content.read().decode()
    except (OSError, EOFError, tarfile.TarError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{archive_path}: not an archive of `python -m bench gpu` ({why})") from error
    if "stages.json" not in texts:
        raise ValueError(f"{archive_path}: not an archive of `python -m bench gpu` (it has no stages.json)")
    for name, text in texts.items():
        if name.endswith(".json"):  # half a file is refused before any is written
            try:
                json.loads(text)
            except ValueError as error:
                raise ValueError(f"{archive_path}: {name} is not whole ({error})") from error
    stages = json.loads(texts.pop("stages.json"))
    name = f"gpu-{_device(texts)}.json"
    texts[name] = json.dumps(_merged(results / name, stages), indent=1) + "\n"
    for name, text in texts.items():
        write(results / name, text)
    return sorted(results / name for name in texts if name.endswith(".json"))


def _device(texts: Mapping[str, str]) -> str:
    """The short name of the device, which every record names."""
    rows = (json.loads(text) for name, text in sorted(texts.items()) if name.endswith(".json"))
    names = (row[0]["device"] for row in rows if row and "device" in row[0])
    return next((short_name(name) for name in names), "unknown")


def _merged(path: Path, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages of this call, and those of earlier calls that this one did not run."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = []
    ran = {r["name"]: r for r in stages if r["skipped"] is None}
    kept = {r["name"]: r for r in before}
    return list({**{r["name"]: r for r in stages}, **kept, **ran}.values())


def main(argv: list[str]) -> int:
    parser = make_parser("records", __doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--into", type=Path, default=RESULTS, help="default: bench/results")
    args = parser.parse_args(argv)
    try:
        paths = unpack(args.archive, args.into)
    except ValueError as error:
        parser.error(str(error))
    for path in paths:
        print(f"\n== {path.name}")
        kind = path.name.partition("-")[0]
        if kind in SHOWN and json.loads(path.read_text()):
            bench_command([kind, "--records", str(path)])
        elif kind == "gpu":
            from bench.gpu import table

            print(table(json.loads(path.read_text())))
    return 0

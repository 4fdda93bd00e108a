"""Tables and plots of runs: one self-contained HTML file, and the same in Markdown."""

from collections.abc import Sequence
from pathlib import Path

from raft.report.load import load_others, load_run
from raft.runs import write_text


def write_report(run_path: str | Path, others: Sequence[str | Path] = ()) -> Path:
    """Write DIR/report.html, and the same as DIR/report.md with its figures in DIR/report/; gives report.html.

    others: further runs, of other seeds or methods, whose scores stand beside this one's.
    A run need not be complete: a section without files behind it is left out. RunFolderError if there is nothing.
    """
    data = load_run(run_path)
    beside = load_others(data, others)
    # Only now: matplotlib and scipy take a second, and what cannot be reported is refused at once.
    from raft.report import html, markdown
    from raft.report.document import build

    document = build(data, beside)
    for path, drawing in markdown.figure_files(document, data.path).items():
        write_text(path, drawing)
    write_text(data.path / "report.md", markdown.render(document))
    write_text(data.path / "report.html", html.render(document))
    return data.path / "report.html"

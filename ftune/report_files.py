"""The files of a report: `report.md`, `report.html` and pictures. Made at the end of a run, and by `ftune report`."""

from __future__ import annotations

from ftune.report import to_markdown
from ftune.report_page import run_page
from ftune.report_pictures import pictures
from ftune.run_files import RunFiles
from ftune.store import Store


def write_report(store: Store, files: RunFiles) -> list[str]:
    """Write what people read of a run; `report.json`, which marks a run as finished, is not touched.

    Each file is replaced as a whole, so that this may be done while the run goes on, and repeated after a kill.

    Args:
        store: of the run folder.
        files: what the run left.

    Returns:
        The names of what was written.

    Raises:
        DiskError: the folder cannot be written.
    """
    images = pictures(files)
    for name, image in images.items():
        store.write_bytes(name, image)
    store.write_text("report.md", to_markdown(files.known, best=files.plan.get("best") is not None))
    store.write_text("report.html", run_page(files))
    return [*images, "report.md", "report.html"]

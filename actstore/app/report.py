"""`actstore report`: one page of a folder of results."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from actstore.config import ReportRun
from actstore.errors import InputError, ResourceError
from actstore.evaluate.results import FILE_NAME, read_results
from actstore.report import render_markdown, render_report
from actstore.store.metadata import load_json

__all__ = ["run", "write_report"]


def run(run: ReportRun) -> int:
    """Carry out the command; the exit code."""
    print(write_report(Path(run.results), run.out, run.format))
    return 0


def write_report(results: Path, out: str | None, style: str) -> Path:
    """Write the page of the results in folder `results`; its path."""
    records = [dataclasses.asdict(record) for record in read_results(results)]
    if not records:
        raise InputError(f"{results / FILE_NAME} holds no results: run `actstore probe` first")
    context = _context(results)
    title = f"Probes of {_short(context.get('model', results.name))}"
    render = render_report if style == "html" else render_markdown
    page = render(records, title=title, context=context)
    path = Path(out) if out is not None else results / f"report.{style}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def _short(model: str) -> str:
    """A hub id as it is; of a folder its last two names."""
    return model if model.count("/") < 2 else "/".join(Path(model).parts[-2:])


def _context(results: Path) -> dict[str, str]:
    import actstore

    path = results / "run.json"
    found = load_json(path) if path.exists() else {}
    context = {name: str(found[name]) for name in ("model", "store") if name in found}
    protocol = found.get("protocol", {})
    context |= {f"protocol {name}": str(value) for name, value in protocol.items()}
    return {**context, "results": str(results), "actstore": actstore.__version__}

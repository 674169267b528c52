"""Reports: results as one offline HTML page, or as Markdown. Needs the standard library only."""

from actstore.report.markdown import render_markdown
from actstore.report.page import render_report

__all__ = ["render_markdown", "render_report"]

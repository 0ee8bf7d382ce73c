"""``report.html``: a run in one page that needs no account, no network and no other file."""

from cxlp.dashboard.page import write_report

__all__ = ["write_report"]

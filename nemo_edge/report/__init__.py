"""What a build says to people and to machines: one HTML page, JSON, JUnit."""

from __future__ import annotations

__all__ = ["write_report"]

from nemo_edge.report.page import write_report

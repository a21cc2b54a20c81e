"""What a build says to people and to machines: one HTML page, JSON, JUnit, a model card, a job summary."""

from __future__ import annotations

__all__ = ["Evidence", "store_pictures", "summary_markdown", "worst_first", "write_report"]

from nemo_edge.report.evidence import Evidence
from nemo_edge.report.folder import write_report
from nemo_edge.report.summary import summary_markdown
from nemo_edge.report.thumbnails import store_pictures, worst_first

"""What people and machines read: the evidence of a build in; one HTML page, JSON, JUnit, a model card and a job summary out.

Measures nothing and decides nothing: gates are judged before.

`evidence` all there is to say · `folder` writes the report · `summary` a job's summary · `thumbnails` its pictures · `junit` gates as
tests · `_leaks` every count of copies · `_verdict` what it comes to, in sentences · `_levels` against whom · `_lights` the gates at a
glance · `_identity` what it is · `_commands` how to check it · `_quantized` what was rounded · `_untested` what was not measured ·
`_record` the JSON · `_card` the model card · `_page`, `_cards`, `_threshold`, `_plots`, `_engineplots`, `_groupplots`, `_canvas` the page ·
`_markdown`, `_numbers` how values are written
"""

from __future__ import annotations

__all__ = ()

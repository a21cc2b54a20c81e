"""A bundle inside diffusers: a folder in, diffusers' own pipeline or UNet with engines in the place of its modules out.

`load` the public functions · `pipeline` a pipeline under the bundle's policies · `substitutes` engines that look like diffusers' modules
"""

from __future__ import annotations

__all__ = ()

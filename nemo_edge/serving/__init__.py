"""A bundle on an inference server: a bundle in, a model repository, and what runs in the server, out.

Knows Triton, KServe and Ray Serve. What a shipped `model.py` imports is here alone, so its names stay.

`repository`, `shipment`, `versions`, `modelconfig` the repository, into which `_delivery` puts all or nothing · `signed` whose bundle it
is of · `models`, `painter`, `components`, `batches`, `requests` what runs in the server · `updates`, `hotupdate` new policies for one that
runs · `server`, `showcase`, `golden` a server to try it with · `kserve`, `local`, `ray` other ways to serve · `remotes` a server that
others run, asked for pictures · `audit` what it gives back of its training
"""

from __future__ import annotations

__all__ = ()

"""Quantized layers computed by integer kernels: DequantizeLinear, a layer, QuantizeLinear become one node.

`rewrite` replaces what the kernels take by nodes of the domain DOMAIN, which never leave the backend, and says of every
other quantized layer why it stays in float. `conversion` turns those nodes into calls of kernels.
"""

from __future__ import annotations

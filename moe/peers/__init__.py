"""Other systems' own layers, given this project's weights and routing: `strategy=peer_<name>`.

A peer is a module with the class `Peer`, a `moe.peers.base.PeerLayer`, which imports its system
only when one is built. Those of this project are moe/peers/<name>.py, with their limits in
`moe.peers.support`; any other is a module `moe_peer_<name>` on Python's path with its own `LIMITS`
(docs/peers.md). Torch-free.
"""

from moe.peers.registry import OWN, check_installed, equivalent, limits_of

__all__ = ["OWN", "check_installed", "equivalent", "limits_of"]

"""Other projects' steps as optimizers of ours: ``make peers`` times them beside their counterparts here, in one run.

Versions are pinned in the extra ``peers``.
"""

from tests.peers.curvature import Asdl, Singd  # as records name them that were made before each had its file

__all__ = ["Asdl", "Singd"]

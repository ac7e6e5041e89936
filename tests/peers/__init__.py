"""Other projects' steps as optimizers of ours: ``make peers`` times them beside their counterparts here, in one run.

Versions are pinned in the extra ``peers``.
"""

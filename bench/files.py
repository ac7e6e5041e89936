"""Where the loader of the user's own file once was; it is in ``stepscale.bench.data.user_file`` now."""

from stepscale.bench.data.user_file import load

__all__ = ["load"]

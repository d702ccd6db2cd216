"""Who hears how far a copy is: the callback of the program that asked for it."""

from __future__ import annotations

from ssm_proxy.file_copy.values import Progress, ProgressCallback


class Listener:
    """Calls the callback, and knows what it raises from errors of the copy: they may be of one class.

    Args:
        callback: called from the thread that calls ``tell``; None: nobody listens.
    """

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self.error: Exception | None = None
        """What the callback has raised: it ends the whole copy, and reaches the caller as it is."""

    def tell(self, progress: Progress) -> None:
        """Call it. Raises what it raises."""
        if self._callback is None:
            return
        try:
            self._callback(progress)
        except Exception as error:
            self.error = error
            raise

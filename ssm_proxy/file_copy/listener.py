"""Who hears how far a copy is: the callback of the program that asked for it."""

from __future__ import annotations

from ssm_proxy.file_copy.values import Progress, ProgressCallback


class Listener:
    """Calls the callback until it raises something, and knows that from errors of the copy: they may be of one class.

    Args:
        callback: called from the thread that calls ``tell``; None: nobody listens.
    """

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self.error: Exception | None = None
        """What the callback has raised: it ends the whole copy, and reaches the caller as it is."""

    def tell(self, progress: Progress) -> None:
        """Call it. Raises what it raises; from then on nothing happens.

        Not so after an exception that is no `Exception`: that is a signal's, which comes while the callback runs by
        chance, and what the copy has to say of it is still heard.
        """
        if self._callback is None or self.error is not None:
            return
        try:
            self._callback(progress)
        except Exception as error:
            self.error = error
            raise

"""Reports how far a copy is to the program that asked for it: calls its callback."""

from __future__ import annotations

from dataclasses import replace

from ssm_proxy.file_copy.values import Progress, ProgressCallback

_NOTHING = Progress(total_bytes=0, done_bytes=0, total_files=0, done_files=0, sessions=0, is_counting=False, current="")


class Reporter:
    """Calls the callback until it raises something, and knows that from errors of the copy: they may be of one class.

    What it is told is of the whole copy, which may be from several nodes, one after the other.

    Args:
        callback: called from the thread that calls ``tell``; None: nobody listens.
    """

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self.error: Exception | None = None
        """What the callback has raised: it ends the whole copy, and reaches the caller as it is."""
        self.is_more_to_come = False
        """Whether there is another node to copy from."""
        self._before = self._told = _NOTHING

    def go_on(self) -> None:
        """Count what is told from now on from zero again, beside what was told until now."""
        self._before = self._told

    def tell(self, progress: Progress) -> None:
        """Call it. Raises what it raises; from then on nothing happens.

        Not so after an exception that is no `Exception`: that is a signal's, which comes while the callback runs by
        chance, and what the copy has to say of it is still heard.
        """
        before = self._before
        done_files = before.done_files + progress.done_files
        self._told = replace(
            progress,
            total_bytes=before.total_bytes + progress.total_bytes,
            # A small file counts twice if its session was lost after all of it was sent.
            done_bytes=before.done_bytes + min(progress.done_bytes, progress.total_bytes),
            # Of a node that is lost, a file that had failed but was not cleaned up after may be told again.
            total_files=max(before.total_files + progress.total_files, done_files),
            done_files=done_files,
            is_counting=progress.is_counting or self.is_more_to_come,
            current=progress.current or before.current,
        )
        if self._callback is None or self.error is not None:
            return
        try:
            self._callback(self._told)
        except Exception as error:
            self.error = error
            raise

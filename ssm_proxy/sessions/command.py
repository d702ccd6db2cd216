"""Commands: the text that runs one on the node, and how its output is told apart from its status (8.3, 8.4).

The AWS-owned documents report no exit status, and join standard error with standard output. So the command is run by a
few lines of POSIX shell that write *frames* between its output:

    ``RS marker field RS``   RS is the byte 0x1e, the marker 32 random characters

=========  =============================================================================
field      meaning
=========  =============================================================================
``b``      the command begins (on a terminal only: until something is written the session has not begun, 6.1)
``e``      what follows is standard error
``z``      standard error ends, where it is a stream of its own: an agent loses up to three bytes at the end of one that
           look like the beginning of a character (8.2)
0 to 255   the command ended, with this status; what follows is standard output of what it left running
=========  =============================================================================

The marker on the command line has no RS before it, so a list of processes is not taken for a frame.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ssm_proxy.errors import UsageError
from ssm_proxy.wire.constants import SessionType
from ssm_proxy.wire.shell_payloads import TerminalSize

NONINTERACTIVE_DOCUMENT: Final = "AWS-StartNonInteractiveCommand"
INTERACTIVE_DOCUMENT: Final = "AWS-StartInteractiveCommand"
SIGNAL_BASE: Final = 128
"""A shell's status of a command that a signal ended: this and the signal's number."""
MAX_STATUS: Final = 255
MARKER_BYTES: Final = 16
"""Of chance, in a marker: each is two of its characters."""

_RS: Final = b"\x1e"
_MAX_FIELD_BYTES: Final = 3
_STATUS: Final = re.compile(rb"[0-9]{1,3}")

# A shell makes what runs beside it deaf to Ctrl-C, and is deaf itself to what happens while it runs something in the
# foreground. Only job control helps, and bash alone has that without a terminal: so bash is taken where there is one.
_CHOSEN_SHELL: Final = 'exec $(command -v bash||echo sh) -c "$1" "$0" "$@"'

# Without separation both streams go to one file, which is sent when all is over. Then standard error waits in another,
# which has lost its name, and follows. Where that cannot be had they stay joined.
#
# What it calls its own has names that nobody exports: the command must find its environment unchanged. Under bash a
# command that stopped itself looks like one that ended, hence the look whether it is there.
#
# The agent signals and kills one process only, this one (agent/session/shell/execcmd/execcmd.go), which hands on what
# Ctrl-C is; SIGTERM if the command would be deaf.
_SEPARATED: Final = r"""exec 3>&2 2>/dev/null
_g=$2 _f=${TMPDIR:-/tmp}/ssm-$0 _e= _t= _k=2 _p= _i=
shift 2
[ /dev/fd/1 -ef /dev/fd/3 ]&&(umask 77;set -C;:>"$_f")&&exec 3>>"$_f" 4<"$_f"&&_e=1&&rm "$_f"
if [ "$BASH_VERSION" ];then set -m;else _t=$(command -v setsid) _k=15;fi
_h(){ _i=1;kill -$_k -$_p||kill -$_k $_p; }
trap _h 2 3
$_t sh -c "$_g" sh $$ "$@" 2>&3 3>&- 4<&- &
_p=$!
[ $_i ]&&_h
while _i=;wait $_p;_s=$?;[ $_i ]||{ kill -0 $_p&&sleep 1;};do :;done
if [ $_e ];then printf '\036%se\036' $0;cat<&4;else printf '\036%sz\036' $0 >&3;fi
printf '\036%s%d\036' $0 $_s
exit $_s"""

# The command looks once a second whether that shell was killed, as at the end of the session, and follows it.
_GUARDED: Final = r"""_p=$1
shift
(trap '' 15
while kill -0 $$;do kill -0 $_p||{ kill -15 -$$||kill -15 $$;sleep 2;kill -9 -$$||kill -9 $$;exit;}
sleep 1
done </dev/null >/dev/null 2>&1 &)
exec "$@"
"""

# The size comes with the command, because a message with it would come a second late. The terminal sends its signals to
# both: the shell has to outlive the command.
_ON_TERMINAL: Final = r"""stty cols $1 rows $2 2>/dev/null
shift 2
printf '\036%sb\036' $0
trap : 2 3
(exec "$@")
_s=$?
printf '\036%s%d\036' $0 $_s
exit $_s"""


def check_command_session(session_type: str, _properties: Any) -> str | None:
    """Say why a session cannot run a command without a terminal, or give None if it can."""
    if session_type != SessionType.NON_INTERACTIVE_COMMANDS:
        return f"it is of type {session_type!r}; a command without a terminal needs 'NonInteractiveCommands'"
    return None


def command_text(words: Sequence[str], marker: str) -> str:
    """Give the command line for a document of type NonInteractiveCommands.

    Args:
        words: the command and its arguments, which arrive exactly so.
        marker: 32 characters that nobody can know before: letters and digits.

    Raises:
        UsageError: a word cannot be sent.
    """
    return _join(["sh", "-c", _CHOSEN_SHELL, marker, _SEPARATED, _GUARDED, *words])


def terminal_command_text(words: Sequence[str], marker: str, size: TerminalSize) -> str:
    """Give the command line for a document of type InteractiveCommands; see `command_text`.

    Args:
        words: as there.
        marker: as there.
        size: of the user's terminal.
    """
    return _join(["sh", "-c", _ON_TERMINAL, marker, str(size.columns), str(size.rows), *words])


def _join(words: Sequence[str]) -> str:
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                "an argument of the command is not UTF-8", cause="the service carries commands as text"
            ) from error
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    """Quote a word for the agent's splitter, which runs it without a shell, and for a shell (8.3, 8.4).

    A ``{{`` would be looked at by the service and the agent, which put parameters in such places (1.4).
    """
    inner = re.sub(r"\{(?=\{)", "{''", word.replace("'", r"'\''"))
    return f"'{inner}'"


class Piece(NamedTuple):
    """Bytes of one of the two streams."""

    data: bytes
    is_error: bool


class OutputSorter:
    """Takes the frames out of one stream. Holds back no more than what could be the beginning of one.

    Args:
        marker: as given to `command_text`.
    """

    def __init__(self, marker: str) -> None:
        self._frame = _RS + marker.encode()
        self._held = b""
        self._is_error = False
        self.status: int | None = None
        """The command's exit status, once its frame has come."""

    def feed(self, data: bytes) -> list[Piece]:
        """Take the next bytes of the session's output, cut anywhere."""
        pieces: list[Piece] = []
        buffer = self._held + data if self._held else data
        self._held = b""
        position = 0
        while self.status is None:
            start = buffer.find(self._frame, position)
            if start < 0:
                start = self._begun_frame(buffer, position)
                self._add(pieces, buffer[position:start])
                self._held = buffer[start:]
                return pieces
            field_start = start + len(self._frame)
            end = buffer.find(_RS, field_start, field_start + _MAX_FIELD_BYTES + 1)
            if end < 0 and len(buffer) <= field_start + _MAX_FIELD_BYTES:
                self._add(pieces, buffer[position:start])
                self._held = buffer[start:]
                return pieces
            if end >= 0 and self._is_field(buffer[field_start:end]):
                self._add(pieces, buffer[position:start])
                self._take_field(buffer[field_start:end])
                position = end + 1
            else:  # not a frame of ours: its last byte may begin one
                self._add(pieces, buffer[position:field_start])
                position = field_start
        self._add(pieces, buffer[position:])
        return pieces

    def finish(self) -> list[Piece]:
        """Give what was held back, when nothing more will come."""
        pieces: list[Piece] = []
        self._add(pieces, self._held)
        self._held = b""
        return pieces

    def _begun_frame(self, buffer: bytes, position: int) -> int:
        """Give where a frame may have begun whose rest has not come yet; the length of the buffer if nowhere."""
        start = buffer.rfind(_RS, max(position, len(buffer) - len(self._frame) + 1))
        return start if start >= 0 and self._frame.startswith(buffer[start:]) else len(buffer)

    def _add(self, pieces: list[Piece], data: bytes) -> None:
        if data:
            pieces.append(Piece(data, self._is_error))

    @staticmethod
    def _is_field(field: bytes) -> bool:
        return field in (b"b", b"e", b"z") or (_STATUS.fullmatch(field) is not None and int(field) <= MAX_STATUS)

    def _take_field(self, field: bytes) -> None:
        if field == b"e":
            self._is_error = True
        elif field not in (b"b", b"z"):
            self.status = int(field)
            self._is_error = False


class CommandStreams:
    """Tells a command's two streams apart, whether its document joins them or not, and finds its status.

    Args:
        marker: as given to `command_text`; None for a command that was not made to write frames.
    """

    def __init__(self, marker: str | None) -> None:
        self._sorters = None if marker is None else (OutputSorter(marker), OutputSorter(marker))

    @property
    def status(self) -> int | None:
        """The command's exit status, once its frame has come."""
        return None if self._sorters is None else self._sorters[0].status

    def output(self, data: bytes) -> list[Piece]:
        """Take what came as standard output; standard error may be in it."""
        return [Piece(data, is_error=False)] if self._sorters is None else self._sorters[0].feed(data)

    def error_output(self, data: bytes) -> list[Piece]:
        """Take what came as standard error; it is nothing else."""
        return [Piece(data, is_error=True)] if self._sorters is None else _as_error(self._sorters[1].feed(data))

    def finish(self) -> list[Piece]:
        """Give what was held back, when nothing more will come."""
        return [] if self._sorters is None else self._sorters[0].finish() + _as_error(self._sorters[1].finish())


def _as_error(pieces: Sequence[Piece]) -> list[Piece]:
    return [Piece(piece.data, is_error=True) for piece in pieces]

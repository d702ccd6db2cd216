"""What the end of a session means."""

from __future__ import annotations

import pytest

from ssm_proxy.ends import command_status, output_missing
from ssm_proxy.errors import SessionEnded


@pytest.mark.parametrize(
    ("status", "code", "result"), [(0, None, 0), (3, 5, 3), (None, 5, 5)], ids=["own", "own first", "the document's"]
)
def test_the_status_of_a_command(status: int | None, code: int | None, result: int) -> None:
    end = {"status": status, "code": code, "closed_reason": ""}
    assert command_status("the node", output_is_missing=False, **end) == result  # type: ignore[arg-type]
    with pytest.raises(SessionEnded) as caught:
        command_status("the node", output_is_missing=True, **end)  # type: ignore[arg-type]
    assert caught.value.message == "some of what the node sent did not arrive"


@pytest.mark.parametrize("code", [None, 0, 256])
@pytest.mark.parametrize(
    ("reason", "is_missing", "cause"),
    [
        ("", False, "somebody may have terminated"),
        ("idle timeout", True, "idle timeout"),
        ("", True, "it was lost on the way just before the end"),
        (None, False, "somebody may have terminated"),
    ],
)
def test_a_status_that_did_not_come_is_told_once(
    code: int | None, reason: str | None, is_missing: bool, cause: str
) -> None:
    with pytest.raises(SessionEnded) as caught:
        command_status("the node", status=None, code=code, closed_reason=reason, output_is_missing=is_missing)
    assert caught.value.message == "the session ended, and the command's exit status did not come"
    assert cause in (caught.value.cause or "")


def test_missing_output_is_a_session_that_failed() -> None:
    error = output_missing("i-1")
    assert str(error) == "some of what i-1 sent did not arrive"
    assert error.exit_status == 9
    assert output_missing("i-1", "the idle timeout").cause == "the idle timeout"

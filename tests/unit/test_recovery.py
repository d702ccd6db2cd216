"""Whether and how long a lost connection is tried for; the clock is an argument."""

from __future__ import annotations

import random

import pytest

from ssm_proxy.errors import (
    AccessDenied,
    CertificateNotTrusted,
    ConfigurationError,
    ConnectFailed,
    ControlPlaneError,
    DocumentRejected,
    EncryptionError,
    NotRenewable,
    OpeningRefused,
    SessionEnded,
    SsmProxyError,
    TargetNotConnected,
    Throttled,
    TransportClosed,
    TransportTimeout,
)
from ssm_proxy.transport.recovery import (
    BUDGET,
    FIRST_CONNECTION_BUDGET,
    LOSS_NOTICE_AFTER,
    MAX_REFUSALS,
    Recovery,
)

LOST = TransportClosed("the connection broke", cause="connection reset by peer")


@pytest.fixture
def recovery() -> Recovery:
    return Recovery(random.Random(7))


def after(recovery: Recovery, error: SsmProxyError, now: float = 0.0, *, has_begun: bool = True) -> object:
    return recovery.after(error, now, was_started=True, has_begun=has_begun)


class TestWhetherToTryAgain:
    @pytest.mark.parametrize(
        "error",
        [
            LOST,
            ConnectFailed("no"),
            CertificateNotTrusted("the login page of a hotel"),
            TransportTimeout("no"),
            OpeningRefused("no", status=503),
            ConfigurationError("the login has expired"),
            ControlPlaneError("internal error"),
            Throttled("slowly"),
        ],
    )
    def test_what_may_pass(self, recovery: Recovery, error: SsmProxyError) -> None:
        assert isinstance(after(recovery, error), float)

    @pytest.mark.parametrize("error", [LOST, ConnectFailed("no"), TransportTimeout("no")])
    def test_a_first_connection_that_breaks_may_come_about_yet(self, recovery: Recovery, error: SsmProxyError) -> None:
        assert isinstance(after(recovery, error, has_begun=False), float)

    @pytest.mark.parametrize(
        "error",
        [ConfigurationError("no CA bundle"), ControlPlaneError("ws:// is refused"), CertificateNotTrusted("whose?")],
    )
    def test_wrong_settings_are_told_at_once(self, recovery: Recovery, error: SsmProxyError) -> None:
        assert after(recovery, error, has_begun=False) is error

    @pytest.mark.parametrize(
        "error",
        [
            SessionEnded("over"),
            AccessDenied("no"),
            DocumentRejected("no"),
            NotRenewable("a code is needed"),
            TargetNotConnected("no"),
            EncryptionError("no"),
            SsmProxyError("a bug"),
        ],
    )
    def test_what_will_not(self, recovery: Recovery, error: SsmProxyError) -> None:
        assert after(recovery, error) is error

    @pytest.mark.parametrize("error", [LOST, ConnectFailed("no"), ConfigurationError("no region"), Throttled("no")])
    def test_nothing_is_repeated_before_there_is_a_session(self, recovery: Recovery, error: SsmProxyError) -> None:
        assert recovery.after(error, 0.0, was_started=False, has_begun=False) is error

    def test_a_refused_opening_is_final_at_first_and_has_three_tries_later(self, recovery: Recovery) -> None:
        error = OpeningRefused("403", status=403)
        assert after(recovery, error, has_begun=False) is error
        recovery.works()
        for _ in range(MAX_REFUSALS - 1):
            assert isinstance(after(recovery, error), float)
        assert after(recovery, error) is error

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
    def test_a_service_in_trouble_does_not_count_as_a_refusal(self, recovery: Recovery, status: int) -> None:
        for _ in range(2 * MAX_REFUSALS):
            assert isinstance(after(recovery, OpeningRefused("no", status=status)), float)

    def test_refusals_are_forgotten_when_a_connection_works(self, recovery: Recovery) -> None:
        error = OpeningRefused("403", status=403)
        for _ in range(5):
            assert isinstance(after(recovery, error), float)
            recovery.works()


class TestHowLong:
    def test_15_minutes_then_the_session_is_lost_with_the_last_cause(self, recovery: Recovery) -> None:
        assert BUDGET == 900.0
        after(recovery, LOST, 100.0)
        unreachable = ConnectFailed("no connection to x", cause="network is unreachable", hint="check the network")
        assert isinstance(after(recovery, unreachable, 100.0 + BUDGET - 1), float)
        final = after(recovery, unreachable, 100.0 + BUDGET)
        assert isinstance(final, SessionEnded)
        assert final.message == "the session was lost: no connection for 15 minutes"
        assert final.cause == "no connection to x: network is unreachable"
        assert final.hint == "check the network"

    def test_the_pauses_fill_the_budget_without_a_rush(self, recovery: Recovery) -> None:
        now, tries = 0.0, 0
        while isinstance(step := after(recovery, LOST, now), float):
            now += step
            tries += 1
        assert BUDGET <= now < BUDGET + 20
        assert 45 < tries < 100

    def test_a_first_connection_ends_soon_and_says_what_was_wrong(self, recovery: Recovery) -> None:
        error = ConnectFailed("the certificate of x is not trusted", hint="AWS_CA_BUNDLE")
        assert isinstance(after(recovery, error, 5.0, has_begun=False), float)
        assert after(recovery, error, 5.0 + FIRST_CONNECTION_BUDGET, has_begun=False) is error

    def test_a_first_connection_that_the_service_closes(self, recovery: Recovery) -> None:
        after(recovery, LOST, 0.0, has_begun=False)
        final = after(recovery, LOST, FIRST_CONNECTION_BUDGET, has_begun=False)
        assert isinstance(final, SessionEnded)
        assert final.cause == "the connection broke: connection reset by peer"
        assert final.hint

    def test_a_connection_that_works_renews_the_budget(self, recovery: Recovery) -> None:
        after(recovery, LOST, 0.0)
        recovery.works()
        assert recovery.lost_for(10.0) is None
        assert isinstance(after(recovery, LOST, BUDGET + 10), float)
        assert recovery.lost_for(BUDGET + 12) == 2.0


class TestNotice:
    def test_a_loss_is_told_once_after_a_while(self, recovery: Recovery) -> None:
        after(recovery, LOST, 100.0)
        assert recovery.notice_at == 100.0 + LOSS_NOTICE_AFTER
        assert recovery.notice(100.0 + LOSS_NOTICE_AFTER - 0.1) is None
        text = recovery.notice(100.0 + LOSS_NOTICE_AFTER)
        assert text == (
            "connection lost, trying to resume for 15 more minutes (the connection broke: connection reset by peer)"
        )
        assert recovery.notice_at is None, "a deadline that nobody acts on would be a busy loop"
        assert recovery.notice(200.0) is None
        assert recovery.works()
        assert not recovery.works()

    def test_a_short_loss_is_not_worth_a_word(self, recovery: Recovery) -> None:
        after(recovery, LOST, 100.0)
        assert not recovery.works()
        assert recovery.notice_at is None

    def test_before_the_session_has_begun_there_is_no_notice_and_no_deadline_for_one(self, recovery: Recovery) -> None:
        after(recovery, ConnectFailed("no"), 100.0, has_begun=False)
        assert recovery.notice_at is None
        assert recovery.notice(200.0) is None

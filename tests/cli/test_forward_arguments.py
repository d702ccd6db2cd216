"""``ssm-proxy forward``: its SPECs and arguments. What it then does is in tests/integration/test_forward*.py."""

from __future__ import annotations

import pytest

from ssm_proxy.cli.forward_specs import ForwardSpec, parse_forward_spec
from ssm_proxy.cli.forward_supervisor import make_request
from ssm_proxy.cli.main import main, make_parser
from ssm_proxy.errors import UsageError


def spec(bind: str, port: int, host: str | None, host_port: int, socket_path: str | None = None) -> ForwardSpec:
    return ForwardSpec("", bind, port, socket_path, host, host_port)


class TestSpecs:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("8080:80", spec("127.0.0.1", 8080, None, 80)),
            ("0:3389", spec("127.0.0.1", 0, None, 3389)),
            ("5432:db.internal:5432", spec("127.0.0.1", 5432, "db.internal", 5432)),
            ("8080:10:80", spec("127.0.0.1", 8080, "10", 80)),
            ("8080:10.0.0.7:80", spec("127.0.0.1", 8080, "10.0.0.7", 80)),
            ("8080:localhost:80", spec("127.0.0.1", 8080, "localhost", 80)),
            ("127.0.0.1:5432:db.internal:5432", spec("127.0.0.1", 5432, "db.internal", 5432)),
            ("127.0.0.1:8080:80", spec("127.0.0.1", 8080, None, 80)),
            ("localhost:8080:80", spec("localhost", 8080, None, 80)),
            ("0.0.0.0:8080:80", spec("0.0.0.0", 8080, None, 80)),
            ("*:8080:80", spec("*", 8080, None, 80)),
            (":8080:80", spec("*", 8080, None, 80)),
            ("*:8080:db:80", spec("*", 8080, "db", 80)),
            (":8080:db:80", spec("*", 8080, "db", 80)),
            ("[::1]:8080:80", spec("::1", 8080, None, 80)),
            ("[::1]:8080:db:80", spec("::1", 8080, "db", 80)),
            ("[]:8080:db:80", spec("*", 8080, "db", 80)),
            ("8080:[2001:db8::1]:80", spec("127.0.0.1", 8080, "2001:db8::1", 80)),
            ("[::1]:8080:[2001:db8::1]:80", spec("::1", 8080, "2001:db8::1", 80)),
            ("/tmp/s:80", spec("", 0, None, 80, "/tmp/s")),
            ("./s:db.internal:80", spec("", 0, "db.internal", 80, "./s")),
            ("/tmp/8080:[::1]:80", spec("", 0, "::1", 80, "/tmp/8080")),
        ],
    )
    def test_forms(self, text: str, expected: ForwardSpec) -> None:
        assert parse_forward_spec(text) == expected._replace(text=text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":",
            "8080",
            "8080:",
            ":80",
            "8080:0",
            "65536:80",
            "8080:65536",
            "-1:80",
            "8080:http",
            "http:80",
            "8080:db:80:more",
            "127.0.0.1:8080:db:80:more",
            "::1:8080:80",
            "[::1:8080:80",
            "::1]:8080:80",
            "x[::1]:8080:80",
            "[::1]x:8080:80",
            "8080::80",
            "8080: :80",
            "8080:a b:80",
            "8080:\x1b[2J:80",
            "/tmp/s:1:2:3",
            "/tmp/s:0",
            "8080:/var/run/docker.sock",
            "8080:db:/var/run/docker.sock",
            "\u0661:80",
            "9" * 5000 + ":80",
            f"8080:{'x' * 256}:80",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_forward_spec(text)
        assert caught.value.message.isprintable()
        assert "PORT:HOSTPORT" in (caught.value.hint or "")

    def test_sockets_of_the_node_cannot_be_reached(self) -> None:
        with pytest.raises(UsageError) as caught:
            parse_forward_spec("8080:/var/run/docker.sock")
        assert "ssh -L" in (caught.value.cause or "")

    @pytest.mark.parametrize(
        ("text", "said"),
        [("0:80", "port 80"), ("0:db:80", "db:80"), ("0:[::1]:80", "[::1]:80")],
    )
    def test_the_destination_in_words(self, text: str, said: str) -> None:
        assert parse_forward_spec(text).destination == said


def test_the_node_itself_and_other_hosts_need_different_documents() -> None:
    itself = make_request(parse_forward_spec("0:80"), "i-1", None)
    assert (itself.target, itself.document_name, itself.parameters, itself.reason) == (
        "i-1",
        "AWS-StartPortForwardingSession",
        {"portNumber": ["80"]},
        None,
    )
    other = make_request(parse_forward_spec("0:[::1]:80"), "i-1", "because")
    assert (other.document_name, other.parameters, other.reason) == (
        "AWS-StartPortForwardingSessionToRemoteHost",
        {"portNumber": ["80"], "host": ["::1"]},
        "because",
    )


class TestArguments:
    def test_defaults(self) -> None:
        arguments = make_parser().parse_args(["forward", "i-1", "0:80", "0:81"])
        assert (arguments.target, arguments.specs, arguments.child_command) == ("i-1", ["0:80", "0:81"], None)
        assert not arguments.ready_json
        for name in ("profile", "region", "reason", "endpoint_url", "stream_endpoint_url", "log_file"):
            assert getattr(arguments, name) is None

    @pytest.mark.parametrize("position", [0, 1, 3])
    def test_options_stand_before_or_behind_the_specs(self, position: int) -> None:
        words = ["i-1", "0:80", "0:81"]
        words[position:position] = ["--ready-json", "-vv", "--region", "r"]
        arguments = make_parser().parse_args(["forward", *words])
        assert (arguments.target, arguments.specs) == ("i-1", ["0:80", "0:81"])
        assert (arguments.ready_json, arguments.verbosity, arguments.region) == (True, 2, "r")

    @pytest.mark.parametrize(
        ("behind", "command"), [(["--"], []), (["--", "ls", "-v", "--", "x:1"], ["ls", "-v", "--", "x:1"])]
    )
    def test_all_behind_the_dashes_is_the_command(self, behind: list[str], command: list[str]) -> None:
        arguments = make_parser().parse_args(["forward", "i-1", "0:80", *behind])
        assert (arguments.specs, arguments.child_command, arguments.verbosity) == (["0:80"], command, 0)

    @pytest.mark.parametrize("words", [["i-1"], [], ["i-1", "--", "0:80"], ["i-1", "0:80", "--no-such-option"]])
    def test_what_cannot_be_parsed(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            make_parser().parse_args(["forward", *words])
        assert caught.value.code == 2
        assert "usage: ssm-proxy" in capsys.readouterr().err

    def test_a_port_for_the_command_where_there_is_none(
        self, tmp_path: object, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(str(tmp_path))
        assert main(["forward", "i-1", "./s:80", "--", "echo", "{port}"]) == 2
        assert "{port}" in capfd.readouterr().err

    def test_the_help_says_what_a_user_must_know(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            make_parser().parse_args(["forward", "--help"])
        said = " ".join(capsys.readouterr().out.split())
        for each in ("half-close", "probe", "all end", "{port}", "SSM_PROXY_PORT_0", "status 130"):
            assert each in said

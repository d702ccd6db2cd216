"""``--parameters``: a recorded table of what the AWS CLI makes of each text, and the AWS CLI itself if it is there."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ssm_proxy.cli.parameters import parse_parameters
from ssm_proxy.errors import UsageError

# What the AWS CLI 1.46 sends as Parameters, or None where it refuses.
RECORDED: dict[str, dict[str, list[str]] | None] = {
    # JSON
    '{"portNumber":["80"],"localPortNumber":["56789"]}': {"portNumber": ["80"], "localPortNumber": ["56789"]},
    ' {"a" : ["b", "c d"]}\n': {"a": ["b", "c d"]},
    '{"a":["b"],"a":["c"]}': {"a": ["c"]},
    '{"command":["echo \\"x\\" \\u00e4"]}': {"command": ['echo "x" ä']},
    '{"a":[]}': {"a": []},
    "{}": {},
    '{"a":"b"}': None,
    '{"a":["b",1]}': None,
    '{"a":[["b"]]}': None,
    '{"a":[true]}': None,
    '{"a":[null]}': None,
    '{"a":[NaN]}': None,
    '{"a":null}': None,
    '{"a":{"b":["c"]}}': None,
    '{"a":[""]}': None,
    '{"":["a"]}': None,
    '{"a":["b"]': None,
    "{'a':['b']}": None,
    '{"a":["b"]} x': None,
    '["a"]': None,
    "[": None,
    # shorthand: one value
    "portNumber=80": {"portNumber": ["80"]},
    'portNumber="3389",localPortNumber="56789"': {"portNumber": ["3389"], "localPortNumber": ["56789"]},
    "portNumber='22'": {"portNumber": ["22"]},
    "host=db.internal,portNumber=5432": {"host": ["db.internal"], "portNumber": ["5432"]},
    "a = b , c = d": {"a": ["b"], "c": ["d"]},
    "command=ls -l /tmp": {"command": ["ls -l /tmp"]},
    "command=a=b": {"command": ["a=b"]},
    "a=file:///nowhere": {"a": ["file:///nowhere"]},
    "a.b/c#d:e-f_9=x": {"a.b/c#d:e-f_9": ["x"]},
    "a=ä€": {"a": ["ä€"]},
    "a=b\n": {"a": ["b"]},
    "a=": None,
    'a=""': None,
    "=b": None,
    "": None,
    " ": None,
    "a": None,
    " a=b": None,
    "a b=c": None,
    "a==b": None,
    "ä=b": None,
    "a=😀": None,
    "a={b=c}": None,
    "a}=b": None,
    # shorthand: lists
    "a=[1,2],b=3": {"a": ["1", "2"], "b": ["3"]},
    "a=1,2,b=3": {"a": ["1", "2"], "b": ["3"]},
    "a=1 , 2 , b=3": {"a": ["1", "2"], "b": ["3"]},
    'a="x,y",\'z\',b="1"': {"a": ["x,y", "z"], "b": ["1"]},
    "a=[ 'x' , \"y\" ,z ]": {"a": ["x", "y", "z"]},
    "a=[]": {"a": []},
    "a=[1,]": {"a": ["1"]},
    "a=b,[c": None,
    "a=b,c[d]": {"a": ["b", "c[d]"]},
    "a=[1,2": None,
    "a=[[1]]": None,
    "a=[{b=c}]": None,
    "a=[1 2]": {"a": ["1 2"]},
    "a=[1]]": None,
    "a=[1] ": None,
    "a=[,]": None,
    "a=1,,2": None,
    "a=1,,b=2": {"a": ["1"], "b": ["2"]},
    "a=1,=2": None,
    "a=1,": None,
    "a=,1": None,
    "a=b,c=d,a=e": None,
    # shorthand: quotes and escapes
    'a="say \\"x\\""': {"a": ['say "x"']},
    "a='it\\'s'": {"a": ["it's"]},
    'a="back\\\\slash"': {"a": ["back\\slash"]},
    "a=C:\\Temp": {"a": ["C:\\Temp"]},
    "a=x\\,y,b=z": {"a": ["x,y"], "b": ["z"]},
    "a=x,y\\,z": {"a": ["x", "y,z"]},
    'a="x" y': None,
    'a=x"y': None,
    "a=x'y'": None,
    'a="x': None,
    "a='x": None,
    'a=b,"x': None,
    'a="{\\"b\\": 1}"': {"a": ['{"b": 1}']},
    # files
    "file:///nowhere/at/all": None,
    "a@=file:///nowhere/at/all": None,
    "a@=b": {"a": ["b"]},
    "a@ =b": {"a": ["b"]},
    "http://127.0.0.1:1/x": None,
}
# A comma that is escaped, in a list, just before the next name: the AWS CLI goes back to that comma, and drops what is
# in front of it without a word. We refuse the text.
CLI_DROPS = {"a=b,c\\,d=e": {"a": ["b"], "d": ["e"]}}

# Runs in a process of its own: importing the AWS CLI puts its own copy of botocore in the place of everybody's.
_CLI = """
import json, sys
from awscli.argprocess import ParamError, _unpack_complex_cli_arg
from awscli.paramfile import LOCAL_PREFIX_MAP, ResourceLoadingError, get_paramfile
from awscli.shorthand import BackCompatVisitor, ShorthandParseError, ShorthandParser
from botocore.session import Session
from botocore.validate import ParamValidator

model = Session().get_service_model("ssm").operation_model("StartSession").input_shape.members["Parameters"]

def outcome(text):
    try:
        value = get_paramfile(text, LOCAL_PREFIX_MAP)
        value = text if value is None else value
        if value.strip().startswith(("[", "{")):
            parsed = _unpack_complex_cli_arg(model, value, "--parameters")
        else:
            parsed = ShorthandParser().parse(value)
            BackCompatVisitor().visit(parsed, model)
    except (ParamError, ResourceLoadingError, ShorthandParseError):
        return None
    return None if ParamValidator().validate(parsed, model).has_errors() else parsed

json.dump([outcome(text) for text in json.load(sys.stdin)], sys.stdout)
"""


def our_outcome(text: str) -> dict[str, list[str]] | None:
    try:
        return parse_parameters(text)
    except UsageError:
        return None


@pytest.fixture(scope="module")
def cli_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Texts that name files: of each form, and some that cannot be read."""
    folder = tmp_path_factory.mktemp("parameters")
    contents = {"json": b'{"a":["b"]}\n', "shorthand": b"a=b,c\n", "empty": b"", "latin": b"a=\xe4", "name": b"x y\n"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    texts = [f"file://{folder / name}" for name in (*contents, "missing", ".")]
    return [*texts, *(f"a@={text}" for text in texts), f"a@=[file://{folder}/name,x],b=file://{folder}/name"]


def random_texts() -> list[str]:
    random_source = random.Random(1)
    pieces = [
        "a",
        "b=",
        "c=",
        "=",
        ",",
        ",",
        '"',
        "'",
        "[",
        "]",
        "{",
        "}",
        "\\",
        "\\,",
        " ",
        "@",
        "x y",
        "1",
        "é",
        "\n",
    ]
    texts = ["a=" + "".join(random_source.choices(pieces, k=random_source.randint(0, 12))) for _ in range(6000)]
    return texts + ["".join(random_source.choices(pieces, k=random_source.randint(0, 8))) for _ in range(2000)]


@pytest.mark.parametrize("text", RECORDED)
def test_a_text_means_what_it_means_to_the_aws_cli(text: str) -> None:
    assert our_outcome(text) == RECORDED[text]


@pytest.mark.parametrize("text", CLI_DROPS)
def test_nothing_is_dropped_in_silence(text: str) -> None:
    assert our_outcome(text) is None


@pytest.mark.skipif(importlib.util.find_spec("awscli") is None, reason="the AWS CLI is not installed")
def test_the_aws_cli_itself_agrees(cli_files: list[str]) -> None:
    texts = [*RECORDED, *CLI_DROPS, *cli_files, *random_texts()]
    run = subprocess.run(
        [sys.executable, "-c", _CLI], input=json.dumps(texts), capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    theirs = dict(zip(texts, json.loads(run.stdout), strict=True))
    assert {text: theirs[text] for text in RECORDED} == RECORDED
    assert {text: theirs[text] for text in CLI_DROPS} == CLI_DROPS
    differences = {text: (our_outcome(text), value) for text, value in theirs.items() if our_outcome(text) != value}
    # See CLI_DROPS: then, and only then, we may refuse what the AWS CLI takes.
    assert {text: pair for text, pair in differences.items() if pair[0] is not None or "\\," not in text} == {}
    assert len(differences) < len(texts) / 50
    assert sum(value is not None for value in theirs.values()) > 500


def test_a_file_holds_json_or_shorthand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ports").write_text('{"portNumber":["80"]}\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "ports")
    assert parse_parameters("file://~/ports") == {"portNumber": ["80"]}
    assert parse_parameters(f"file://{tmp_path}/$PLACE") == {"portNumber": ["80"]}
    (tmp_path / "command").write_text("ls, or\nnot")
    assert parse_parameters("command@=file://~/command,x=y") == {"command": ["ls, or\nnot"], "x": ["y"]}


def refusal(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_parameters(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "cause", "place"),
    [
        ('portNumber"80"', "expected '=', found '\"'", 10),
        ("portNumber", "expected '=', found the end", 10),
        ("a=1,a=2", "the parameter 'a' is there twice", 4),
        ('a="b', 'the quotation mark " is not closed', 2),
        ("a=1,", "a value is missing at the end", 4),
        ("a={b=c}", "a structure cannot be the value of a parameter; it is one string or a list of strings", 2),
        ('{"a":[1}', "the JSON is not valid: expecting ',' delimiter", 7),
        (' ["a"]', "the JSON is not an object", 1),
    ],
)
def test_an_error_points_at_the_place(text: str, cause: str, place: int) -> None:
    error = refusal(text)
    assert error.cause == cause
    assert error.hint is not None
    assert error.hint.splitlines()[-2:] == ["    " + text, "    " + " " * place + "^"]


def test_of_a_long_text_the_part_round_the_place_is_shown() -> None:
    error = refusal("a=" + "x" * 500 + "'\x1b\n" + "y" * 500)
    assert error.hint is not None
    line, mark = error.hint.splitlines()[-2:]
    assert len(line) == 64
    assert line[len(mark) - 1] == "'"
    assert line.startswith("    …x")
    assert line.endswith("y…")
    assert line.isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":"b"}', "the value of the parameter 'a' is a string, not a list of strings"),
        ('{"a":{"b":["c"]}}', "the value of the parameter 'a' is an object, not a list of strings"),
        ('{"a":[80]}', "the parameter 'a' has a number among its values, not only strings"),
        ('{"a":["b",null]}', "the parameter 'a' has null among its values, not only strings"),
        ('{"a":[true]}', "the parameter 'a' has true or false among its values, not only strings"),
        ('{"a":[["b"]]}', "the parameter 'a' has a list among its values, not only strings"),
        ("a=", "a value of the parameter 'a' is empty"),
        (f"a={'x' * 65536}", "a value of the parameter 'a' is too long"),
        (f"{'x' * 256}=a", f"the parameter name '{'x' * 59}…' is too long"),
        ("=a", "a session parameter has no name"),
        ("file:///nowhere", "the parameter file 'file:///nowhere' cannot be read"),
        ("file:///dev/zero", "the parameter file 'file:///dev/zero' is too large"),
    ],
)
def test_what_the_service_would_refuse_is_refused_before(text: str, message: str) -> None:
    assert refusal(text).message == message


@pytest.mark.parametrize("text", ['{"a":' * 100_000, '{"a":' + "9" * 10_000 + "}", "[" * 100_000, "a=" + "[" * 100_000])
def test_absurd_texts_are_refused_and_nothing_else_happens(text: str) -> None:
    assert refusal(text).exit_status == 2

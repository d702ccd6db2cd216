from __future__ import annotations

import copy
import logging
import pickle
import traceback

import pytest

from ssm_proxy.secret import Secret

TEXT = "AAEA-token-that-nobody-may-see"


@pytest.mark.parametrize(
    "show",
    [repr, str, "{}".format, "{:>40}".format, "{!r}".format, lambda s: "%s %r" % (s, s), lambda s: repr([{"a": s}])],  # noqa: UP031
)
def test_no_way_of_printing_shows_it(show):
    assert TEXT not in show(Secret(TEXT))
    assert "***" in show(Secret(TEXT))


def test_logging_does_not_show_it(caplog):
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("x").debug("token %s %r", Secret(TEXT), {"t": Secret(TEXT)})
    assert "***" in caplog.text
    assert TEXT not in caplog.text


def test_reveal_gives_it_back():
    assert Secret(TEXT).reveal() == TEXT


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_pickled_or_copied(take):
    with pytest.raises(TypeError, match="Secret") as caught:
        take(Secret(TEXT))
    assert TEXT not in "".join(traceback.format_exception(caught.value))


def test_equality_is_by_text_and_only_among_secrets():
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret(TEXT + "x")
    assert Secret("é") == Secret("é")
    assert Secret(TEXT) != TEXT


def test_it_has_no_hash():
    with pytest.raises(TypeError, match="unhashable"):
        hash(Secret(TEXT))


def test_truth_is_that_of_the_text():
    assert Secret(TEXT)
    assert not Secret("")


def test_it_has_no_dictionary_to_dump():
    with pytest.raises(TypeError):
        vars(Secret(TEXT))

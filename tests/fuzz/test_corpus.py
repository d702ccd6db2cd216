"""Every find that fuzzing has made, and what it starts from, through the same targets, without the fuzzer."""

from __future__ import annotations

import random

import pytest
from fuzz.seeds import CORPUS, dictionary, seeds
from fuzz.targets import TARGETS

_SEEDS = 40
_RANDOM_INPUTS = 20


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_find_comes_back(path):
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_noise_pass(name):
    for data in seeds(name)[:_SEEDS]:
        TARGETS[name](data)
    rng = random.Random(name)
    for _ in range(_RANDOM_INPUTS):
        TARGETS[name](rng.randbytes(rng.choice((3, 30, 300))))


def test_every_folder_of_the_corpus_is_one_of_a_target():
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)


def test_the_dictionary_is_in_the_notation_of_the_fuzzer():
    lines = dictionary().splitlines()
    assert len(lines) > 20
    assert all(line.startswith('"\\x') and line.endswith('"') for line in lines)

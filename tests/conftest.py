"""Fixtures that all tests share."""

import numpy as np
import pytest

LINES = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[LINES] = []


@pytest.fixture
def rng():
    return np.random.default_rng(2024)


@pytest.fixture
def report(request):
    """A list whose lines are shown after the test run: numbers to read, not to judge."""
    return request.config.stash[LINES]


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[LINES]:
        terminalreporter.section("report")
        for line in config.stash[LINES]:
            terminalreporter.write_line(line)

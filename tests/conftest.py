"""Fixtures that all tests share."""

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(2024)


@pytest.fixture
def report(request):
    """A list whose lines are shown after the test run: numbers to read, not to judge."""
    lines = []
    yield lines
    request.node.user_properties.append(("report", lines))  # reaches the main process from any worker


class Report:
    """Gathers the lines of all tests and shows them."""

    def __init__(self):
        self.lines = []

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.lines += [line for name, lines in report.user_properties if name == "report" for line in lines]

    def pytest_terminal_summary(self, terminalreporter):
        if self.lines:
            terminalreporter.section("report")
            for line in self.lines:
                terminalreporter.write_line(line)


def pytest_configure(config):
    config.pluginmanager.register(Report())

"""``proto.reason``: words for each reason, for people."""

import json
import re

import pytest

from snimux.config.settings import SETTINGS
from snimux.proto.reason import Reason

FLAGS = {setting.flag for setting in SETTINGS} | {"--route", "--allow", "--deny", "--proxy-from"}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_says_what_it_means_and_what_to_do(reason: Reason) -> None:
    assert re.fullmatch("[A-Za-z].*[^.]", reason.meaning)
    assert re.fullmatch(r"[A-Z].*\.", reason.remedy)


@pytest.mark.parametrize("reason", Reason)
def test_what_is_to_be_changed_is_there(reason: Reason) -> None:
    assert set(re.findall(r"--[a-z-]+", reason.remedy)) <= FLAGS


@pytest.mark.parametrize("reason", Reason)
def test_no_client_is_refused_for_a_capability(reason: Reason) -> None:
    """Without those that it needs snimux does not start."""
    assert not re.search("CAP_", reason.remedy)


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_its_word(reason: Reason) -> None:
    assert Reason(reason.value) is reason
    assert (str(reason), json.dumps(reason)) == (reason.value, f'"{reason.value}"')
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", reason.value)


@pytest.mark.parametrize("reason", Reason)
def test_scanners_are_told_nothing(reason: Reason) -> None:
    """They speak another protocol, or none, and would take an answer for a sign of life."""
    assert not reason.is_scanner or reason.alert is None

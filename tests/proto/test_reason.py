"""``proto.reason``: words for each reason, for people."""

import re

import pytest

from snimux.config.settings import SETTINGS
from snimux.proto.reason import MEANINGS, REMEDIES, Reason

FLAGS = {setting.flag for setting in SETTINGS} | {"--route", "--allow", "--deny", "--proxy-from"}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_says_what_it_means_and_what_to_do(reason: Reason) -> None:
    assert re.fullmatch("[A-Za-z].*[^.]", MEANINGS[reason])
    assert re.fullmatch(r"[A-Z].*\.", REMEDIES[reason])


@pytest.mark.parametrize("reason", Reason)
def test_what_is_to_be_changed_is_there(reason: Reason) -> None:
    assert set(re.findall(r"--[a-z-]+", REMEDIES[reason])) <= FLAGS


@pytest.mark.parametrize("reason", Reason)
def test_no_client_is_refused_for_a_capability(reason: Reason) -> None:
    """Without those that it needs snimux does not start."""
    assert not re.search("CAP_", REMEDIES[reason])

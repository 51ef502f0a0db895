"""The attribution that goes with the weights."""

from __future__ import annotations

import pytest

from models.training.artwork import PACKAGES, Package
from models.training.notice import notice


def test_notice_credits_every_package() -> None:
    text = notice()
    assert all(f"{package.name} {package.version}" in text for package in PACKAGES)
    for maker in ("Google", "Microsoft", "Twitter and contributors", "EmojiTwo", "Mozilla", "Mu-An Chiou"):
        assert maker in text
    assert "Permission is hereby granted" in text and "creativecommons.org/licenses/by/4.0" in text


def test_a_package_without_credits_is_refused() -> None:
    with pytest.raises(KeyError, match="unknown-art"):
        notice([Package("unknown-art", "1.0.0", "MIT", "3d")])

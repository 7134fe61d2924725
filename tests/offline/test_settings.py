from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from offline.settings import OfflineSettings
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def test_settings_are_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "offline.yaml"
    path.write_text("split: {strategy: latest}\ncooccurrence: {window: 9}\n")
    settings = OfflineSettings.load(path)
    assert (settings.split.strategy, settings.cooccurrence.window) == ("latest", 9)
    assert settings.text == OfflineSettings().text


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert OfflineSettings.load(tmp_path / "empty.yaml") == OfflineSettings()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"windows": 3}, "windows"),
        ({"cooccurrence": {"window": 0}}, "cooccurrence.window"),
        ({"split": {"strategy": "random"}}, "split.strategy"),
        ({"split": {"quantiles": [0.9, 0.8]}}, "split"),
        ({"split": {"cut_times": [5, 5]}}, "split"),
        ({"positive_actions": []}, "settings"),
        ({"split": {"strategy": "global_time"}, "core": {"min_user_events": 5}}, "settings"),
    ],
)
def test_a_bad_setting_is_named(value: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OfflineSettings.parse(value)
    assert caught.value.field == field


@pytest.mark.parametrize("data", [None, b"split: [", b"\xff\xfe"])
def test_an_unreadable_file_is_refused(data: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "offline.yaml"
    [path.write_bytes(content) for content in (data,) if content is not None]
    with pytest.raises(ConfigError, match="cannot be read"):
        OfflineSettings.load(path)

"""Settings of the feature store: environment variables with the prefix WINDFIRE_FEATURES_."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Final

from annotated_types import Gt
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from feature_store.opening import Timeouts
from recsys.errors import ConfigError

PREFIX: Final = "WINDFIRE_FEATURES_"
Duration = Annotated[timedelta, Gt(timedelta(0))]


class FeatureSettings(BaseSettings):
    """What an operator may change; config/windfire.reference.env explains each."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    store: str = "lmdb:work/features"
    views: str = "feature_store.standard"
    connect_timeout: Duration = timedelta(milliseconds=100)
    answer_timeout: Duration = timedelta(milliseconds=100)

    @property
    def timeouts(self) -> Timeouts:
        """For `open_store`."""
        return Timeouts(self.connect_timeout, self.answer_timeout)


def read_feature_settings(**given: Any) -> FeatureSettings:
    """Settings from the environment, under those that are given and not None.

    Raises:
        ConfigError: a value does not fit; names its variable.
    """
    try:
        return FeatureSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(first["msg"], field=name, value=first["input"],
                          remedy="see config/windfire.reference.env") from error  # fmt: skip

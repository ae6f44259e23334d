"""What every result record is made of.

A record carries `schema_version`; a reader refuses one that is newer than itself. Nats are natural-log units; intervals are
95% paired bootstrap intervals (Agresti and Min's for shares of answers in `BehaviourChange`).
"""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from recoup.errors import DataError

SCHEMA_VERSION = 1


class Record(BaseModel):
    """A frozen record."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Result(Record):
    """A stage's result, as `result.json`."""

    schema_version: int = SCHEMA_VERSION

    @field_validator("schema_version")
    @classmethod
    def _is_known(cls, version: int) -> int:
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"written by a newer recoup (schema {version}, this one reads {SCHEMA_VERSION}); upgrade recoup"
            )
        return version

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one from `path`.

        Raises:
            DataError: the file is missing, malformed, or from a newer recoup.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such result; run that stage first") from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a readable {cls.__name__}: {' '.join(str(error).split())}") from None


class Estimate(Record):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

"""Groups of records that a guarantee protects together: a person's, a patient's."""

from __future__ import annotations

from collections.abc import Iterable

from dpwg.data.files import FileRecords
from dpwg.data.records import Records


def group_numbers(records: Records, column: str) -> list[int]:
    """The group of each record, numbered from 0 as they first appear: equal values, one group.

    ValueError names a record without a value: to guess whose it is could break the guarantee.
    """
    numbers: dict[str, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in _labels(records, column)]


def _labels(records: Records, column: str) -> Iterable[str]:
    for index in range(len(records)):
        record = records.entries[index] if isinstance(records, FileRecords) else records[index]
        label = record.attributes.get(column, "").strip()
        if not label:
            known = ", ".join(sorted(record.attributes)) or "none"
            raise ValueError(
                f"Expected a value of {column!r} for {record.name}; its columns are {known}."
            )
        yield label

"""Where records come from: rendered sets, data sets on disk, one interface for all."""

from dpwg.data.records import Record, Records
from dpwg.data.sets import RENDERED_SETS, SETS, is_public, open_records, render

__all__ = ["RENDERED_SETS", "SETS", "Record", "Records", "is_public", "open_records", "render"]

"""The JSON file of a run: what it holds, writing and reading it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.statistics import Summary

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"

_DOCUMENT = {
    "schema": int,
    "mode": str,
    "names": list,
    "machine": dict,
    "started": str,
    "seconds": float,
    "load_before": float,
    "load_after": float,
    "ceilings": dict,
    "definitions": list,
    "rows": list,
}
_MACHINE = {"device": str, "platform": str, "cores": int, "versions": dict, "commit": str, "python": str}
_ROW = {"benchmark": str, "case": str, "unit": str, "status": str, "note": str}
_STATUS = ("measured", "quoted", "failed", "skipped")


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write a run, checked first, so that no file is left that cannot be read."""
    check(document, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_document(path: Path) -> dict[str, Any]:
    """A run that was written.

    Raises:
      ValueError: there is none, or it is damaged or of another schema, in one line.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    check(document, str(path))
    return dict(document)


def check(document: Any, name: str) -> None:
    """Whether a document is a run of this schema.

    Raises:
      ValueError: naming the first thing that is not.
    """
    _check_fields(document, _DOCUMENT, name)
    if document["schema"] != SCHEMA:
        raise ValueError(f"{name} has schema {document['schema']}; this version reads {SCHEMA}")
    _check_fields(document["machine"], _MACHINE, f"{name}, machine")
    seen = set()
    for row in document["rows"]:
        where = f"{name}, row {row.get('case', '?') if isinstance(row, dict) else row}"
        _check_row(row, where)
        if (key := (row["benchmark"], row["case"])) in seen:
            raise ValueError(f"{where}: occurs twice")
        seen.add(key)


def _check_row(row: Any, where: str) -> None:
    _check_fields(row, _ROW, where)
    if row["status"] not in _STATUS:
        raise ValueError(f"{where}: status {row['status']!r} is none of {', '.join(_STATUS)}")
    if row["status"] == "measured":
        _check_fields(row, {"seconds": dict, "work": float, "rate": float}, where)
        _check_fields(row["seconds"], {"count": int, **dict.fromkeys(("min", "q25", "median", "q75", "max"), float)}, where)
    elif row["status"] != "quoted" and not row["note"]:
        raise ValueError(f"{where}: {row['status']} without a reason")


def _check_fields(value: Any, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: no object")
    for name, kind in fields.items():
        found = value.get(name)
        good = isinstance(found, int | float) and math.isfinite(found) if kind is float else isinstance(found, kind)
        if not good or isinstance(found, bool):
            raise ValueError(f"{where}: {name} is missing or no {kind.__name__}")


def summary_of(row: dict[str, Any]) -> Summary:
    """The statistics of a measured row."""
    return Summary(**{name: row["seconds"][name] for name in ("count", "min", "q25", "median", "q75", "max")})

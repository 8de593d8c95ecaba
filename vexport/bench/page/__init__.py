"""The benchmark's report for people, all of it made from the benchmark's JSON document."""

from vexport.bench.page.document import document_schema, validate
from vexport.bench.page.write import write_report

__all__ = ["document_schema", "validate", "write_report"]
